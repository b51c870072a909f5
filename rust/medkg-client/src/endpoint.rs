//! A server address with what the client knows of it: its connections, its breaker, its load, its health, its last failure.
//!
//! An endpoint belongs to the address, not to a service or a client object: every client in the process that uses the
//! address with the same settings shares the endpoint through an [`Endpoints`] registry, so a host that failed for one
//! is known to all. Which endpoint takes a call is decided in [`crate::balance`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::OptionFuture;
use medkg_tls::ClientTlsConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::{Cache, CacheConfig};
use crate::config::{Address, ConfigError, EndpointConfig, Problem, TlsOptions};
use crate::connection::{AttemptError, Connection, Dialling};
use crate::dialler::Dialler;
use crate::discovery::Finder;
use crate::policy::breaker::{Breaker, BreakerState, Permit, Refused};
use crate::policy::classify::Service;
use crate::policy::load::{DecayingMean, load};
use crate::policy::outlier::Outlier;
use crate::service::health::{Health, Serving, check};

/// Streams that are open on a connection before another one is made: below what servers allow (100 is what RFC 9113 asks
/// them to allow at least), and about what keeps the one thread busy that drives a connection.
const STREAMS: usize = 64;

/// How an endpoint's calls went.
#[derive(Debug, Default)]
struct Record {
    slowness: DecayingMean,
    outlier: Outlier,
    last_failure: Option<String>,
}

/// One of the connections to an address.
#[derive(Debug)]
struct Slot {
    connection: Connection,
    pending: AtomicUsize,
}

/// A server address with what the client knows of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) breaker: Breaker,
    /// Tells endpoints apart, also those of one address.
    id: u64,
    since: Instant,
    slots: Vec<Slot>,
    /// Calls that chose it, those included that wait for a place.
    pending: AtomicUsize,
    places: Arc<Semaphore>,
    record: Mutex<Record>,
    health: Arc<Health>,
}

impl Endpoint {
    fn new(
        address: &Address,
        config: &EndpointConfig,
        tls: Option<ClientTlsConfig>,
        dialler: Option<Arc<dyn Dialler>>,
    ) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let how = Dialling {
            address: address.clone(),
            connect_timeout: config.connect_timeout,
            max_age: config.max_connection_age,
            tls,
            dialler,
        };
        let slot = |_| Slot {
            connection: Connection::new(how.clone()),
            pending: AtomicUsize::new(0),
        };
        Self {
            address: address.clone(),
            breaker: Breaker::new(config.breaker),
            id: IDS.fetch_add(1, Ordering::Relaxed),
            since: tokio::time::Instant::now().into_std(),
            slots: (0..config.max_connections.max(1)).map(slot).collect(),
            pending: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(config.max_pending.min(Semaphore::MAX_PERMITS))),
            record: Mutex::default(),
            health: Arc::default(),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says of a service.
    pub(crate) fn serving(&self, service: Service) -> Serving {
        self.health.of(service)
    }

    /// Asks it from now on what it says of a service, if there is a connection.
    pub(crate) fn watch(&self, service: Service) {
        if let Some(first) = self.slots.first() {
            first.connection.watch(service, &self.health);
        }
    }

    /// What is known of it when it has been asked how it is. Breaker and load are left as they are: this is no call.
    pub(crate) async fn ask(&self, service: Service, patience: Duration) -> EndpointStatus {
        let asked = self
            .slots
            .first()
            .map(|slot| slot.connection.run(None, |channel| check(channel, service)));
        let asked = OptionFuture::from(asked);
        let answer = match tokio::time::timeout(patience, asked).await {
            Ok(Some(Ok(serving))) => Ok(serving),
            Ok(Some(Err(AttemptError::NotConnected { why, .. }))) => Err(why.to_string()),
            Ok(Some(Err(AttemptError::Status(status) | AttemptError::BrokeTogether(status)))) => {
                Err(status.to_string())
            }
            Ok(Some(Err(AttemptError::Elapsed | AttemptError::Silent { .. })) | None) | Err(_) => {
                Err(format!("no answer within {} s", patience.as_secs_f64()))
            }
        };
        let status = self.status(service, tokio::time::Instant::now().into_std());
        match answer {
            Ok(serving) => EndpointStatus { serving, ..status },
            Err(why) => EndpointStatus {
                serving: Serving::Unknown,
                last_failure: Some(why),
                ..status
            },
        }
    }

    /// True while it is set aside because it fails far more often than others.
    pub(crate) fn aside(&self, now: Instant) -> bool {
        self.record().outlier.aside(now)
    }

    /// The share of calls that failed lately.
    pub(crate) fn failure_rate(&self) -> f64 {
        self.record().outlier.rate()
    }

