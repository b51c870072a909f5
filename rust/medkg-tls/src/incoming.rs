//! A listener's connections, each after its handshake.
//!
//! Nothing happens unless the stream is polled, so a server that stops asking stops accepting. Handshakes are tasks of
//! their own: one client that dawdles delays nobody. At most [`MAX_HANDSHAKES`] are under way; beyond that, connections
//! wait in the kernel's queue.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream as Session;
use tonic::transport::server::Connected;

use crate::peer::{PeerIdentity, PeerInfo};
use crate::server::ServerTlsConfig;

/// Handshakes that run at the same time.
const MAX_HANDSHAKES: usize = 256;
/// Wait after the system refused to accept, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections of a listener, each after its handshake. It never ends, and never yields an error: a handshake that fails
/// is logged and forgotten.
#[derive(Debug)]
pub struct TlsIncoming {
    listener: TcpListener,
    config: ServerTlsConfig,
    timeout: Duration,
    handshakes: JoinSet<Option<TlsStream>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl TlsIncoming {
    pub(crate) fn new(listener: TcpListener, config: ServerTlsConfig, timeout: Duration) -> Self {
        Self {
            listener,
            config,
            timeout,
            handshakes: JoinSet::new(),
            pause: None,
        }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if self.handshakes.len() >= MAX_HANDSHAKES {
                // Woken by the next handshake that ends.
                return Poll::Pending;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((socket, remote)) => {
                    let acceptor = TlsAcceptor::from(self.config.rustls());
                    self.handshakes.spawn(handshake(socket, remote, acceptor, self.timeout));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted; trying again shortly");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

async fn handshake(
    socket: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    timeout: Duration,
) -> Option<TlsStream> {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%remote, %error, "TCP_NODELAY could not be set");
    }
    match tokio::time::timeout(timeout, acceptor.accept(socket)).await {
        Ok(Ok(session)) => match TlsStream::new(session) {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::warn!(%remote, %error, "a client's certificate cannot be read; the connection is closed");
                None
            }
        },
        Ok(Err(error)) => {
            tracing::info!(%remote, %error, "TLS handshake refused");
            None
        }
        Err(_) => {
            tracing::info!(%remote, ?timeout, "TLS handshake not finished in time");
            None
        }
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let _ = this.poll_accept(cx);
            match this.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(stream)))) => return Poll::Ready(Some(Ok(stream))),
                // Refused, or its task panicked: there may be room for another connection now.
                Poll::Ready(Some(_)) => {}
                // An empty set is woken by the listener.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct TlsStream {
    session: Session<TcpStream>,
    info: PeerInfo,
}

impl TlsStream {
    fn new(session: Session<TcpStream>) -> Result<Self, x509_cert::der::Error> {
        let (socket, state) = session.get_ref();
        let certificate = state.peer_certificates().and_then(|chain| chain.first());
        let info = PeerInfo {
            remote_addr: socket.peer_addr().ok(),
            local_addr: socket.local_addr().ok(),
            identity: certificate.map(PeerIdentity::of).transpose()?.map(Arc::new),
        };
        Ok(Self { session, info })
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> &PeerInfo {
        &self.info
    }
}

impl Connected for TlsStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().session).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().session).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.session.is_write_vectored()
    }
}
