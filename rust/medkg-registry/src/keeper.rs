//! Keeps a server in the registry for as long as it is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{Registry, Server};

/// So many times within a lease a server says that it is there: one lost answer takes nobody out.
const BEATS: u32 = 3;

/// Says again and again that a server is there, until [`Keeper::leave`]. Where this is dropped, the lease runs out.
#[derive(Debug)]
pub struct Keeper {
    registry: Arc<Registry>,
    address: String,
    stop: watch::Sender<bool>,
    beating: JoinHandle<()>,
}

impl Keeper {
    /// Begins, inside a tokio runtime. Redis need not be there yet: it is asked again.
    pub fn begin(registry: Arc<Registry>, server: Server, lease: Duration) -> Self {
        let (stop, stopping) = watch::channel(false);
        let address = server.address.clone();
        let beating = tokio::spawn(beat(Arc::clone(&registry), server, lease, stopping));
        Self {
            registry,
            address,
            stop,
            beating,
        }
    }

    /// Takes the server out, so that no new calls are sent to it. A Redis that does not answer is left to the lease.
    pub async fn leave(self) {
        let _ = self.stop.send(true);
        // A beat that is under way would put it in again.
        let _ = self.beating.await;
        let address = self.address.as_str();
        match self.registry.deregister(address).await {
            Ok(_) => tracing::info!(address, "left the registry"),
            Err(error) => tracing::warn!(address, %error, "cannot leave the registry; the lease ends it"),
        }
    }
}

async fn beat(registry: Arc<Registry>, server: Server, lease: Duration, mut stopping: watch::Receiver<bool>) {
    let (address, cluster) = (server.address.as_str(), registry.cluster());
    let mut there = None;
    loop {
        let told = registry.register(&server, lease).await;
        match (&told, there) {
            (Ok(()), None | Some(false)) => tracing::info!(address, cluster, "is in the registry"),
            (Err(error), None | Some(true)) => {
                tracing::warn!(address, cluster, %error, "cannot say that this server is there; it is tried again");
            }
            _ => {}
        }
        there = Some(told.is_ok());
        tokio::select! {
            () = tokio::time::sleep(lease / BEATS) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}
