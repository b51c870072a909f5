//! Connections that close without losing what was sent, with TLS or without.
//!
//! Closing a TCP socket while bytes of the peer lie unread resets the connection, and the peer loses what it has not read
//! yet: the end of a large answer during a drain. So a connection is closed for writing first, and read until the peer
//! closes too, for a bounded time (RFC 9112, section 9.6, describes the same for HTTP/1.1).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use medkg_tls::{PeerIdentity, TlsStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::server::Connected;

use crate::inflight::{Calls, Entered};

/// How long a peer may take to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// A connection, for what has to end with it.
#[derive(Debug, Clone)]
pub struct Link {
    /// Unique in this process.
    pub id: u64,
    /// Its sender lives as long as the connection.
    over: watch::Receiver<()>,
    /// From when on this server itself ends it.
    retires: Option<Instant>,
    /// Who is at the other end, where it had to show a certificate.
    pub peer: Option<Arc<PeerIdentity>>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed it, or is gone.
    Died,
    /// It was as old as a connection may be: that says nothing about the peer, which makes another one for its next call.
    Retired,
}

impl Link {
    /// Waits until the connection is over.
    pub async fn ended(&mut self) -> End {
        // Nothing is ever sent.
        while self.over.changed().await.is_ok() {}
        match self.retires {
            Some(retires) if retires <= Instant::now() => End::Retired,
            _ => End::Died,
        }
    }
}

/// A link that is ended by this server once it is as old as `age`, and what ends it when it is dropped.
pub fn link(age: Option<Duration>) -> (Link, watch::Sender<()>) {
    static IDS: AtomicU64 = AtomicU64::new(1);
    let (ends, over) = watch::channel(());
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let retires = age.and_then(|age| Instant::now().checked_add(age));
    let link = Link {
        id,
        over,
        retires,
        peer: None,
    };
    (link, ends)
}

/// What a connection is here: bytes both ways, and who is at the other end.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The names in the peer's certificate, where one is asked for.
    fn identity(&self) -> Option<Arc<PeerIdentity>>;
}

impl Connection for TcpStream {
    fn identity(&self) -> Option<Arc<PeerIdentity>> {
        None
    }
}

impl Connection for TlsStream {
    fn identity(&self) -> Option<Arc<PeerIdentity>> {
        self.peer().identity.clone()
    }
}

/// A connection that is closed whole in the background when it is dropped.
#[derive(Debug)]
pub struct Lingering<S: Connection> {
    /// `None` only while it is dropped.
    stream: Option<(S, Entered)>,
    link: Link,
    _ends: watch::Sender<()>,
}

impl<S: Connection> Lingering<S> {
    /// Counts in `open` until it is closed whole. The server ends it at `age`.
    pub fn new(stream: S, open: &Calls, age: Option<Duration>) -> Self {
        let (mut link, ends) = link(age);
        link.peer = stream.identity();
        Self {
            stream: Some((stream, open.enter())),
            link,
            _ends: ends,
        }
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>> {
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        self.get_mut()
            .stream
            .as_mut()
            .map(|(stream, _)| Pin::new(stream))
            .ok_or_else(closed)
    }
}

impl<S: Connection> Drop for Lingering<S> {
    fn drop(&mut self) {
        let (Some((mut stream, entered)), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            let close = async {
                stream.shutdown().await?;
                let mut unread = [0; 4096];
                while stream.read(&mut unread).await? > 0 {}
                io::Result::Ok(())
            };
            // The peer may be gone or may never close; either way this end is over.
            let _ = tokio::time::timeout(LINGER, close).await;
            drop(entered);
        });
    }
}

impl<S: Connection> Connected for Lingering<S> {
    type ConnectInfo = Link;

    fn connect_info(&self) -> Link {
        self.link.clone()
    }
}

impl<S: Connection> AsyncRead for Lingering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl<S: Connection> AsyncWrite for Lingering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|(stream, _)| stream.is_write_vectored())
    }
}
