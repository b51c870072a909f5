//! `grpc.health.v1`: whether an endpoint says that it serves (<https://grpc.io/docs/guides/health-checking/>).
//!
//! A watch runs over a connection that calls have made; it never dials. So a server that is down is not asked by a crowd
//! of watchers, and one that nobody calls is left alone. Where there is no connection, or the server has no health
//! service, nothing is known, and calls go there as to any other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::channel::Channel;
use crate::policy::classify::Service;

/// A watch that ended on a connection that still stands is begun anew after this time.
const PAUSE: Duration = Duration::from_secs(1);

/// What an endpoint says of one of its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Serving {
    /// It was not asked, or does not say.
    #[default]
    Unknown,
    /// It serves.
    Yes,
    /// It does not: it starts, it drains, or its GPU is gone.
    No,
}

impl Serving {
    /// `unknown`, `serving` or `not_serving`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Yes => "serving",
            Self::No => "not_serving",
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Said {
    serving: Serving,
    /// When it began to serve after it did not.
    back: Option<Instant>,
    /// Which watch says so: the newest; what an older one says at its end is out of date.
    watch: u64,
}

/// What an endpoint says of each of its services.
#[derive(Debug, Default)]
pub(crate) struct Health {
    said: Mutex<[Said; Service::ALL.len()]>,
}

impl Health {
    fn begin(self: &Arc<Self>, service: Service) -> Noting {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let of = &mut said[service as usize];
        of.watch += 1;
        Noting {
            health: Arc::clone(self),
            service,
            watch: of.watch,
        }
    }

    fn note(&self, service: Service, watch: u64, serving: Serving) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let of = &mut said[service as usize];
        if of.watch != watch {
            return;
        }
        if of.serving == Serving::No && serving == Serving::Yes {
            of.back = Some(tokio::time::Instant::now().into_std());
        }
        of.serving = serving;
    }

    pub(crate) fn of(&self, service: Service) -> Serving {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)[service as usize].serving
    }

    /// When it began to serve after it did not.
    pub(crate) fn back(&self, service: Service) -> Option<Instant> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)[service as usize].back
    }
}

/// The watches over one connection; they end with this.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    tasks: Mutex<[Option<AbortHandle>; Service::ALL.len()]>,
}

impl Watches {
    /// Begins to watch a service, unless that was begun.
    pub(crate) fn begin(&self, service: Service, channel: &Channel, health: &Arc<Health>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks[service as usize].get_or_insert_with(|| {
            let watching = watch(channel.clone(), health.begin(service));
            tokio::spawn(watching).abort_handle()
        });
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.iter().flatten() {
            task.abort();
        }
    }
}

/// Writes down what is said, and forgets it when the watch ends, in whichever way.
struct Noting {
    health: Arc<Health>,
    service: Service,
    watch: u64,
}

impl Noting {
    fn note(&self, serving: Serving) {
        self.health.note(self.service, self.watch, serving);
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.note(Serving::Unknown);
    }
}

async fn watch(channel: Channel, noting: Noting) {
    loop {
        let ended = match open(channel.clone(), noting.service).await {
            Ok(answers) => follow(answers, &noting).await,
            Err(status) => status,
        };
        noting.note(Serving::Unknown);
        // With a source it was made by the transport: the connection is gone.
        if ended.code() == Code::Unimplemented || std::error::Error::source(&ended).is_some() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn request(service: Service) -> HealthCheckRequest {
    HealthCheckRequest {
        service: format!("medkg.v1.{}", service.name()),
    }
}

async fn open(channel: Channel, service: Service) -> Result<Streaming<HealthCheckResponse>, Status> {
    Ok(HealthClient::new(channel).watch(request(service)).await?.into_inner())
}

/// Asks once.
pub(crate) async fn check(channel: Channel, service: Service) -> Result<Serving, Status> {
    let answer = HealthClient::new(channel).check(request(service)).await?;
    Ok(read(answer.into_inner().status()))
}

fn read(status: ServingStatus) -> Serving {
    match status {
        ServingStatus::Serving => Serving::Yes,
        ServingStatus::NotServing => Serving::No,
        // A server that does not know the service may answer its calls all the same.
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => Serving::Unknown,
    }
}

async fn follow(mut answers: Streaming<HealthCheckResponse>, noting: &Noting) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(answer)) => noting.note(read(answer.status())),
            Ok(None) => return Status::cancelled("the watch ended"),
            Err(status) => return status,
        }
    }
}
