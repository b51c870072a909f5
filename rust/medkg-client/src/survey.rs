//! Which servers there are and how they are: what the registry lists, and what each says of its health when it is asked.

use std::sync::Arc;
use std::time::Duration;

use medkg_registry::{Keeper, LEASE, Registry, Server};

use crate::call::Caller;
use crate::endpoint::EndpointStatus;
use crate::error::ClientError;
use crate::policy::classify::Service;
use crate::{Client, Endpoints};

pub use medkg_registry::{Keeper as Registration, RegistryError, Server as RegisteredServer};

/// The registry of a client's configuration.
#[derive(Debug, Clone)]
pub struct Registered {
    registry: Arc<Registry>,
}

impl Registered {
    /// None if the configuration names no registry.
    pub fn of(client: &Client, endpoints: &Endpoints) -> Option<Result<Self, String>> {
        let config = client.caller(Service::Embedding).config.registry.as_ref()?;
        Some(endpoints.finder().registry(config).map(|registry| Self { registry }))
    }

    /// Every server that is there, in the order of the addresses.
    ///
    /// # Errors
    /// [`RegistryError::Redis`].
    pub async fn servers(&self) -> Result<Vec<Server>, RegistryError> {
        self.registry.servers().await
    }

    /// Registers a server that does not do so itself, and says again and again that it is there until the keeper leaves. The
    /// lease is 15 seconds if none is given.
    ///
    /// # Errors
    /// [`RegistryError::Redis`]: nothing is kept then.
    pub async fn register(&self, server: Server, lease: Option<Duration>) -> Result<Keeper, RegistryError> {
        let lease = lease.unwrap_or(LEASE);
        self.registry.register(&server, lease).await?;
        Ok(Keeper::begin(Arc::clone(&self.registry), server, lease))
    }

    /// Takes a server out; true if it was there. One that is alive and registers itself comes back within its lease.
    ///
    /// # Errors
    /// [`RegistryError::Redis`].
    pub async fn deregister(&self, address: &str) -> Result<bool, RegistryError> {
        self.registry.deregister(address).await
    }
}

impl Client {
    /// What is known of a service's servers, each of which is asked how it is. One that does not answer within `patience` is
    /// listed with why.
    ///
    /// # Errors
    /// No server was found, or several where there must be one.
    pub async fn survey(&self, service: Service, patience: Duration) -> Result<Vec<EndpointStatus>, ClientError> {
        self.caller(service).survey(patience).await
    }
}

impl Caller {
    async fn survey(&self, patience: Duration) -> Result<Vec<EndpointStatus>, ClientError> {
        let ready = self.pool.ready(patience).await;
        ready.map_err(|nobody| self.nobody("Check", nobody))?;
        Ok(self.pool.survey(patience).await)
    }
}