    /// How loaded it is with calls of a service.
    pub(crate) fn load(&self, service: Service, now: Instant) -> f64 {
        let pending = self.pending.load(Ordering::Relaxed);
        let (slowness, back) = {
            let record = self.record();
            (record.slowness.settling(1.0, now), record.outlier.back_since(now))
        };
        let begun = [back, self.breaker.closed_since(), self.health.back(service)];
        let begun = begun.into_iter().flatten().fold(self.since, Instant::max);
        load(pending, slowness, now.saturating_duration_since(begun))
    }

    /// Notes an answer that took `slowness` times as long as such answers usually do.
    pub(crate) fn note_answer(&self, slowness: f64, now: Instant) {
        let mut record = self.record();
        record.slowness.add(slowness, now);
        record.outlier.note(false, 0.0, now);
    }

    /// Notes a failure of the network, where the other endpoints fail at the rate `others`; true if that sets it aside.
    pub(crate) fn note_outlier(&self, others: f64, now: Instant) -> bool {
        self.record().outlier.note(true, others, now)
    }

    pub(crate) fn note_failure(&self, what: &str) {
        self.record().last_failure = Some(what.to_owned());
    }

    pub(crate) fn last_failure(&self) -> Option<String> {
        self.record().last_failure.clone()
    }

    /// Lets an attempt through, unless the breaker is in the way.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Result<Admitted, Refused> {
        let permit = self.breaker.admit(now)?;
        let place = Place::new(Arc::clone(self));
        Ok(Admitted { place, permit })
    }

    /// What is known of it, for a person.
    pub(crate) fn status(&self, service: Service, now: Instant) -> EndpointStatus {
        let changes = self.breaker.changes();
        let (slowness, aside, last_failure) = {
            let record = self.record();
            (
                record.slowness.mean(),
                record.outlier.aside(now),
                record.last_failure.clone(),
            )
        };
        EndpointStatus {
            address: self.address.as_str().to_owned(),
            breaker: self.breaker.state(now),
            retry_after: self.breaker.refuses(now).map(|refused| refused.retry_after),
            changes: changes
                .iter()
                .map(|change| (now.saturating_duration_since(change.at), change.state))
                .collect(),
            opened: self.breaker.opened(),
            pending: self.pending.load(Ordering::Relaxed),
            serving: self.health.of(service),
            aside,
            slowness,
            last_failure,
        }
    }
}

/// What a client knows of a server's address; clients of a process share it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// As it was configured, or found.
    pub address: String,
    /// What its breaker does.
    pub breaker: BreakerState,
    /// When the breaker lets a call through again; none if it does.
    pub retry_after: Option<Duration>,
    /// How long ago its breaker changed, and to what; the newest last.
    pub changes: Vec<(Duration, BreakerState)>,
    /// How often its breaker has opened.
    pub opened: u64,
    /// Calls that are out.
    pub pending: usize,
    /// What it says of the service; it is asked only where there is a choice between several.
    pub serving: Serving,
    /// True while it is set aside because it fails far more often than others.
    pub aside: bool,
    /// How long its answers take, 1.0 being what answers of that method and size take at all endpoints; none before
    /// the first, and where there is only one endpoint.
    pub slowness: Option<f64>,
    /// What went wrong last, if anything did.
    pub last_failure: Option<String>,
}

/// A call that was admitted by an endpoint.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) place: Place,
    pub(crate) permit: Permit,
}

