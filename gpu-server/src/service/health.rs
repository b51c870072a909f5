//! grpc.health.v1 that tells the truth: a role is SERVING while its device computes and its models answer (see
//! `Registry::serves`), and the whole server ("") while every role of it is.
//!
//! Collections that are not served have names of their own, `medkg.v1.VectorService/TENANT/COLLECTION`, on the address of
//! operators alone: whoever may ask for one would else learn what other tenants have. Everybody may ask for [`COLLECTIONS`],
//! which is SERVING while all of them are served. The role stays SERVING: the other collections answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use medkg_proto::v1::embedding_service_server::SERVICE_NAME as EMBEDDING;
use medkg_proto::v1::gpu_service_server::SERVICE_NAME as GPU;
use medkg_proto::v1::reranking_service_server::SERVICE_NAME as RERANKING;
use medkg_proto::v1::vector_service_server::SERVICE_NAME as VECTOR;
use tokio::sync::{OnceCell, watch};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::config::Role;
use crate::engine::Engine;
use crate::engine::models::Purpose;
use crate::error::Error;
use crate::index::Collections;

/// Whether every collection is served.
const COLLECTIONS: &str = "medkg.v1.VectorService/collections";

/// Where health is written to.
#[derive(Debug, Clone)]
pub struct Reporter {
    everyone: HealthReporter,
    operators: HealthReporter,
    /// The collections that operators were told of.
    told: Arc<Mutex<BTreeSet<String>>>,
}

/// The services that answer what a [`Reporter`] was told.
#[derive(Debug)]
pub struct Services<H, O> {
    /// For the address of all callers.
    pub everyone: H,
    /// For the address of operators.
    pub operators: O,
}

impl Reporter {
    /// With the services that answer.
    pub fn new() -> (Self, Services<HealthServer<impl Health>, HealthServer<impl Health>>) {
        let ((everyone, for_everyone), (operators, for_operators)) = (health_reporter(), health_reporter());
        let services = Services {
            everyone: for_everyone,
            operators: for_operators,
        };
        let reporter = Self {
            everyone,
            operators,
            told: Arc::default(),
        };
        (reporter, services)
    }

    async fn tell(&self, name: &str, serving: bool) {
        for reporter in [&self.everyone, &self.operators] {
            reporter.set_service_status(name, status(serving)).await;
        }
    }

    /// Tells operators of the collections that are not served, and no longer of those that are served again or gone.
    async fn tell_refused(&self, now: BTreeSet<String>) {
        let before = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *told, now.clone())
        };
        let mut operators = self.operators.clone();
        for name in before.difference(&now) {
            operators.clear_service_status(name).await;
        }
        for name in now {
            operators.set_service_status(name, ServingStatus::NotServing).await;
        }
    }

    /// Ends every open Watch.
    pub async fn end_watches(&self, roles: &[Role]) {
        self.tell_refused(BTreeSet::new()).await;
        let names = roles.iter().map(|&role| name(role)).chain(["", COLLECTIONS]);
        for service in names {
            for reporter in [&self.everyone, &self.operators] {
                reporter.clone().clear_service_status(service).await;
            }
        }
    }
}

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
    pub async fn publish(&self, reporter: &Reporter) {
        let mut all = true;
        for &role in &self.roles {
            let serving = self.serving(role);
            all &= serving;
            reporter.tell(name(role), serving).await;
        }
        if self.roles.contains(&Role::Vector) {
            let opened = self.collections.get().and_then(|opened| opened.as_ref().ok());
            let refused = opened.map(Collections::refused).unwrap_or_default();
            let fine = self.serving(Role::Vector) && refused.is_empty();
            reporter.tell(COLLECTIONS, fine).await;
            let name = |(tenant, collection)| format!("{VECTOR}/{tenant}/{collection}");
            reporter.tell_refused(refused.into_iter().map(name).collect()).await;
        }
        reporter.tell("", all).await;
    }

    /// Publishes whenever something changes, until the task is dropped.
    pub async fn follow(mut self, reporter: Reporter, mut collections_changed: watch::Receiver<u64>) {
        let mut models = self.engine.models.changed();
        let latch = self.engine.latch.clone();
        let mut faulty = latch.fault().is_some();
        loop {
            self.publish(&reporter).await;
            tokio::select! {
                Ok(()) = models.changed() => {}
                Ok(()) = collections_changed.changed() => {}
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
