//! Requests over one HTTP/2 connection.
//!
//! tonic's own channel puts a queue and a task between a call and the connection, so that it can reconnect and limit. Here
//! both are done elsewhere ([`crate::connection`], [`crate::endpoint`]), and a call hands its request to hyper itself: one
//! task less to wake on the way there (docs/performance.md).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower::Service;

use crate::config::Address;
use crate::gathering::Gathering;

/// A ping is sent when nothing was received for this long.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A connection whose ping is not answered for this long is dead.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Large tensors should not wait for window updates.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Large answers in fewer pieces than the 16 KiB that HTTP/2 begins with; small ones of other calls still get between them.
const FRAME: u32 = 256 * 1024;

/// An HTTP/2 connection that is established. It is never made anew.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    sender: SendRequest<Body>,
    scheme: Scheme,
    authority: Authority,
}

impl Channel {
    /// Begins HTTP/2 over a socket that is connected and, where needed, encrypted.
    pub(crate) async fn open<S>(socket: S, address: &Address) -> Result<Self, Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let parts = address.uri().clone().into_parts();
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .handshake(TokioIo::new(Gathering::new(socket)))
            .await?;
        tokio::spawn(async move {
            // The calls that were out are told too.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
        Ok(Self {
            sender,
            scheme: parts.scheme.unwrap_or(Scheme::HTTP),
            authority: parts.authority.ok_or("the address has no host")?,
        })
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Always: that the connection is gone is told by `call`, with the cause.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        const AGENT: HeaderValue = HeaderValue::from_static(concat!("medkg/", env!("CARGO_PKG_VERSION")));
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // Scheme, authority and the path of a method make a URI; otherwise the server refuses what it gets.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        request.headers_mut().insert(USER_AGENT, AGENT);
        Box::pin(self.sender.send_request(request))
    }
}
