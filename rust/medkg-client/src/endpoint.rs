//! A server address with what the client knows of it: its connection, its breaker, its load, its last failure.
//!
//! An endpoint belongs to the address, not to a service or a client object: every client in the process that uses the
//! address with the same settings shares the endpoint through an [`Endpoints`] registry, so a host that failed for one
//! is known to all. Which endpoint takes a call is decided here too: of those whose breaker lets calls through, the one
//! with the fewest calls in flight, those not yet tried by the call first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use medkg_tls::ClientTlsConfig;

use crate::cache::{Cache, CacheConfig};
use crate::config::{Address, ConfigError, EndpointConfig, Problem, TlsOptions};
use crate::connection::Connection;
use crate::policy::breaker::{Breaker, BreakerState, Permit};

/// A server address with what the client knows of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) connection: Connection,
    breaker: Breaker,
    pending: AtomicUsize,
    last_failure: Mutex<Option<String>>,
}

impl Endpoint {
    pub(crate) fn breaker_state(&self, now: Instant) -> BreakerState {
        self.breaker.state(now)
    }

    /// Lets an attempt through, unless the breaker is in the way.
    pub(crate) fn admit(&self, now: Instant) -> Option<Permit> {
        self.breaker.admit(now).ok()
    }

    fn status(&self, now: Instant) -> EndpointStatus {
        let changes = self.breaker.changes();
        EndpointStatus {
            address: self.address.as_str().to_owned(),
            breaker: self.breaker.state(now),
            retry_after: self.breaker.refuses(now).map(|refused| refused.retry_after),
            changes: changes
                .iter()
                .map(|change| (now.saturating_duration_since(change.at), change.state))
                .collect(),
            pending: self.pending.load(Ordering::Relaxed),
            last_failure: self.last_failure(),
        }
    }

    pub(crate) fn note_failure(&self, what: &str) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }

    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a client knows of a server's address; clients of a process share it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// As it was configured.
    pub address: String,
    /// What its breaker does.
    pub breaker: BreakerState,
    /// When the breaker lets a call through again; none if it does.
    pub retry_after: Option<Duration>,
    /// How long ago its breaker changed, and to what; the newest last.
    pub changes: Vec<(Duration, BreakerState)>,
    /// Calls that are out.
    pub pending: usize,
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
    /// In the pool.
    pub(crate) index: usize,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Place {
    fn new(index: usize, endpoint: Arc<Endpoint>) -> Self {
        endpoint.pending.fetch_add(1, Ordering::Relaxed);
        Self { index, endpoint }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllOpen {
    /// Which endpoint lets a call through first.
    pub(crate) index: usize,
    /// When that is.
    pub(crate) retry_after: Duration,
}

/// Interchangeable endpoints.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    turn: AtomicUsize,
}

impl Pool {
    /// `endpoints` has at least one element.
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self {
            endpoints,
            turn: AtomicUsize::new(0),
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Endpoint> {
        self.endpoints.get(index).map(AsRef::as_ref)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| endpoint.address.as_str())
    }

    /// What is known of each.
    pub(crate) fn statuses(&self, now: Instant) -> Vec<EndpointStatus> {
        self.endpoints.iter().map(|endpoint| endpoint.status(now)).collect()
    }

    /// Closes the breakers of an address, or of all; how many were not closed. None if there is no such address.
    pub(crate) fn reset(&self, address: Option<&str>, now: Instant) -> Option<usize> {
        let named = |endpoint: &&Arc<Endpoint>| address.is_none_or(|address| endpoint.address.as_str() == address);
        let mut found = self.endpoints.iter().filter(named).peekable();
        found.peek()?;
        Some(found.filter(|endpoint| endpoint.breaker.reset(now)).count())
    }

    /// True if an endpoint that is not in `tried` would take a call.
    pub(crate) fn has_untried(&self, tried: &[usize], now: Instant) -> bool {
        let mut untried = self
            .endpoints
            .iter()
            .enumerate()
            .filter(|(index, _)| !tried.contains(index));
        untried.any(|(_, endpoint)| endpoint.breaker.refuses(now).is_none())
    }

    /// True if no endpoint's breaker is closed, so that at most one call at a time gets through.
    pub(crate) fn none_is_closed(&self, now: Instant) -> bool {
        let mut endpoints = self.endpoints.iter();
        endpoints.all(|endpoint| endpoint.breaker_state(now) != BreakerState::Closed)
    }

    /// The endpoint for the next attempt of a call that has made attempts at `tried`.
    pub(crate) fn pick(&self, tried: &[usize], now: Instant) -> Result<Admitted, AllOpen> {
        let count = self.endpoints.len().max(1);
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        let mut order: Vec<usize> = (0..self.endpoints.len()).collect();
        // Equals take turns, so that idle endpoints share the load.
        order.sort_by_key(|index| {
            let pending = self.endpoints[*index].pending.load(Ordering::Relaxed);
            (tried.contains(index), pending, (index + count - start) % count)
        });
        let mut soonest = AllOpen {
            index: 0,
            retry_after: Duration::MAX,
        };
        for index in order {
            let endpoint = &self.endpoints[index];
            match endpoint.breaker.admit(now) {
                Ok(permit) => {
                    let place = Place::new(index, Arc::clone(endpoint));
                    return Ok(Admitted { place, permit });
                }
                Err(refused) if refused.retry_after < soonest.retry_after => {
                    soonest = AllOpen {
                        index,
                        retry_after: refused.retry_after,
                    };
                }
                Err(_) => {}
            }
        }
        Err(soonest)
    }
}

/// The endpoints of a process. Clients that are made with the same registry share connections and breakers.
///
/// Connections belong to the process and to the tokio runtime that made them: after a fork, make a new registry and
/// forget the old one without dropping it.
#[derive(Debug, Default)]
pub struct Endpoints {
    known: Mutex<HashMap<(Address, EndpointConfig), Weak<Endpoint>>>,
    /// Kept when nobody uses them: the next client finds what the last one computed.
    caches: Mutex<HashMap<CacheConfig, Arc<Cache>>>,
}

impl Endpoints {
    /// The cache with these settings, made if there is none.
    pub(crate) fn cache(&self, config: &CacheConfig) -> Arc<Cache> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = caches
            .entry(config.clone())
            .or_insert_with(|| Arc::new(Cache::new(config)));
        Arc::clone(cache)
    }

    /// The endpoint of an address, made if nobody uses it yet. TLS files are read when it is made.
    pub(crate) fn get(&self, address: &Address, config: &EndpointConfig) -> Result<Arc<Endpoint>, ConfigError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.clone(), config.clone());
        if let Some(endpoint) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(endpoint);
        }
        let tls = match (&config.tls, address.is_tls()) {
            (Some(options), true) => Some(load(options)?),
            _ => None,
        };
        let endpoint = Arc::new(Endpoint {
            address: address.clone(),
            connection: Connection::new(address.clone(), config.connect_timeout, tls),
            breaker: Breaker::new(config.breaker),
            pending: AtomicUsize::new(0),
            last_failure: Mutex::default(),
        });
        known.retain(|_, endpoint| endpoint.strong_count() > 0);
        known.insert(key, Arc::downgrade(&endpoint));
        Ok(endpoint)
    }
}

