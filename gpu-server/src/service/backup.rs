//! `BackupService`: collections are copied and put back at an operator's word, on the address for operators. Each call leaves one
//! line in the log that says who asked for what and how it ended.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt as _};
use medkg_proto::v1;
use medkg_proto::v1::backup_service_server::BackupService;
use medkg_telemetry::tenant::TenantId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::call::Call;
use super::vector::{self, Vectors};
use super::{call, status};
use crate::error::Error;
use crate::index::backup::{Backups, How, Progress, Selection, Summary, Tell};

/// Messages that wait for the caller; more progress than that is left out.
const WAITING: usize = 8;

/// The backups of this process.
#[derive(Debug, Clone)]
pub struct Backup {
    vectors: Vectors,
    /// None without --backup-root.
    backups: Option<Arc<Backups>>,
}

/// What a call is about.
#[derive(Debug, Clone)]
struct Asked {
    action: &'static str,
    name: String,
    wanted: Selection,
}

type Step<M> = fn(Result<v1::BackupSummary, v1::BackupProgress>) -> M;
type Steps<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl Backup {
    /// Backups of the collections that `vectors` serves, below `root`.
    pub fn new(vectors: Vectors, root: Option<PathBuf>) -> Self {
        let backups = root.map(|root| Arc::new(Backups::new(root)));
        Self { vectors, backups }
    }

    fn backups(&self) -> Result<Arc<Backups>, Error> {
        let problem = "cannot be made or read: this server was started without --backup-root";
        let backups = self.backups.as_ref().map(Arc::clone);
        backups.ok_or_else(|| Error::invalid("name", problem))
    }

    /// Answers with the progress of `work` and what it returns. It runs in a task of its own: a collection that is being
    /// exchanged is not left between two states when the caller leaves.
    fn serve<M, F>(
        metadata: &MetadataMap,
        method: &'static str,
        asked: Result<Asked, Error>,
        step: Step<M>,
        work: impl FnOnce(Asked, Tell) -> F,
    ) -> Result<Response<Steps<M>>, Status>
    where
        M: Send + 'static,
        F: Future<Output = Result<Summary, Error>> + Send + 'static,
    {
        let call = Call::read(metadata, method)?;
        let started = Instant::now();
        let asked = asked.map_err(|error| {
            call.span.in_scope(|| call::finish(started, Some(&error)));
            status::from_error(&error)
        })?;
        let (sender, answers) = mpsc::channel(WAITING);
        let progress = sender.clone();
        let deadline = call.deadline;
        let tell: Tell = Arc::new(move |told: Progress| {
            if progress.is_closed() {
                return Err(Error::CallerLeft);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::DeadlineExpired);
            }
            // A slow caller misses some of it.
            let _ = progress.try_send(Ok(step(Err(shown(told)))));
            Ok(())
        });
        let running = work(asked.clone(), tell);
        let task = async move {
            let outcome = running.await;
            audit(&asked, outcome.as_ref());
            call::finish(started, outcome.as_ref().err());
            let last = match outcome {
                Ok(summary) => Ok(step(Ok(told(&asked.name, summary)))),
                Err(error) => Err(status::from_error(&error)),
            };
            // Nobody is there to hear it, if this fails.
            let _ = sender.send(last).await;
        };
        tokio::spawn(task.instrument(call.span));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }
}

/// Checks the names of a request: they become parts of paths.
fn asked(action: &'static str, name: String, tenant: String, collection: String) -> Result<Asked, Error> {
    vector::name("name", &name)?;
    if !tenant.is_empty() {
        TenantId::try_new(&tenant).map_err(|error| Error::invalid("tenant", error.to_string()))?;
    }
    if !collection.is_empty() {
        vector::name("collection", &collection)?;
        if tenant.is_empty() {
            return Err(Error::invalid("collection", "needs the tenant that it belongs to"));
        }
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Asked {
        action,
        name,
        wanted: Selection {
            tenant: some(tenant),
            collection: some(collection),
        },
    })
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn shown(progress: Progress) -> v1::BackupProgress {
    v1::BackupProgress {
        tenant: progress.tenant,
        collection: progress.collection,
        bytes: progress.bytes,
        done: progress.done,
        finished: narrow(progress.finished),
        collections: narrow(progress.collections),
    }
}

fn told(name: &str, summary: Summary) -> v1::BackupSummary {
    v1::BackupSummary {
        name: name.to_owned(),
        collections: narrow(summary.collections),
        points: summary.points,
        bytes: summary.bytes,
        damaged: summary.damaged,
    }
}

/// One line per call; tenant and request id of the operator stand in it because the call's span is open.
fn audit(asked: &Asked, outcome: Result<&Summary, &Error>) {
    let Asked { action, name, wanted } = asked;
    let of_tenant = wanted.tenant.as_deref().unwrap_or("*");
    let collection = wanted.collection.as_deref().unwrap_or("*");
    match outcome {
        Ok(summary) => tracing::info!(
            audit = true,
            action,
            backup = name,
            of_tenant,
            collection,
            collections = summary.collections,
            points = summary.points,
            bytes = summary.bytes,
            damaged = summary.damaged.len(),
            outcome = "done",
            "backups changed"
        ),
        Err(error) => tracing::warn!(
            audit = true,
            action,
            backup = name,
            of_tenant,
            collection,
            outcome = "failed",
            %error,
            "a backup or a restore failed"
        ),
    }
}

#[tonic::async_trait]
impl BackupService for Backup {
    type CreateBackupStream = Steps<v1::CreateBackupResponse>;
    type RestoreBackupStream = Steps<v1::RestoreBackupResponse>;

    async fn create_backup(
        &self,
        request: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        use v1::create_backup_response::Step;
        let (metadata, _, request) = request.into_parts();
        let asked = asked("CreateBackup", request.name, request.tenant, request.collection);
        let step = |step: Result<_, _>| v1::CreateBackupResponse {
            step: Some(step.map_or_else(Step::Progress, Step::Summary)),
        };
        let own = self.clone();
        Self::serve(
            &metadata,
            "BackupService/CreateBackup",
            asked,
            step,
            |asked, tell| async move {
                let collections = own.vectors.collections()?;
                own.backups()?
                    .create(collections, &asked.name, &asked.wanted, tell)
                    .await
            },
        )
    }

    async fn restore_backup(
        &self,
        request: Request<v1::RestoreBackupRequest>,
    ) -> Result<Response<Self::RestoreBackupStream>, Status> {
        use v1::restore_backup_response::Step;
        let (metadata, _, request) = request.into_parts();
        let how = How {
            replace: request.replace,
            check_only: request.check_only,
        };
        let action = if how.check_only { "CheckBackup" } else { "RestoreBackup" };
        let asked = asked(action, request.name, request.tenant, request.collection);
        let step = |step: Result<_, _>| v1::RestoreBackupResponse {
            step: Some(step.map_or_else(Step::Progress, Step::Summary)),
        };
        let own = self.clone();
        Self::serve(
            &metadata,
            "BackupService/RestoreBackup",
            asked,
            step,
            |asked, tell| async move {
                let collections = own.vectors.collections()?;
                let backups = own.backups()?;
                backups
                    .restore(collections, &asked.name, &asked.wanted, how, tell)
                    .await
            },
        )
    }
}
