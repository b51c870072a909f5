//! Signals that stop the server, one that must not, and the plain listener.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;

use crate::inflight::Calls;
use crate::lingering::Lingering;

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A file that may not grow any more is an error of its write; by itself the signal would end the process.
    _too_large: Signal,
}

impl Signals {
    /// From here on they no longer end the process by themselves.
    ///
    /// # Errors
    /// What the system says.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _too_large: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// Waits for the next one; its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Connections without TLS. One that fails while it is accepted (the client is gone, no file descriptor is left) is
/// skipped: it must not end the server. Each is ended at `age`.
pub fn plain(
    listener: TcpListener,
    open: Calls,
    age: Option<Duration>,
) -> impl tokio_stream::Stream<Item = std::io::Result<Lingering<TcpStream>>> {
    TcpListenerStream::new(listener).filter_map(move |accepted| match accepted {
        Ok(stream) => {
            // Only a hint to the kernel; a connection without it works too.
            let _ = stream.set_nodelay(true);
            Some(Ok(Lingering::new(stream, &open, age)))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    })
}
