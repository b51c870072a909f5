//! grpc.health.v1 that tells the truth: a role is SERVING while its device computes and its models answer (see
//! `Registry::serves`), and the whole server ("") while every role of it is.

use std::sync::Arc;

use medkg_proto::v1::embedding_service_server::SERVICE_NAME as EMBEDDING;
use medkg_proto::v1::gpu_service_server::SERVICE_NAME as GPU;
use medkg_proto::v1::reranking_service_server::SERVICE_NAME as RERANKING;
use medkg_proto::v1::vector_service_server::SERVICE_NAME as VECTOR;
use tokio::sync::{OnceCell, watch};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::Role;
use crate::engine::Engine;
use crate::engine::models::Purpose;
use crate::error::Error;
use crate::index::Collections;

/// What health is read from.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Device and models.
    pub engine: Arc<Engine>,
    /// There once the collections are on the device.
    pub collections: Arc<OnceCell<Result<Collections, Error>>>,
    /// The roles of this process.
    pub roles: Vec<Role>,
    /// True once the server is told to stop.
    pub stopping: watch::Receiver<bool>,
}

impl Truth {
    fn serving(&self, role: Role) -> bool {
        !*self.stopping.borrow()
            && self.engine.check().is_ok()
            && match role {
                Role::Gpu => true,
                Role::Embedding => self.engine.models.serves(Purpose::Embedding),
                Role::Reranking => self.engine.models.serves(Purpose::Reranking),
                Role::Vector => self.collections.get().is_some_and(Result::is_ok),
            }
    }

    /// Writes the truth into `reporter`.
    pub async fn publish(&self, reporter: &HealthReporter) {
        let mut all = true;
        for &role in &self.roles {
            let serving = self.serving(role);
            all &= serving;
            reporter.set_service_status(name(role), status(serving)).await;
        }
        reporter.set_service_status("", status(all)).await;
    }

    /// Ends every open Watch.
    pub async fn end_watches(&self, reporter: &HealthReporter) {
        let mut reporter = reporter.clone();
        for &role in &self.roles {
            reporter.clear_service_status(name(role)).await;
        }
        reporter.clear_service_status("").await;
    }

    /// Publishes whenever something changes, until the task is dropped. `collections_ready` changes once.
    pub async fn follow(mut self, reporter: HealthReporter, mut collections_ready: watch::Receiver<bool>) {
        let mut models = self.engine.models.changed();
        let latch = self.engine.latch.clone();
        let mut faulty = latch.fault().is_some();
        loop {
            self.publish(&reporter).await;
            tokio::select! {
                Ok(()) = models.changed() => {}
                Ok(()) = collections_ready.changed() => {}
                Ok(()) = self.stopping.changed() => {}
                _ = latch.wait(), if !faulty => faulty = true,
                else => return,
            }
        }
    }
}

const fn status(serving: bool) -> ServingStatus {
    if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

const fn name(role: Role) -> &'static str {
    match role {
        Role::Gpu => GPU,
        Role::Embedding => EMBEDDING,
        Role::Reranking => RERANKING,
        Role::Vector => VECTOR,
    }
}
