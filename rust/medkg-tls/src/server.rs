//! The server's side: its identity, and whom it lets in.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::TcpListener;

use crate::error::TlsError;
use crate::incoming::TlsIncoming;
use crate::{ALPN_H2, files, provider};

/// A server's TLS settings, loaded and checked.
#[derive(Clone)]
pub struct ServerTlsConfig {
    rustls: Arc<rustls::ServerConfig>,
    requires_client_certificate: bool,
}

impl ServerTlsConfig {
    /// Loads PEM files: the chain (own certificate first), its private key and, where clients must show a certificate,
    /// the CA certificates that theirs are signed by.
    pub fn try_new(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let identity = files::identity(cert, key)?;
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Configuration {
                reason: error.to_string(),
            })?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(files::roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| TlsError::Configuration {
                        reason: format!("{}: {error}", path.display()),
                    })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut rustls = builder
            .with_single_cert(identity.chain, identity.key)
            .map_err(|error| files::refused(error, cert, key))?;
        rustls.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A ticket would let a client come back after its certificate has expired.
        rustls.send_tls13_tickets = 0;
        rustls.session_storage = Arc::new(NoServerSessionStorage {});
        rustls.max_early_data_size = 0;
        Ok(Self {
            rustls: Arc::new(rustls),
            requires_client_certificate: client_ca.is_some(),
        })
    }

    /// The settings as rustls takes them.
    pub fn rustls(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.rustls)
    }

    /// True if a client without a certificate is refused.
    pub const fn requires_client_certificate(&self) -> bool {
        self.requires_client_certificate
    }

    /// The connections of `listener`, each after its handshake, which may take `handshake_timeout` at most. For tonic's
    /// `serve_with_incoming_shutdown`; the listener is closed when the stream is dropped.
    pub fn incoming(&self, listener: TcpListener, handshake_timeout: Duration) -> TlsIncoming {
        TlsIncoming::new(listener, self.rustls(), handshake_timeout)
    }
}

impl fmt::Debug for ServerTlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTlsConfig")
            .field("key", &"<redacted>")
            .field("requires_client_certificate", &self.requires_client_certificate)
            .finish_non_exhaustive()
    }
}
