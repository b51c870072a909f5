//! The server's side: its identity, and whom it lets in.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::TcpListener;

use crate::error::TlsError;
use crate::followed::Followed;
use crate::incoming::TlsIncoming;
use crate::{ALPN_H2, files, provider};

const DAY: u64 = 24 * 3600;
/// From when on a certificate's end is warned of, when it is loaded.
const SOON: Duration = Duration::from_secs(14 * DAY);

/// What the files make.
struct Loaded {
    rustls: Arc<rustls::ServerConfig>,
    expires: SystemTime,
}

/// A server's TLS settings, loaded and checked. Files that change are loaded again, for connections that are made later.
#[derive(Clone)]
pub struct ServerTlsConfig {
    followed: Arc<Followed<Loaded>>,
    requires_client_certificate: bool,
}

impl ServerTlsConfig {
    /// Loads PEM files: the chain (own certificate first), its private key and, where clients must show a certificate,
    /// the CA certificates that theirs are signed by.
    pub fn try_new(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let files: Vec<&Path> = [cert, key].into_iter().chain(client_ca).collect();
        let (cert, key, ca) = (cert.to_owned(), key.to_owned(), client_ca.map(Path::to_owned));
        let make = move || load(&cert, &key, ca.as_deref());
        Ok(Self {
            followed: Arc::new(Followed::new(&files, make)?),
            requires_client_certificate: client_ca.is_some(),
        })
    }

    /// The newest settings as rustls takes them.
    pub fn rustls(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.followed.newest().rustls)
    }

    /// The last moment at which every certificate of the newest chain is valid.
    pub fn expires(&self) -> SystemTime {
        self.followed.newest().expires
    }

    /// True if a client without a certificate is refused.
    pub const fn requires_client_certificate(&self) -> bool {
        self.requires_client_certificate
    }

    /// The connections of `listener`, each after its handshake, which may take `handshake_timeout` at most. For tonic's
    /// `serve_with_incoming_shutdown`; the listener is closed when the stream is dropped.
    pub fn incoming(&self, listener: TcpListener, handshake_timeout: Duration) -> TlsIncoming {
        TlsIncoming::new(listener, self.clone(), handshake_timeout)
    }
}

fn load(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Loaded, TlsError> {
    let identity = files::identity(cert, key)?;
    let expires = identity.expires;
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
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    if left < SOON {
        let days = left.as_secs() / DAY;
        tracing::warn!(file = %cert.display(), days, "the server's certificate expires soon; put a new one in its place");
    }
    Ok(Loaded {
        rustls: Arc::new(rustls),
        expires,
    })
}

impl fmt::Debug for ServerTlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTlsConfig")
            .field("key", &"<redacted>")
            .field("requires_client_certificate", &self.requires_client_certificate)
            .finish_non_exhaustive()
    }
}
