//! Looks targets up. One for a process: name servers and registries are asked over connections that all clients share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use medkg_registry::{Registry, RegistryConfig};

use super::dns;
use crate::config::{Address, Target};
use crate::policy::classify::Service;

/// How long the answer of a registry holds. A server that leaves drains for longer.
const REGISTRY_TTL: Duration = Duration::from_secs(2);

type Found = Result<(Vec<Address>, Duration), String>;

/// Looks targets up.
#[derive(Default)]
pub(crate) struct Finder {
    resolvers: Mutex<HashMap<Option<SocketAddr>, Arc<TokioResolver>>>,
    registries: Mutex<HashMap<RegistryConfig, Arc<Registry>>>,
}

impl std::fmt::Debug for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finder").finish_non_exhaustive()
    }
}

impl Finder {
    /// The servers of a service to which each target leads.
    pub(crate) async fn find(
        &self,
        targets: &[Target],
        service: Service,
        name_server: Option<SocketAddr>,
    ) -> Vec<Found> {
        futures_util::future::join_all(targets.iter().map(|target| async move {
            match target {
                Target::Server(address) => Ok((vec![address.clone()], Duration::MAX)),
                Target::Name(name) => dns::lookup(&*self.resolver(name_server)?, name).await,
                Target::Registry(config) => self.registered(config, service).await,
            }
        }))
        .await
    }

    fn resolver(&self, name_server: Option<SocketAddr>) -> Result<Arc<TokioResolver>, String> {
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = resolvers.get(&name_server) {
            return Ok(Arc::clone(resolver));
        }
        let resolver = Arc::new(dns::resolver(name_server)?);
        resolvers.insert(name_server, Arc::clone(&resolver));
        Ok(resolver)
    }

    /// The registry with these settings.
    pub(crate) fn registry(&self, config: &RegistryConfig) -> Result<Arc<Registry>, String> {
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = registries.get(config) {
            return Ok(Arc::clone(registry));
        }
        let registry = Arc::new(Registry::new(config.clone()).map_err(|error| error.to_string())?);
        registries.insert(config.clone(), Arc::clone(&registry));
        Ok(registry)
    }

    async fn registered(&self, config: &RegistryConfig, service: Service) -> Found {
        let servers = self
            .registry(config)?
            .servers()
            .await
            .map_err(|error| error.to_string())?;
        let serving = servers
            .iter()
            .filter(|server| server.services.iter().any(|name| name == service.noun()));
        let addresses = serving.filter_map(|server| {
            let address = Address::try_new(&server.address);
            address
                .inspect_err(|why| tracing::warn!(why, "a registered server has no usable address; it is left out"))
                .ok()
        });
        Ok((addresses.collect(), REGISTRY_TTL))
    }
}