fn load(options: &TlsOptions) -> Result<ClientTlsConfig, ConfigError> {
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
    ClientTlsConfig::try_new(ca, identity, options.server_name.as_deref()).map_err(|error| problem(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientConfig, ClientOptions};
    use crate::policy::breaker::Outcome;
    use crate::policy::classify::Service;

    fn pool(count: u16) -> Pool {
        let addresses = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
        let options = ClientOptions {
            addresses: Some(addresses),
            breaker_failures: Some(1),
            ..ClientOptions::default()
        };
        let config = ClientConfig::try_new(&options).unwrap();
        let registry = Endpoints::default();
        let endpoints = config.addresses(Service::Embedding).iter();
        Pool::new(
            endpoints
                .map(|address| registry.get(address, &config.endpoint).unwrap())
                .collect(),
        )
    }

    fn open(pool: &Pool, index: usize, now: Instant) {
        pool.endpoints[index]
            .breaker
            .admit(now)
            .unwrap()
            .report(now, Outcome::Failure);
    }

    // requirement: isolation 13.1
    #[test]
    fn clients_of_a_process_share_endpoints() {
        let config = ClientConfig::try_new(&ClientOptions::default()).unwrap();
        let registry = Endpoints::default();
        let address = &config.addresses(Service::Gpu)[0];
        let first = registry.get(address, &config.endpoint).unwrap();
        assert!(Arc::ptr_eq(&first, &registry.get(address, &config.endpoint).unwrap()));
        let mut other = config.endpoint.clone();
        other.connect_timeout *= 2;
        assert!(
            !Arc::ptr_eq(&first, &registry.get(address, &other).unwrap()),
            "other settings, other endpoint"
        );
    }

    #[test]
    fn an_endpoint_that_nobody_uses_is_let_go() {
        let config = ClientConfig::try_new(&ClientOptions::default()).unwrap();
        let registry = Endpoints::default();
        let weak = Arc::downgrade(
            &registry
                .get(&config.addresses(Service::Gpu)[0], &config.endpoint)
                .unwrap(),
        );
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn the_endpoint_with_the_fewest_calls_in_flight_is_next() {
        let (pool, now) = (pool(3), Instant::now());
        let mut held: Vec<_> = (0..9).map(|_| pool.pick(&[], now).unwrap()).collect();
        for index in 0..3 {
            assert_eq!(held.iter().filter(|admitted| admitted.place.index == index).count(), 3);
        }
        let free = held.iter().position(|admitted| admitted.place.index == 1).unwrap();
        drop(held.remove(free));
        assert_eq!(pool.pick(&[], now).unwrap().place.index, 1);
    }

    #[test]
    fn idle_endpoints_take_turns() {
        let (pool, now) = (pool(3), Instant::now());
        let mut seen: Vec<_> = (0..3).map(|_| pool.pick(&[], now).unwrap().place.index).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    }

    // requirement: isolation 5.4
    #[test]
    fn an_open_breaker_moves_the_load_and_all_open_ones_say_how_long() {
        let (pool, now) = (pool(2), Instant::now());
        open(&pool, 0, now);
        for _ in 0..10 {
            assert_eq!(pool.pick(&[], now).unwrap().place.index, 1);
        }
        assert!(!pool.has_untried(&[1], now));
        open(&pool, 1, now + Duration::from_secs(1));
        let refused = pool.pick(&[], now + Duration::from_secs(2)).unwrap_err();
        assert_eq!(
            refused,
            AllOpen {
                index: 0,
                retry_after: Duration::from_secs(3)
            }
        );
    }

    #[test]
    fn a_retry_goes_where_the_call_has_not_been() {
        let (pool, now) = (pool(3), Instant::now());
        for _ in 0..6 {
            assert_eq!(pool.pick(&[0, 2], now).unwrap().place.index, 1);
        }
        assert!(pool.has_untried(&[0, 2], now));
        assert!(!pool.has_untried(&[0, 1, 2], now));
    }
}
