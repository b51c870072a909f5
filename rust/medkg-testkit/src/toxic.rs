//! A TCP proxy that breaks connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::thread::RuntimeThread;

/// What a [`Toxic`] does to its connections, those that are open included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Passes everything through.
    None,
    /// Nobody listens: new connections are refused, open ones reset.
    Refuse,
    /// Accepts, and passes nothing on in either direction; what is held back flows once the fault is gone.
    Blackhole,
    /// Resets a connection after so many bytes from the server, counted from when it was opened.
    ResetAfter(usize),
    /// Holds each piece back for so long, in both directions.
    Delay(Duration),
}

/// A TCP proxy on 127.0.0.1 in front of a real server.
pub struct Toxic {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    _thread: RuntimeThread,
}

impl Toxic {
    /// Starts on a free port, without a fault.
    pub fn start(upstream: SocketAddr) -> Self {
        let (fault, seen) = watch::channel(Fault::None);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (thread, address) = RuntimeThread::start(any, move |listener| proxy(listener, upstream, seen));
        Self {
            address,
            fault,
            _thread: thread,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as `http://127.0.0.1:PORT`.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn proxy(listener: TcpListener, upstream: SocketAddr, mut fault: watch::Receiver<Fault>) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    loop {
        let refuse = *fault.borrow_and_update() == Fault::Refuse;
        listener = match listener {
            Some(_) if refuse => None,
            None if !refuse => Some(TcpListener::bind(address).await.unwrap()),
            other => other,
        };
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await.unwrap().0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = fault.changed() => if changed.is_err() { return },
            socket = accept => drop(tokio::spawn(connection(socket, upstream, fault.clone()))),
        }
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, fault: watch::Receiver<Fault>) -> io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let reset = tokio::select! {
        end = pump(from_client, to_server, fault.clone(), false) => end,
        end = pump(from_server, to_client, fault, true) => end,
    };
    drop(reset);
    Ok(())
}

/// Passes bytes on until one side closes. A socket that is to be reset comes back with linger zero; dropping it does it.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
    from_server: bool,
) -> io::Result<()> {
    let reset = |from: &OwnedReadHalf, to: &OwnedWriteHalf| {
        let client: &TcpStream = if from_server { to.as_ref() } else { from.as_ref() };
        client.set_zero_linger()
    };
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        if *fault.borrow_and_update() == Fault::Refuse {
            return reset(&from, &to);
        }
        let read = tokio::select! {
            changed = fault.changed() => if changed.is_err() { return Ok(()) } else { continue },
            read = from.read(&mut buffer) => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        while *fault.borrow_and_update() == Fault::Blackhole {
            if fault.changed().await.is_err() {
                return Ok(());
            }
        }
        let now = *fault.borrow_and_update();
        match now {
            Fault::Refuse => return reset(&from, &to),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::ResetAfter(limit) if from_server && passed + read >= limit => {
                to.write_all(&buffer[..limit.saturating_sub(passed)]).await?;
                return reset(&from, &to);
            }
            Fault::None | Fault::Blackhole | Fault::ResetAfter(_) => {}
        }
        to.write_all(&buffer[..read]).await?;
        passed += read;
    }
}
