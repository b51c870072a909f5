//! The client's side: whom it trusts, and what it shows of itself.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::error::{ConnectError, TlsError};
use crate::followed::Followed;
use crate::{ALPN_H2, files, provider};

/// How long the server's first frame is waited for.
const FIRST_FRAME: Duration = Duration::from_millis(250);

/// What [`TlsConnector`] gives to tonic.
pub type TlsConnection = TokioIo<TlsStream<TcpStream>>;

/// A client's TLS settings, loaded and checked. Files that change are loaded again, for connections that are made later.
#[derive(Clone)]
pub struct ClientTlsConfig {
    followed: Arc<Followed<Arc<rustls::ClientConfig>>>,
    server_name: Option<ServerName<'static>>,
    has_identity: bool,
}

impl ClientTlsConfig {
    /// Loads PEM files: the CA certificates that a server's certificate may be signed by and, where the server asks for
    /// one, the chain (own certificate first) and private key to show. `server_name` is the name to expect in the
    /// server's certificate; without it, the host of the address.
    pub fn try_new(ca: &Path, identity: Option<(&Path, &Path)>, server_name: Option<&str>) -> Result<Self, TlsError> {
        let server_name = server_name.map(parse_name).transpose()?;
        let files: Vec<&Path> = std::iter::once(ca)
            .chain(identity.into_iter().flat_map(|(cert, key)| [cert, key]))
            .collect();
        let ca = ca.to_owned();
        let pair = identity.map(|(cert, key)| (cert.to_owned(), key.to_owned()));
        let make = move || load(&ca, pair.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path())));
        Ok(Self {
            followed: Arc::new(Followed::new(&files, make)?),
            server_name,
            has_identity: identity.is_some(),
        })
    }

    /// The newest settings as rustls takes them.
    pub fn rustls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.followed.newest())
    }

    /// For tonic's `Endpoint::connect_with_connector_lazy`. The address may begin with `https://` or `http://`; it is TLS
    /// either way. Set `Endpoint::connect_timeout`: it bounds TCP and TLS together.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector { config: self.clone() }
    }
}

fn load(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Configuration {
            reason: error.to_string(),
        })?
        .with_root_certificates(files::roots(ca)?);
    let mut rustls = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let loaded = files::identity(cert, key)?;
            builder
                .with_client_auth_cert(loaded.chain, loaded.key)
                .map_err(|error| files::refused(error, cert, key))?
        }
    };
    rustls.alpn_protocols = vec![ALPN_H2.to_vec()];
    rustls.resumption = Resumption::disabled();
    rustls.enable_early_data = false;
    Ok(Arc::new(rustls))
}

impl fmt::Debug for ClientTlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTlsConfig")
            .field("key", &self.has_identity.then_some("<redacted>"))
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// Connects to the host and port of an address, over TLS.
#[derive(Debug, Clone)]
pub struct TlsConnector {
    config: ClientTlsConfig,
}

impl TlsConnector {
    async fn connect(self, uri: Uri) -> Result<TlsConnection, ConnectError> {
        let Some(host) = uri.host() else {
            return Err(ConnectError::NoHost { uri });
        };
        // The brackets of an IPv6 address belong to the URI.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(443);
        let address = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let name = match self.config.server_name.clone() {
            Some(name) => name,
            None => parse_name(host).map_err(ConnectError::ServerName)?,
        };
        let socket = match TcpStream::connect((host, port)).await {
            Ok(socket) => socket,
            Err(source) => return Err(ConnectError::Tcp { address, source }),
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%address, %error, "TCP_NODELAY could not be set");
        }
        let connecting = tokio_rustls::TlsConnector::from(self.config.rustls()).connect(name, socket);
        let admitted = match connecting.await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) => admitted(stream).await,
            Ok(_) => return Err(ConnectError::NotHttp2 { address }),
            Err(source) => Err(source),
        };
        admitted
            .map(TokioIo::new)
            .map_err(|source| ConnectError::Handshake { address, source })
    }
}

/// Waits until the server has let this side in. In TLS 1.3 a client is done before the server has looked at its certificate,
/// and a refusal would break the first call instead, which then could not tell why. An HTTP/2 server begins with a frame of its
/// own (RFC 9113, section 3.4). A proxy may hold it back until the client speaks; so it is waited for, for a short while, and
/// whatever comes later is the call's to see.
async fn admitted(mut stream: TlsStream<TcpStream>) -> io::Result<TlsStream<TcpStream>> {
    match tokio::time::timeout(FIRST_FRAME, stream.fill_buf()).await {
        Ok(Ok([])) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection right after the handshake",
        )),
        Ok(Err(error)) => Err(error),
        // What was read stays in the stream.
        Ok(Ok(_)) | Err(_) => Ok(stream),
    }
}

impl Service<Uri> for TlsConnector {
    type Response = TlsConnection;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TlsConnection, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName { name: name.to_owned() })
}
