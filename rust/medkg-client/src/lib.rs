//! The resilient gRPC client of medkg.
//!
//! A [`Client`] gives one client object per service. Every call goes through the same attempt loop (`call`): one
//! deadline, retries with jittered back-off inside a budget, a circuit breaker per endpoint, the next endpoint where one
//! fails, tenant and trace on every attempt, and one table of errors ([`policy::classify`]). Large inputs are split and
//! put together in order (`batching`).
//!
//! A fault of the network is worked around; a fault of the GPU is handed to the caller at once and is never retried,
//! rerouted or counted by a breaker.
//!
//! The client knows no Python, no HTTP API and no tensor library, starts no runtime and holds no global state: what
//! clients share they share through an [`Endpoints`] registry that the caller owns.

#![forbid(unsafe_code)]

mod balance;
mod batching;
pub mod cache;
mod call;
mod channel;
pub mod config;
mod connection;
pub mod dialler;
mod discovery;
mod endpoint;
pub mod error;
mod gathering;
pub mod inbox;
mod members;
pub mod policy;
pub mod service;
mod silence;
pub mod survey;

use std::sync::Arc;
use std::time::Instant;

pub use call::CallOptions;
pub use config::{ClientConfig, ClientOptions, ConfigError};
pub use endpoint::{EndpointStatus, Endpoints};
pub use error::ClientError;
use policy::budget::RetryBudget;
pub use policy::classify::{ErrorKind, Service};
use service::embedding::EmbeddingClient;
use service::gpu::GpuClient;
pub use service::health::Serving;
use service::reranking::RerankingClient;
use service::vector::VectorClient;

use crate::call::Caller;

/// The services of one configuration. Cheap to clone.
///
/// Calls must run inside a tokio runtime with time and I/O enabled, and always the same one: connections live in it.
#[derive(Debug, Clone)]
pub struct Client {
    embedding: EmbeddingClient,
    reranking: RerankingClient,
    vector: VectorClient,
    gpu: GpuClient,
}

impl Client {
    /// Nothing is dialled until the first call. The error is a TLS file that cannot be used.
    pub fn new(config: ClientConfig, endpoints: &Endpoints) -> Result<Self, ConfigError> {
        let problem = config::Problem {
            field: "retry_budget".to_owned(),
            description: "cannot be used".to_owned(),
        };
        let budget = RetryBudget::try_new(config.retry_budget, Instant::now());
        let budget = Arc::new(budget.ok_or_else(|| ConfigError {
            problems: vec![problem],
        })?);
        let config = Arc::new(config);
        let caller = |service| Caller::new(service, Arc::clone(&config), Arc::clone(&budget), endpoints).map(Arc::new);
        Ok(Self {
            embedding: EmbeddingClient::new(
                caller(Service::Embedding)?,
                config.cache.as_ref().map(|cache| endpoints.cache(cache)),
            ),
            reranking: RerankingClient::new(caller(Service::Reranking)?),
            vector: VectorClient::new(caller(Service::Vector)?),
            gpu: GpuClient::new(caller(Service::Gpu)?),
        })
    }

    /// What is known of a service's servers, in the order of the configuration. Those that are found by name or in a
    /// registry are known after the first call.
    pub fn endpoints(&self, service: Service) -> Vec<EndpointStatus> {
        self.caller(service).endpoints()
    }

    /// Closes the breaker of one of a service's addresses, or of all; how many were not closed.
    ///
    /// # Errors
    /// An address that the service does not have.
    pub fn reset_breakers(&self, service: Service, address: Option<&str>) -> Result<usize, ClientError> {
        self.caller(service).reset_breakers(address)
    }

    fn caller(&self, service: Service) -> &Caller {
        match service {
            Service::Embedding => self.embedding.caller(),
            Service::Reranking => self.reranking.caller(),
            Service::Vector => self.vector.caller(),
            Service::Gpu => self.gpu.caller(),
        }
    }

    /// Texts to vectors.
    pub fn embedding(&self) -> &EmbeddingClient {
        &self.embedding
    }

    /// Query-document pairs to scores.
    pub fn reranking(&self) -> &RerankingClient {
        &self.reranking
    }

    /// Vector search.
    pub fn vector(&self) -> &VectorClient {
        &self.vector
    }

    /// The device.
    pub fn gpu(&self) -> &GpuClient {
        &self.gpu
    }
}
