//! PEM files: read, checked, and turned into what rustls takes.

use std::path::Path;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::error::TlsError;

/// A certificate chain and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// The last moment at which the whole chain is valid.
    pub(crate) expires: SystemTime,
}

/// Loads a chain (own certificate first) and its key.
pub(crate) fn identity(cert: &Path, key: &Path) -> Result<Identity, TlsError> {
    let (chain, expires) = certificates(cert)?;
    Ok(Identity {
        chain,
        key: private_key(key)?,
        expires,
    })
}

/// Loads the CA certificates that a peer's certificate may be signed by.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(path)?.0.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| TlsError::BadCertificate {
            path: path.to_owned(),
            index,
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The certificates of a file, valid or not.
pub(crate) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| bad_pem(path, &error))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The certificates of a file, and until when all of them are valid.
fn certificates(path: &Path) -> Result<(Vec<CertificateDer<'static>>, SystemTime), TlsError> {
    let certificates = chain(path)?;
    let now = SystemTime::now();
    let ends = certificates
        .iter()
        .enumerate()
        .map(|(index, certificate)| check_validity(path, index, certificate, now));
    let ends: Vec<SystemTime> = ends.collect::<Result<_, _>>()?;
    let first = ends.into_iter().min().unwrap_or(now);
    Ok((certificates, first))
}

/// The first private key of a file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound if contains(&text, b"ENCRYPTED PRIVATE KEY") => {
            TlsError::EncryptedKey { path: path.to_owned() }
        }
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_owned() },
        other => bad_pem(path, &other),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let text = std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })?;
    if text.trim_ascii().is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(text)
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

/// The messages of the PEM reader quote the markers of a block, never its contents.
fn bad_pem(path: &Path, error: &pem::Error) -> TlsError {
    TlsError::BadPem {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Until when it is valid.
fn check_validity(
    path: &Path,
    index: usize,
    der: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<SystemTime, TlsError> {
    let certificate = Certificate::from_der(der).map_err(|error| TlsError::BadCertificate {
        path: path.to_owned(),
        index,
        reason: error.to_string(),
    })?;
    let validity = certificate.tbs_certificate.validity;
    let subject = || certificate.tbs_certificate.subject.to_string();
    if now > validity.not_after.to_system_time() {
        let at = validity.not_after.to_string();
        return Err(TlsError::Expired {
            path: path.to_owned(),
            index,
            subject: subject(),
            at,
        });
    }
    if now < validity.not_before.to_system_time() {
        let at = validity.not_before.to_string();
        return Err(TlsError::NotYetValid {
            path: path.to_owned(),
            index,
            subject: subject(),
            at,
        });
    }
    Ok(validity.not_after.to_system_time())
}

/// Says of which file a refusal of rustls is about.
pub(crate) fn refused(error: rustls::Error, cert: &Path, key: &Path) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
        rustls::Error::General(reason) => TlsError::BadKey {
            path: key.to_owned(),
            reason,
        },
        rustls::Error::InvalidCertificate(error) => TlsError::BadCertificate {
            path: cert.to_owned(),
            index: 0,
            reason: error.to_string(),
        },
        other => TlsError::Configuration {
            reason: other.to_string(),
        },
    }
}
