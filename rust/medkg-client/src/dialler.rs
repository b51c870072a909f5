//! Where connections come from: TCP, or whatever a test puts in its place.

use std::fmt;
use std::io;
use std::pin::Pin;

use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};

/// Something to speak HTTP/2 over.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A socket that is being connected.
pub type Dialled = Pin<Box<dyn Future<Output = io::Result<Box<dyn Socket>>> + Send>>;

/// Makes connections in place of TCP: a network that is simulated. There is no TLS over it.
pub trait Dialler: fmt::Debug + Send + Sync {
    /// Connects to the host and port of an address.
    fn dial(&self, address: &Uri) -> Dialled;
}
