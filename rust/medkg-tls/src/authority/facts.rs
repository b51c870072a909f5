//! What stands in a certificate.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, OctetString};
use x509_cert::der::{Decode as _, Encode as _, Error};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::RdnSequence;

use crate::error::TlsError;
use crate::{files, names};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Dns(String),
    Address(IpAddr),
    Uri(String),
    /// Of a kind that medkg does not read.
    Other,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Address(address) => write!(f, "ip:{address}"),
            Self::Uri(uri) => match (names::tenant(uri), names::service(uri)) {
                (Some(tenant), _) => write!(f, "tenant:{tenant}"),
                (_, Some(service)) => write!(f, "service:{service}"),
                _ => write!(f, "uri:{uri}"),
            },
            Self::Other => f.write_str("other"),
        }
    }
}

/// A certificate, read.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// As text, e.g. `CN=worker`.
    pub(super) subject: String,
    /// Its common name, if it has that and nothing else.
    pub(super) common_name: Option<String>,
    pub(super) names: Vec<Name>,
    /// May sign others.
    pub(super) authority: bool,
    /// May be shown by a server.
    pub(super) server: bool,
    /// May be shown by a client.
    pub(super) client: bool,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Names its key.
    pub(super) key_id: Option<Vec<u8>>,
    /// Names the key that signed it.
    pub(super) issuer_key_id: Option<Vec<u8>>,
    /// `SubjectPublicKeyInfo`, DER.
    pub(super) public_key: Vec<u8>,
    /// DER.
    pub(super) subject_name: Vec<u8>,
    /// DER.
    pub(super) issuer_name: Vec<u8>,
}

impl Facts {
    /// The certificates of a PEM file, with what stands in them.
    pub(super) fn of_file(path: &Path) -> Result<Vec<(CertificateDer<'static>, Self)>, TlsError> {
        let read = |(index, der): (usize, CertificateDer<'static>)| match Self::of(&der) {
            Ok(facts) => Ok((der, facts)),
            Err(error) => Err(TlsError::BadCertificate {
                path: path.to_owned(),
                index,
                reason: error.to_string(),
            }),
        };
        files::chain(path)?.into_iter().enumerate().map(read).collect()
    }

    /// What stands in a certificate.
    pub(super) fn of(der: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = Certificate::from_der(der)?.tbs_certificate;
        let alternatives = certificate
            .get::<SubjectAltName>()?
            .map_or_else(Vec::new, |(_, names)| names.0);
        let usages = certificate.get::<ExtendedKeyUsage>()?.map(|(_, usages)| usages.0);
        let authority = certificate
            .get::<BasicConstraints>()?
            .is_some_and(|(_, found)| found.ca);
        // Without the extension any use is allowed.
        let may = |usage| !authority && usages.as_ref().is_none_or(|usages| usages.contains(&usage));
        let key_id = certificate.get::<SubjectKeyIdentifier>()?;
        let issuer_key_id = certificate.get::<AuthorityKeyIdentifier>()?;
        Ok(Self {
            subject: certificate.subject.to_string(),
            common_name: common_name(&certificate.subject),
            names: alternatives.iter().map(name).collect(),
            authority,
            server: may(SERVER_AUTH),
            client: may(CLIENT_AUTH),
            not_before: certificate.validity.not_before.to_system_time(),
            not_after: certificate.validity.not_after.to_system_time(),
            key_id: key_id.map(|(_, id)| id.0.into_bytes()),
            issuer_key_id: issuer_key_id
                .and_then(|(_, id)| id.key_identifier)
                .map(OctetString::into_bytes),
            public_key: certificate.subject_public_key_info.to_der()?,
            subject_name: certificate.subject.to_der()?,
            issuer_name: certificate.issuer.to_der()?,
        })
    }

    /// Whether `authority` signed it, as the two say; the signature itself is checked in each handshake.
    pub(super) fn is_of(&self, authority: &Self) -> bool {
        self.issuer_key_id.is_some() && self.issuer_key_id == authority.key_id
    }
}

fn common_name(subject: &RdnSequence) -> Option<String> {
    let [part] = subject.0.as_slice() else { return None };
    let [attribute] = part.0.as_slice() else { return None };
    (attribute.oid == COMMON_NAME).then_some(())?;
    String::from_utf8(attribute.value.value().to_vec()).ok()
}

fn name(name: &GeneralName) -> Name {
    match name {
        GeneralName::DnsName(dns) => Name::Dns(dns.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Name::Uri(uri.to_string()),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            let sixteen = <[u8; 16]>::try_from(octets).map(IpAddr::from);
            four.or(sixteen).map_or(Name::Other, Name::Address)
        }
        _ => Name::Other,
    }
}
