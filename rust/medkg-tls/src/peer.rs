//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::names;

/// The names in a peer's certificate, which the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    /// Distinguished name as text, e.g. `CN=dagster-worker,O=Clinic`.
    pub subject: String,
    /// DNS names of the subject alternative name.
    pub dns_names: Vec<String>,
    /// URIs of the subject alternative name, e.g. a SPIFFE id.
    pub uris: Vec<String>,
}

impl PeerIdentity {
    /// From a certificate.
    ///
    /// # Errors
    /// It cannot be read: then nobody knows whom it binds its holder to.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, x509_cert::der::Error> {
        let certificate = Certificate::from_der(certificate)?;
        let mut identity = Self {
            subject: certificate.tbs_certificate.subject.to_string(),
            ..Self::default()
        };
        if let Some((_, names)) = certificate.tbs_certificate.get::<SubjectAltName>()? {
            for name in names.0 {
                match name {
                    GeneralName::DnsName(dns) => identity.dns_names.push(dns.to_string()),
                    GeneralName::UniformResourceIdentifier(uri) => identity.uris.push(uri.to_string()),
                    _ => {}
                }
            }
        }
        Ok(identity)
    }

    /// The tenants that the certificate names: its holder acts for these and for nobody else. None: it is bound to no tenant.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.uris.iter().filter_map(|uri| names::tenant(uri))
    }

    /// The service that the certificate names.
    pub fn service(&self) -> Option<&str> {
        self.uris.iter().find_map(|uri| names::service(uri))
    }
}

/// What is known of a connection; in the extensions of each of its tonic requests.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Address of the peer.
    pub remote_addr: Option<SocketAddr>,
    /// Address that it connected to.
    pub local_addr: Option<SocketAddr>,
    /// Its verified names; `None` where no client certificate is asked for.
    pub identity: Option<Arc<PeerIdentity>>,
}
