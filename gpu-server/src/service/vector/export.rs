//! A collection streamed out whole: one moment of it, part by part, as fast as the caller takes them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use medkg_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use tracing::Instrument as _;

use super::{Vectors, describe, sparse};
use crate::error::Error;
use crate::index::Handle;
use crate::index::store::scan::{Part, Scan};
use crate::service::call::{self, Call};
use crate::service::status;

/// A message of about 4 MiB: large enough to be quick, small beside what a message may have.
const PART: Scan = Scan {
    payloads: true,
    sparse: true,
    part_bytes: 4 * 1024 * 1024,
    part_points: 16_384,
};
/// Parts that wait for the caller.
const WAITING: usize = 2;
/// Exports at once; each holds a thread and a transaction.
const AT_ONCE: usize = 4;
/// How long a caller may take for one part. Until then the file keeps what the export still needs.
const STALLED: Duration = Duration::from_secs(120);

/// What `ExportVectors` answers with.
pub type Exported = Pin<Box<dyn Stream<Item = Result<v1::ExportVectorsResponse, Status>> + Send>>;

/// Lets a bounded number of exports run.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    fn take(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| Error::QueueFull {
            waiting: format!("{AT_ONCE} exports"),
            retry_after: Duration::from_secs(5),
        })
    }
}

impl Vectors {
    pub(super) fn export(
        &self,
        metadata: &MetadataMap,
        request: &v1::ExportVectorsRequest,
    ) -> Result<Response<Exported>, Status> {
        let call = Call::read(metadata, "VectorService/ExportVectors")?;
        let started = Instant::now();
        let begun = self.begin_export(call.tenant.as_str(), &request.collection);
        let (handle, turn) = begun.map_err(|error| {
            call.span.in_scope(|| call::finish(started, Some(&error)));
            status::from_error(&error)
        })?;
        let (sender, answers) = mpsc::channel(WAITING);
        let deadline = call.deadline;
        let parts = sender.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read(&handle, deadline, &parts)
        });
        let task = async move {
            let outcome = reading.await.map_err(Error::internal).and_then(|outcome| outcome);
            call::finish(started, outcome.as_ref().err());
            if let Err(error) = outcome {
                // A caller that left hears nothing.
                let _ = sender.send(Err(status::from_error(&error))).await;
            }
        };
        tokio::spawn(task.instrument(call.span));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    fn begin_export(&self, tenant: &str, name: &str) -> Result<(Handle, OwnedSemaphorePermit), Error> {
        let handle = self.collections()?.get(tenant, name)?;
        handle.open()?;
        Ok((handle, self.exports.take()?))
    }
}

type Parts = mpsc::Sender<Result<v1::ExportVectorsResponse, Status>>;

fn read(handle: &Handle, deadline: Option<Instant>, parts: &Parts) -> Result<(), Error> {
    let collection = handle.open()?;
    let runtime = tokio::runtime::Handle::current();
    let send = |answer| {
        let bound = Instant::now() + STALLED;
        let bound = deadline.map_or(bound, |deadline| deadline.min(bound));
        let sent = runtime.block_on(tokio::time::timeout_at(bound.into(), parts.send(Ok(answer))));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::CallerLeft),
            Err(_) => Err(Error::DeadlineExpired),
        }
    };
    let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let dimension = narrow(collection.properties.dimension);
    let has_sparse = collection.properties.sparse_dimension > 0;
    // What the collection is comes first, also where it has no points; and not before the moment is fixed.
    let first = v1::ExportVectorsResponse {
        collection: Some(describe(handle.name(), collection.properties)),
        ..v1::ExportVectorsResponse::default()
    };
    let begun = || send(first);
    let take = |part: Part| {
        send(v1::ExportVectorsResponse {
            collection: None,
            vectors: Some(v1::Tensor {
                shape: vec![narrow(part.ids.len()), dimension],
                dtype: v1::DataType::F32.into(),
                data: part.vectors.into(),
                scales: Vec::new(),
            }),
            ids: part.ids,
            payloads: part.payloads,
            sparse: has_sparse.then(|| sparse::wire(part.sparse)),
        })
    };
    collection.export(PART, begun, take)
}
