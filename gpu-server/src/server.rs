//! Builds the server out of its roles, serves, and drains.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use medkg_registry::{Keeper, Registry, RegistryConfig};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, watch};
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::config::{DeviceChoice, ServerConfig, TlsFiles};
use crate::device::fault::FaultLatch;
use crate::device::{self, ActiveDevice};
use crate::engine::{Engine, follow};
use crate::error::Error;
use crate::index::Collections;
use crate::inflight::{Calls, InFlight};
use crate::lingering::Lingering;
use crate::metrics;
use crate::service::admittance::{Admittance, Admitted};
use crate::service::health::{Reporter, Truth};
use crate::service::routes::{admin_routes, routes};
use crate::shutdown;

/// How long a client may take to prove who it is.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// How long connections may take to close at the end.
const CLOSE: Duration = Duration::from_secs(2);
/// Calls of one connection that their callers may drop before they are begun; more of them end the connection.
///
/// h2 takes 20 for an attack. A group of asyncio's tasks that is cancelled drops hundreds at once, and would end the calls
/// of all others on the connection. Each costs its headers for a moment.
const DROPPED_AT_ONCE: usize = 4096;
/// How long the forward pass that runs at the end may take.
const WORKER_STOP: Duration = Duration::from_secs(20);
/// How long a driver may take to say whether there is a GPU; a host with many of them needs a minute.
const PROBE: Duration = Duration::from_secs(180);

