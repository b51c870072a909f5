//! The status of the device, told again whenever it changes.
//!
//! Opening the call and waiting for the first status is one request of the attempt loop, with all its policies. From then
//! on the watch is of that one server: it ends when the server stops, and a connection that breaks is an error. It is not
//! opened anew behind the caller's back, because what comes then could be another server's. A task of the runtime keeps
//! the call going; closing the watch ends the task and cancels the call.

use std::sync::Arc;

use medkg_proto::v1;
use tokio::sync::{Mutex, mpsc};
use tonic::{Request, Response, Status, Streaming};

use super::{GpuClient, GpuStatus, Stub, plain};
use crate::call::{Call, CallOptions, Caller, Method};
use crate::connection::AttemptError;
use crate::error::ClientError;

const WATCH: Method = Method {
    name: "WatchStatus",
    idempotent: true,
};
/// Once the first status is there.
const UNDER_WAY: Method = Method {
    idempotent: false,
    ..WATCH
};

impl GpuClient {
    /// Begins to watch the status. `options.timeout` is for the first one; the watch itself has no end of its own. Must
    /// run inside the runtime.
    pub fn watch_status(&self, options: &CallOptions) -> Result<StatusWatch, ClientError> {
        let call = self.caller.begin(WATCH, options)?;
        // One that is taken lets one more be read: what a slow reader leaves stays with the server.
        let (told, statuses) = mpsc::channel(1);
        Ok(StatusWatch {
            statuses: Mutex::new(statuses),
            driver: tokio::spawn(drive(Arc::clone(&self.caller), call, told)),
        })
    }
}

/// The status now, and again whenever it changes. Can be shared; dropping it cancels the call.
#[derive(Debug)]
pub struct StatusWatch {
    statuses: Mutex<mpsc::Receiver<Result<GpuStatus, ClientError>>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for StatusWatch {
    fn drop(&mut self) {
        self.close();
    }
}

impl StatusWatch {
    /// Waits for the next status. None once the server has stopped, an error was told, or the watch was closed. Giving up
    /// waiting loses nothing.
    pub async fn next(&self) -> Option<Result<GpuStatus, ClientError>> {
        self.statuses.lock().await.recv().await
    }

    /// Cancels the call; whoever waits for a status is told that there is none.
    pub fn close(&self) {
        self.driver.abort();
    }
}

type Told = mpsc::Sender<Result<GpuStatus, ClientError>>;

async fn drive(caller: Arc<Caller>, call: Call, told: Told) {
    if let Err(error) = follow(&caller, &call, &told).await {
        // Nobody listens any more: nobody is to be told.
        let _ = told.send(Err(error)).await;
    }
}

/// Tells every status until the server ends the call or nobody listens.
async fn follow(caller: &Caller, call: &Call, told: &Told) -> Result<(), ClientError> {
    let opened = caller.attempts(call, caller.progress(call), || v1::WatchStatusRequest {}, open);
    let (answer, place) = opened.await?;
    let (mut status, mut answers) = answer.message;
    loop {
        if told.send(Ok(plain(status))).await.is_err() {
            return Ok(());
        }
        status = match answers.message().await {
            Ok(Some(message)) => message.status.unwrap_or_default(),
            Ok(None) => return Ok(()),
            Err(broken) => {
                let mut call = call.clone();
                call.method = UNDER_WAY;
                let mut progress = caller.progress(&call);
                let interrupted = caller.interrupted(&call, &mut progress, place, AttemptError::Status(broken));
                return interrupted.await;
            }
        };
    }
}

/// Opens the call and waits for the first status.
async fn open(
    channel: crate::channel::Channel,
    mut request: Request<v1::WatchStatusRequest>,
) -> Result<(v1::GetStatusResponse, Streaming<v1::WatchStatusResponse>), Status> {
    // The time is that of the first status, and the call goes on after it.
    request.metadata_mut().remove("grpc-timeout");
    let mut answers = Stub::new(channel)
        .watch_status(request)
        .await
        .map(Response::into_inner)?;
    let first = answers.message().await?;
    let first = first.ok_or_else(|| Status::internal("the server ended the watch before it told the status"))?;
    Ok((first.status.unwrap_or_default(), answers))
}