/// Where a call is made; it counts as in flight there until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) endpoint: Arc<Endpoint>,
    slot: usize,
    entered: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.pending.fetch_add(1, Ordering::Relaxed);
        let pending = |slot: &Slot| slot.pending.load(Ordering::Relaxed);
        let slots = || endpoint.slots.iter().enumerate();
        let free = slots().find(|(_, slot)| pending(slot) < STREAMS);
        let chosen = free.or_else(|| slots().min_by_key(|(_, slot)| pending(slot)));
        let slot = chosen.map_or(0, |(index, slot)| {
            slot.pending.fetch_add(1, Ordering::Relaxed);
            index
        });
        Self {
            endpoint,
            slot,
            entered: None,
        }
    }

    /// Waits until fewer calls are out than the endpoint is to have.
    pub(crate) async fn enter(&mut self) {
        if self.entered.is_none() {
            // It is never closed.
            self.entered = Arc::clone(&self.endpoint.places).acquire_owned().await.ok();
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.endpoint.slots[self.slot].connection
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
        self.endpoint.slots[self.slot].pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of a process. Clients that are made with the same registry share connections and breakers.
///
/// Connections belong to the process and to the tokio runtime that made them: after a fork, make a new registry and
/// forget the old one without dropping it.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<HashMap<(Address, EndpointConfig), Weak<Endpoint>>>,
    /// Kept when nobody uses them: the next client finds what the last one computed.
    caches: Mutex<HashMap<CacheConfig, Arc<Cache>>>,
    finder: Finder,
    dialler: Option<Arc<dyn Dialler>>,
}

impl Endpoints {
    /// Connections are made by `dialler` instead of TCP.
    pub fn dialled_by(dialler: Arc<dyn Dialler>) -> Self {
        let shared = Shared {
            dialler: Some(dialler),
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What looks names and registries up.
    pub(crate) fn finder(&self) -> &Finder {
        &self.shared.finder
    }

    /// The cache with these settings, made if there is none.
    pub(crate) fn cache(&self, config: &CacheConfig) -> Arc<Cache> {
        let mut caches = self.shared.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = caches
            .entry(config.clone())
            .or_insert_with(|| Arc::new(Cache::new(config)));
        Arc::clone(cache)
    }

    /// The endpoint of an address, made if nobody uses it yet. TLS files are read when it is made.
    pub(crate) fn get(&self, address: &Address, config: &EndpointConfig) -> Result<Arc<Endpoint>, ConfigError> {
        let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.clone(), config.clone());
        if let Some(endpoint) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(endpoint);
        }
        let tls = match (&config.tls, address.is_tls()) {
            (Some(options), true) => Some(load_tls(options, address)?),
            _ => None,
        };
        let endpoint = Arc::new(Endpoint::new(address, config, tls, self.shared.dialler.clone()));
        known.retain(|_, endpoint| endpoint.strong_count() > 0);
        known.insert(key, Arc::downgrade(&endpoint));
        Ok(endpoint)
    }
}

fn load_tls(options: &TlsOptions, address: &Address) -> Result<ClientTlsConfig, ConfigError> {
    let problem = |description: String| ConfigError {
        problems: vec![Problem {
            field: "tls".to_owned(),
            description,
        }],
    };
    let Some(ca) = &options.ca_file else {
        return Err(problem("has no ca_file".to_owned()));
    };
    let identity = options.cert_file.as_deref().zip(options.key_file.as_deref());
    let name = options.server_name.as_deref().or(address.certified_name());
    ClientTlsConfig::try_new(ca, identity, name).map_err(|error| problem(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientConfig, ClientOptions};

    fn address() -> Address {
        Address::try_new("http://127.0.0.1:7070").unwrap()
    }

    // requirement: isolation 13.1
    #[test]
    fn clients_of_a_process_share_endpoints() {
        let config = ClientConfig::try_new(&ClientOptions::default()).unwrap();
        let registry = Endpoints::default();
        let first = registry.get(&address(), &config.endpoint).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &registry.get(&address(), &config.endpoint).unwrap()
        ));
        let mut other = config.endpoint.clone();
        other.connect_timeout *= 2;
        assert!(
            !Arc::ptr_eq(&first, &registry.get(&address(), &other).unwrap()),
            "other settings, other endpoint"
        );
    }

    #[test]
    fn an_endpoint_that_nobody_uses_is_let_go() {
        let config = ClientConfig::try_new(&ClientOptions::default()).unwrap();
        let registry = Endpoints::default();
        let weak = Arc::downgrade(&registry.get(&address(), &config.endpoint).unwrap());
        assert!(weak.upgrade().is_none());
    }

    fn endpoint(options: &ClientOptions) -> Arc<Endpoint> {
        let config = ClientConfig::try_new(options).unwrap();
        Endpoints::default().get(&address(), &config.endpoint).unwrap()
    }

    #[test]
    fn another_connection_is_used_once_one_is_full_and_the_emptiest_once_all_are() {
        let options = ClientOptions {
            max_connections: Some(2),
            ..ClientOptions::default()
        };
        let (endpoint, now) = (endpoint(&options), Instant::now());
        let mut places: Vec<_> = (0..2 * STREAMS + 2)
            .map(|_| endpoint.admit(now).unwrap().place)
            .collect();
        let on = |places: &[Place], slot| places.iter().filter(|place| place.slot == slot).count();
        assert_eq!((on(&places, 0), on(&places, 1)), (STREAMS + 1, STREAMS + 1));
        places.retain(|place| place.slot == 1);
        assert_eq!(endpoint.admit(now).unwrap().place.slot, 0);
    }

    #[tokio::test]
    async fn no_more_calls_are_out_than_there_are_places() {
        let options = ClientOptions {
            max_pending: Some(2),
            ..ClientOptions::default()
        };
        let (endpoint, now) = (endpoint(&options), Instant::now());
        let mut places: Vec<_> = (0..3).map(|_| endpoint.admit(now).unwrap().place).collect();
        let mut third = places.pop().unwrap();
        for place in &mut places {
            place.enter().await;
        }
        assert_eq!(
            endpoint.status(Service::Gpu, now).pending,
            3,
            "those that wait count as load"
        );
        let waiting = tokio::spawn(async move {
            third.enter().await;
            third
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        places.pop();
        waiting.await.unwrap();
    }
}