/// Why the server could not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {error}; stop what listens there or choose another {flag}")]
    Bind {
        /// Which one.
        flag: &'static str,
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The identity cannot be used.
    #[error("{0}")]
    Tls(#[from] medkg_tls::TlsError),
    /// The GPU is required, and cannot be used.
    #[error("{0}; it is required at the start (--require-gpu-at-start)")]
    NoGpu(Error),
    /// The GPU is gone; only a new process can use it again.
    #[error("{0}")]
    Lost(Error),
    /// The engine could not be started.
    #[error("{0}")]
    Engine(#[from] Error),
    /// The listener broke.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The signal handler could not be installed.
    #[error("signals cannot be handled: {0}")]
    Signals(std::io::Error),
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`ServeError`], before or while serving.
pub async fn serve(config: ServerConfig) -> Result<(), ServeError> {
    let signals = shutdown::Signals::install().map_err(ServeError::Signals)?;
    let tls = identity(&config)?;
    let device = if config.require_gpu {
        // Nothing is bound without it: an orchestrator sees no port that opens and closes.
        Some(Ok(probed(config.device).await.map_err(ServeError::NoGpu)?))
    } else {
        None
    };
    // Bound first: a port in use must be told before models are loaded for a minute.
    let bound = Bound::new(signals, tls, &config).await?;

    let device = match device {
        Some(device) => device,
        None => probed(config.device).await,
    };
    Box::pin(bound.serve(config, device)).await
}

/// A socket that listens, and where.
type Listening = (TcpListener, SocketAddr);

/// What a process has before it knows its device.
struct Bound {
    signals: shutdown::Signals,
    tls: Option<medkg_tls::ServerTlsConfig>,
    everyone: Listening,
    operators: Option<Listening>,
    scrapers: Option<Listening>,
}

impl Bound {
    /// Binds what is configured.
    async fn new(
        signals: shutdown::Signals,
        tls: Option<medkg_tls::ServerTlsConfig>,
        config: &ServerConfig,
    ) -> Result<Self, ServeError> {
        let optional =
            |flag, address: Option<SocketAddr>| OptionFuture::from(address.map(|address| bind(flag, address)));
        Ok(Self {
            signals,
            tls,
            everyone: bind("--listen", config.listen).await?,
            operators: optional("--admin-listen", config.admin_listen).await.transpose()?,
            scrapers: optional("--metrics-listen", config.metrics_listen).await.transpose()?,
        })
    }

    /// Serves with this device, or says why there is none.
    async fn serve(self, config: ServerConfig, device: Result<ActiveDevice, Error>) -> Result<(), ServeError> {
        let Self {
            mut signals,
            tls,
            everyone,
            operators,
            scrapers,
        } = self;
        match &device {
            Ok(active) => tracing::info!(device = %active.id, "{}", active.detail),
            Err(error) => {
                tracing::error!(%error, "not serving: every call is refused until the server is restarted where a GPU is");
            }
        }
        let port = everyone.1.port();
        let engine = Engine::start(&config, device)?;
        let (stop, stopping) = watch::channel(false);
        let collections = Arc::new(OnceCell::new());
        let (alarm, collections_changed) = watch::channel(0);
        let (reporter, health) = Reporter::new();
        let truth = Truth {
            engine: Arc::clone(&engine),
            collections: Arc::clone(&collections),
            roles: config.roles.iter().copied().collect(),
            stopping: stopping.clone(),
        };
        // Before the first connection: "" starts as SERVING in tonic-health.
        truth.publish(&reporter).await;
        tokio::spawn(truth.clone().follow(reporter.clone(), collections_changed));
        if let Some(root) = config.data_dir.clone() {
            tokio::spawn(open_collections(
                root,
                Arc::clone(&engine),
                Arc::clone(&collections),
                alarm,
            ));
        }

        if let Some((file, listed)) = config.models_file.clone() {
            tokio::spawn(follow::follow(Arc::clone(&engine.models), file, listed));
        }

        let door = Door {
            tls,
            names: config.production,
            age: config.connection_age,
            calls: Calls::default(),
            open: Calls::default(),
            stopping: stopping.clone(),
        };
        let (calls, open) = (door.calls.clone(), door.open.clone());
        let for_operators = admin_routes(&config, &engine, &collections, health.operators);
        let for_scrapers = metrics::routes(&config, &engine, &collections, door.tls.clone());
        let for_everyone = routes(&config, &engine, &collections, &stopping, health.everyone);
        let serving = async {
            // The last line tells those who wait for it that everything listens.
            tokio::try_join!(
                door.serve(operators, "operators are served on", for_operators, Callers::Operators),
                door.serve(scrapers, "metrics are served on", for_scrapers, Callers::Scrapers),
                door.serve(Some(everyone), "listening on", for_everyone, Callers::Everyone),
            )
            .map(drop)
        };
        tokio::pin!(serving);
        let keeper = config.registry.clone().map(|registered| keep(registered, port));
        let keeper = keeper.transpose()?;
        let lost = tokio::select! {
            ended = &mut serving => return Ok(ended?),
            signal = signals.next() => {
                tracing::info!(signal, "stopping: health says so, running calls are finished");
                None
            }
            fault = lost(&engine.latch, config.lost_grace) => Some(fault),
        };
        // Beside the drain: a registry that does not answer must not hold it up.
        let leaving = keeper.map(|keeper| tokio::spawn(keeper.leave()));
        let _ = stop.send(true);
        truth.publish(&reporter).await;
        let last_answer = async {
            // A health Watch never ends by itself. Once no call is left the watches are ended, so that the connections can
            // flush what they hold and close, which ends `serving`.
            calls.none_left().await;
            reporter.end_watches(&truth.roles).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = &mut serving => {}
            () = last_answer => {}
            // What waited for the device has its answer already.
            () = tokio::time::sleep(if lost.is_some() { CLOSE } else { config.drain_deadline }) => {
                tracing::warn!(left = calls.count(), "the drain deadline passed; calls that still run are cut off");
            }
            signal = signals.next() => tracing::warn!(signal, "second signal: stopping now"),
        }
        // What was handed to the sockets must also arrive.
        let _ = tokio::time::timeout(CLOSE, open.none_left()).await;
        if let Some(leaving) = leaving {
            let _ = tokio::time::timeout(CLOSE, leaving).await;
        }
        // A lane may hang with its device: nobody waits long for it.
        end(engine, &collections, if lost.is_some() { CLOSE } else { WORKER_STOP }).await;
        lost.map_or(Ok(()), |fault| Err(ServeError::Lost(fault)))
    }
}

/// Ends what computes and what stores, once nobody calls any more.
async fn end(engine: Arc<Engine>, collections: &OnceCell<Result<Collections, Error>>, bound: Duration) {
    if let Some(neighbours) = &engine.neighbours {
        neighbours.leave().await;
    }
    let ending = tokio::task::spawn_blocking(move || engine.stop(bound));
    if !ending.await.unwrap_or(false) {
        tracing::warn!("a lane did not stop in time");
    }
    if let Some(Ok(collections)) = collections.get() {
        collections.close();
    }
    tracing::info!("stopped");
}

/// Says in the registry that this server is there. Port 0 of the advertised address stands for the one that was taken.
fn keep((registry, server): (RegistryConfig, medkg_registry::Server), port: u16) -> Result<Keeper, ServeError> {
    let registry = Registry::new(registry).map_err(Error::internal)?;
    let address = match server.address.strip_suffix(":0") {
        Some(host) => format!("{host}:{port}"),
        None => server.address,
    };
    let server = medkg_registry::Server { address, ..server };
    Ok(Keeper::begin(Arc::new(registry), server, medkg_registry::LEASE))
}

/// What the probe says; that it says nothing is an answer too.
async fn probed(choice: DeviceChoice) -> Result<ActiveDevice, Error> {
    let probing = tokio::task::spawn_blocking(move || device::probe(choice));
    match tokio::time::timeout(PROBE, probing).await {
        Ok(probed) => probed.map_err(Error::internal)?,
        Err(_) => Err(Error::GpuUnavailable {
            detail: format!("the NVIDIA driver has not answered for {PROBE:?}"),
        }),
    }
}

/// Waits for the loss of a GPU that was there, and until it has been told for `grace`.
async fn lost(latch: &FaultLatch, grace: Duration) -> Error {
    let fault = latch.wait().await;
    if matches!(fault, Error::GpuUnavailable { .. }) {
        // There was none: this process is there to say so.
        std::future::pending::<()>().await;
    }
    tracing::error!(%fault, ?grace, "every call is refused, and the process exits soon: start it again");
    tokio::time::sleep(grace).await;
    fault
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |error| ServeError::Bind { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// What all addresses of the process share.
struct Door {
    tls: Option<medkg_tls::ServerTlsConfig>,
    /// Whether client certificates must say whose they are.
    names: bool,
    /// How long connections live.
    age: Option<Duration>,
    /// Calls in work.
    calls: Calls,
    /// Open connections.
    open: Calls,
    stopping: watch::Receiver<bool>,
}

/// For whom an address is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Callers {
    Everyone,
    Operators,
    Scrapers,
}

impl Door {
    /// Serves on one address, if there is one, until the process is to stop and every connection is closed.
    async fn serve(
        &self,
        listening: Option<Listening>,
        what: &str,
        routes: Routes,
        callers: Callers,
    ) -> Result<(), tonic::transport::Error> {
        let Some((listener, address)) = listening else {
            return Ok(());
        };
        tracing::info!(%address, tls = self.tls.is_some(), "{what} {address}");
        let calls = self.calls.clone();
        let admittance = Admittance {
            tenants: callers == Callers::Everyone,
            names: self.names,
        };
        let mut transport = Server::builder()
            // Scrapers speak HTTP/1.1 where there is no TLS to agree on HTTP/2.
            .accept_http1(callers == Callers::Scrapers)
            .layer(tower::layer::layer_fn(move |inner| Admitted::new(inner, admittance)))
            .layer(tower::layer::layer_fn(move |inner| InFlight::new(inner, calls.clone())))
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .http2_max_pending_accept_reset_streams(Some(DROPPED_AT_ONCE))
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .tcp_nodelay(true);
        if let Some(age) = self.age {
            // Without tonic's grace: with one it cuts connections off, calls included, and never asks clients to leave.
            transport = transport.max_connection_age(age);
        }
        let transport = transport.add_routes(routes);
        let mut stopping = self.stopping.clone();
        let until_stopped = async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        match &self.tls {
            None => {
                let connections = shutdown::plain(listener, self.open.clone(), self.age);
                transport.serve_with_incoming_shutdown(connections, until_stopped).await
            }
            Some(tls) => {
                let (open, age) = (self.open.clone(), self.age);
                let connections = tls.incoming(listener, TLS_HANDSHAKE);
                let connections =
                    connections.map(move |stream| stream.map(|stream| Lingering::new(stream, &open, age)));
                transport.serve_with_incoming_shutdown(connections, until_stopped).await
            }
        }
    }
}

/// Puts the collections on the device, beside the models, and says how it ended.
async fn open_collections(
    root: PathBuf,
    engine: Arc<Engine>,
    cell: Arc<OnceCell<Result<Collections, Error>>>,
    alarm: watch::Sender<u64>,
) {
    let opened = Collections::open(&root, engine, alarm.clone()).await;
    let error = opened.as_ref().err().cloned();
    // This task alone sets the cell, and nobody may be left to hear of it.
    let _ = cell.set(opened);
    alarm.send_modify(|count| *count += 1);
    match error {
        None => tracing::info!("vector collections ready"),
        Some(error) => tracing::error!(%error, "the vector role is not served"),
    }
}

/// The server's TLS identity, read before anything is bound.
fn identity(config: &ServerConfig) -> Result<Option<medkg_tls::ServerTlsConfig>, medkg_tls::TlsError> {
    let read = |files: &TlsFiles| {
        medkg_tls::ServerTlsConfig::try_new(&files.certificate, &files.key, files.client_ca.as_deref())
    };
    config.tls.as_ref().map(read).transpose()
}

#[cfg(test)]
#[path = "service/lost_tests.rs"]
mod tests;
