//! The endpoints of a service: those of the configuration, or those that names and registries lead to at the moment.
//!
//! An endpoint that is a member no more is given no new calls; those that are out there end there.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::config::{Address, ClientConfig, ConfigError, Target};
use crate::discovery::{Discovery, Next, held_back};
use crate::endpoint::{Endpoint, Endpoints};
use crate::policy::classify::Service;

/// Where there is no member yet, or what is known is old, a call waits for the answer as long as this at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// There is nobody to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Nobody {
    /// Nobody was found; says where and why.
    Unknown(String),
    /// Several were found where there must be one; says which.
    Several(String),
}

/// The endpoints of a service.
#[derive(Debug)]
pub(crate) struct Members {
    service: Service,
    current: RwLock<Arc<[Arc<Endpoint>]>>,
    source: Option<Arc<Source>>,
}

/// Where members come from that are not fixed.
#[derive(Debug)]
struct Source {
    discovery: Discovery,
    endpoints: Endpoints,
    config: Arc<ClientConfig>,
}

impl Members {
    /// The error is a TLS file that cannot be used.
    pub(crate) fn new(
        service: Service,
        config: &Arc<ClientConfig>,
        endpoints: &Endpoints,
    ) -> Result<Arc<Self>, ConfigError> {
        let targets = config.targets(service);
        let fixed: Option<Vec<&Address>> = targets
            .iter()
            .map(|target| match target {
                Target::Server(address) => Some(address),
                Target::Name(_) | Target::Registry(_) => None,
            })
            .collect();
        let (members, source) = if let Some(addresses) = fixed {
            let members = addresses.into_iter();
            let members = members.map(|address| endpoints.get(address, &config.endpoint));
            (members.collect::<Result<_, _>>()?, None)
        } else {
            let source = Source {
                discovery: Discovery::new(targets.to_vec()),
                endpoints: endpoints.clone(),
                config: Arc::clone(config),
            };
            (Vec::new(), Some(Arc::new(source)))
        };
        Ok(Arc::new(Self {
            service,
            current: RwLock::new(members.into()),
            source,
        }))
    }

    /// Those that are members now.
    pub(crate) fn current(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sees to it that the members are known, and looks them up again where it is time to.
    pub(crate) async fn ready(self: &Arc<Self>, patience: Duration) -> Result<(), Nobody> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        let Next { look, wait } = source.discovery.next(now());
        if look {
            tokio::spawn(Arc::clone(self).look());
        }
        if let Some(mut looks) = wait {
            // Ends also when the look is given up; nobody is left waiting for a sender that is gone.
            let _ = tokio::time::timeout(patience.min(PATIENCE), looks.changed()).await;
        }
        let current = self.current();
        if current.is_empty() {
            let targets: Vec<&str> = source.discovery.targets().iter().map(Target::as_str).collect();
            let why = source.discovery.problem();
            let why = why.unwrap_or_else(|| format!("{}: no answer yet", targets.join(", ")));
            return Err(Nobody::Unknown(why));
        }
        if self.service.has_state() && current.len() > 1 {
            let found: Vec<&str> = current.iter().map(|endpoint| endpoint.address.as_str()).collect();
            return Err(Nobody::Several(found.join(", ")));
        }
        Ok(())
    }

    /// A member failed: it may be a member no more.
    pub(crate) fn suspect(&self) {
        if let Some(source) = &self.source {
            source.discovery.suspect(now());
        }
    }

    async fn look(self: Arc<Self>) {
        let Some(source) = &self.source else { return };
        let mut unfinished = Unfinished(Some(Arc::clone(source)));
        let finder = source.endpoints.finder();
        let found = finder.find(source.discovery.targets(), self.service, source.config.name_server);
        let mut found = found.await;
        if !source.config.allow_plaintext {
            found = found.into_iter().map(|found| found.and_then(held_back)).collect();
        }
        unfinished.0 = None;
        // Under the lock, so that nobody who was waiting sees the members of before.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let Some(addresses) = source.discovery.found(found, now()) else {
            return;
        };
        let members = addresses.iter().filter_map(|address| {
            let endpoint = source.endpoints.get(address, &source.config.endpoint);
            endpoint
                .inspect_err(|error| tracing::warn!(address = address.as_str(), %error, "a server is left out"))
                .ok()
        });
        let members: Arc<[_]> = members.collect();
        let addresses: Vec<&str> = members.iter().map(|endpoint| endpoint.address.as_str()).collect();
        tracing::info!(
            service = self.service.noun(),
            ?addresses,
            "the servers of a service changed"
        );
        *current = members;
    }
}

/// A look that is dropped before its end (the runtime stops) must not keep others from looking.
struct Unfinished(Option<Arc<Source>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(source) = &self.0 {
            source.discovery.given_up();
        }
    }
}

/// The time, also where tests have paused it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
