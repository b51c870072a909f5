//! Small frames that leave in one piece.
//!
//! hyper lets a request's body follow once its headers are on their way, so a small call would be two writes here, and two
//! reads and two wake-ups for the server. [`Gathering`] keeps what is written until it is flushed, and lets the other
//! tasks of the runtime run once before it flushes: by then the body is there too. What is large goes through as it is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than this is not kept.
const ROOM: usize = 4096;

/// A socket that keeps small writes until they are flushed.
#[derive(Debug)]
pub(crate) struct Gathering<S> {
    socket: S,
    kept: Vec<u8>,
    /// How much of `kept` has been written.
    written: usize,
    /// True once the other tasks have had their turn.
    yielded: bool,
}

impl<S> Gathering<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            kept: Vec::with_capacity(ROOM),
            written: 0,
            yielded: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes what was kept.
    fn poll_let_go(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            let left = &self.kept[self.written..];
            match ready!(Pin::new(&mut self.socket).poll_write(context, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.kept.clear();
        self.written = 0;
        self.yielded = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = data.iter().map(|part| part.len()).sum::<usize>();
        if this.written == 0 && this.kept.len() + length <= ROOM {
            for part in data {
                this.kept.extend_from_slice(part);
            }
            return Poll::Ready(Ok(length));
        }
        ready!(this.poll_let_go(context))?;
        Pin::new(&mut this.socket).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.kept.is_empty() && !this.yielded {
            this.yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_let_go(context))?;
        Pin::new(&mut this.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_let_go(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// What the peer reads in one go.
    async fn read(peer: &mut DuplexStream) -> Vec<u8> {
        let mut data = vec![0; 1 << 16];
        let length = peer.read(&mut data).await.expect("it can be read");
        data.truncate(length);
        data
    }

    #[tokio::test]
    async fn what_another_task_writes_in_its_turn_leaves_with_the_rest() {
        let (near, mut peer) = duplex(1 << 16);
        let mut socket = Gathering::new(near);
        socket.write_all(b"headers ").await.expect("kept");
        let mut flushes = 0;
        std::future::poll_fn(|context| {
            flushes += 1;
            let outcome = Pin::new(&mut socket).poll_flush(context);
            if flushes == 1 {
                assert!(outcome.is_pending(), "the other tasks come first");
                let written = Pin::new(&mut socket).poll_write(context, b"body");
                assert!(matches!(written, Poll::Ready(Ok(4))));
            }
            outcome
        })
        .await
        .expect("it is written");
        assert_eq!(flushes, 2, "woken by itself, and once only");
        assert_eq!(read(&mut peer).await, b"headers body");
    }

    #[tokio::test]
    async fn what_is_kept_leaves_before_the_socket_is_shut() {
        let (near, mut peer) = duplex(1 << 16);
        let mut socket = Gathering::new(near);
        socket.write_all(b"goodbye").await.expect("kept");
        socket.shutdown().await.expect("it is shut");
        assert_eq!(read(&mut peer).await, b"goodbye");
        assert_eq!(read(&mut peer).await, b"");
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_of_the_flush() {
        let (near, peer) = duplex(1 << 16);
        drop(peer);
        let mut socket = Gathering::new(near);
        socket.write_all(b"hello").await.expect("kept");
        let error = socket.flush().await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        /// Nothing is lost, repeated or put in another order, however much is written at once and however little the peer
        /// takes.
        #[test]
        fn everything_arrives_in_order(
            writes in prop::collection::vec((0..2 * ROOM, any::<bool>()), 1..20),
            room in 1..2 * ROOM,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (sent, received) = runtime.block_on(async {
                let (near, mut peer) = duplex(room);
                let reading = tokio::spawn(async move {
                    let mut received = Vec::new();
                    peer.read_to_end(&mut received).await.map(|_| received)
                });
                let mut socket = Gathering::new(near);
                let mut sent = Vec::new();
                for (length, flush) in writes {
                    let part: Vec<u8> = (sent.len()..sent.len() + length).map(|at| at.to_le_bytes()[0]).collect();
                    socket.write_all(&part).await.expect("it is written");
                    sent.extend(part);
                    if flush {
                        socket.flush().await.expect("it is flushed");
                    }
                }
                socket.shutdown().await.expect("it is shut");
                (sent, reading.await.expect("no panic").expect("it can be read"))
            });
            prop_assert_eq!(sent, received);
        }
    }
}
