//! `gpu-server backup` and `gpu-server restore`: calls to a running server's address for operators, with progress on stderr
//! and a summary on stdout.
//!
//! They use the generated stub as it is: an operator asks once, sees what happens, and decides himself whether to ask again.

use std::io::Write as _;
use std::time::{Duration, Instant};

use medkg_proto::v1;
use medkg_proto::v1::backup_service_client::BackupServiceClient as Stub;
use medkg_telemetry::names::{Reason, TENANT_ID};
use medkg_telemetry::tenant::TenantId;
use medkg_tls::ClientTlsConfig;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::config::operator::{Command, Server, Target};

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// A server that does not answer a ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Progress within a collection is shown as often as this.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// How a command ended: what to write, and the exit code (sysexits, and what a shell says of SIGINT).
#[derive(Debug)]
pub struct Ended {
    /// Lines for stderr.
    pub problem: Option<String>,
    /// For the process.
    pub code: u8,
}

impl Ended {
    const fn well() -> Self {
        Self { problem: None, code: 0 }
    }

    fn badly(code: u8, problem: String) -> Self {
        Self {
            problem: Some(problem),
            code,
        }
    }
}

/// The command line is wrong.
const USAGE: u8 = 64;
/// The backup, or a collection, is damaged.
const DATA: u8 = 65;
/// There is no such backup or collection.
const NO_INPUT: u8 = 66;
/// The server cannot be reached, or its GPU cannot be used.
const UNAVAILABLE: u8 = 69;
/// The server failed.
const SOFTWARE: u8 = 70;
/// It is there already, or the disk is full.
const CANNOT_CREATE: u8 = 73;
/// The server is not ready yet.
const AGAIN: u8 = 75;
/// The operator does not get in.
const NO_PERMISSION: u8 = 77;
/// SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs a command to its end, or until SIGINT.
pub async fn run(command: Command) -> Ended {
    let outcome = tokio::select! {
        outcome = carry_out(command) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Ended::badly(
            INTERRUPTED,
            "interrupted; the server stops: a backup is removed, and collections that were not exchanged yet stay as they are"
                .to_owned(),
        )),
    };
    outcome.unwrap_or_else(|ended| ended)
}

async fn carry_out(command: Command) -> Result<Ended, Ended> {
    match command {
        Command::Backup { server, to, target } => {
            let channel = connect(&server).await?;
            let request = v1::CreateBackupRequest {
                name: to,
                tenant: target.tenant.unwrap_or_default(),
                collection: target.collection.unwrap_or_default(),
            };
            let answers = Stub::new(channel).create_backup(by(&server, request)?).await;
            let read = |answer: v1::CreateBackupResponse| {
                use v1::create_backup_response::Step;
                answer.step.map(|step| match step {
                    Step::Progress(progress) => Err(progress),
                    Step::Summary(summary) => Ok(summary),
                })
            };
            follow(answers, read, "backed up").await
        }
        Command::Restore {
            server,
            from,
            target,
            replace,
            check,
        } => {
            let channel = connect(&server).await?;
            let Target { tenant, collection } = target;
            let request = v1::RestoreBackupRequest {
                name: from,
                tenant: tenant.unwrap_or_default(),
                collection: collection.unwrap_or_default(),
                replace,
                check_only: check,
            };
            let answers = Stub::new(channel).restore_backup(by(&server, request)?).await;
            let read = |answer: v1::RestoreBackupResponse| {
                use v1::restore_backup_response::Step;
                answer.step.map(|step| match step {
                    Step::Progress(progress) => Err(progress),
                    Step::Summary(summary) => Ok(summary),
                })
            };
            follow(answers, read, if check { "checked" } else { "restored" }).await
        }
    }
}

async fn connect(server: &Server) -> Result<Channel, Ended> {
    let wrong = |problem: String| Ended::badly(USAGE, problem);
    let address = &server.admin;
    let endpoint =
        Endpoint::from_shared(address.clone()).map_err(|error| wrong(format!("--admin {address}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let secure = address.starts_with("https://");
    if !secure && !address.starts_with("http://") {
        return Err(wrong(format!("--admin {address}: must begin with http:// or https://")));
    }
    let connected = match (&server.tls_ca, secure) {
        (None, false) => endpoint.connect().await,
        (None, true) => {
            return Err(wrong(
                "--tls-ca: https:// needs the roots of the server's certificate".to_owned(),
            ));
        }
        (Some(_), false) => return Err(wrong("--tls-ca: give --admin an https:// address".to_owned())),
        (Some(ca), true) => {
            let identity = server.tls_cert.as_deref().zip(server.tls_key.as_deref());
            let tls = ClientTlsConfig::try_new(ca, identity, server.tls_server_name.as_deref());
            let tls = tls.map_err(|error| wrong(error.to_string()))?;
            endpoint.connect_with_connector(tls.connector()).await
        }
    };
    connected.map_err(|error| {
        let cause = std::iter::successors(std::error::Error::source(&error), |error| error.source()).last();
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        Ended::badly(UNAVAILABLE, format!("{address} cannot be reached: {cause}"))
    })
}

/// A request in the name of an operator.
fn by<M>(server: &Server, message: M) -> Result<Request<M>, Ended> {
    let wrong = |problem: String| Ended::badly(USAGE, format!("--operator: {problem}"));
    let operator = TenantId::try_new(&server.operator).map_err(|error| wrong(error.to_string()))?;
    let value = operator
        .as_str()
        .parse()
        .map_err(|_| wrong("cannot be sent".to_owned()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(TENANT_ID, value);
    Ok(request)
}

type Read<M> = fn(M) -> Option<Result<v1::BackupSummary, v1::BackupProgress>>;

/// Shows progress until the summary comes.
async fn follow<M>(
    answers: Result<tonic::Response<Streaming<M>>, Status>,
    read: Read<M>,
    done: &str,
) -> Result<Ended, Ended> {
    let mut answers = answers.map_err(|status| refused(&status))?.into_inner();
    let mut shown: Option<Instant> = None;
    while let Some(answer) = answers.message().await.map_err(|status| refused(&status))? {
        match read(answer) {
            Some(Err(progress)) if progress.done || shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY) => {
                show(&progress);
                shown = Some(Instant::now());
            }
            Some(Err(_)) | None => {}
            Some(Ok(summary)) => return Ok(summarise(&summary, done)),
        }
    }
    Err(Ended::badly(
        SOFTWARE,
        "the server ended the call without a summary".to_owned(),
    ))
}

fn show(progress: &v1::BackupProgress) {
    let v1::BackupProgress {
        tenant,
        collection,
        bytes,
        finished,
        collections,
        ..
    } = progress;
    let state = if progress.done { "done" } else { "running" };
    // A closed stderr ends nothing.
    let _ = writeln!(
        std::io::stderr(),
        "[{}/{collections}] {tenant}/{collection}: {bytes} bytes, {state}",
        finished + 1
    );
}

fn summarise(summary: &v1::BackupSummary, done: &str) -> Ended {
    let v1::BackupSummary {
        name,
        collections,
        points,
        bytes,
        damaged,
    } = summary;
    let _ = writeln!(
        std::io::stdout(),
        "{done}: {name}, {collections} collections, {points} points, {bytes} bytes"
    );
    if damaged.is_empty() {
        return Ended::well();
    }
    let listed = damaged.join(", ");
    Ended::badly(DATA, format!("damaged, and not in the backup: {listed}"))
}

fn refused(status: &Status) -> Ended {
    // A status with a source was made here, out of a connection that broke.
    if std::error::Error::source(status).is_some() {
        return Ended::badly(UNAVAILABLE, format!("the connection was lost: {}", status.message()));
    }
    let reason = status
        .get_details_error_info()
        .and_then(|info| info.reason.parse().ok());
    let code = match (status.code(), reason) {
        (_, Some(Reason::StorageFull)) | (Code::AlreadyExists, _) => CANNOT_CREATE,
        (Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange, _) => USAGE,
        (Code::DataLoss, _) => DATA,
        (Code::NotFound, _) => NO_INPUT,
        (Code::Unavailable, Some(_)) | (Code::ResourceExhausted, _) => AGAIN,
        (Code::Unavailable | Code::FailedPrecondition, _) => UNAVAILABLE,
        (Code::Unauthenticated | Code::PermissionDenied, _) => NO_PERMISSION,
        (Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Aborted | Code::Internal, _) => {
            SOFTWARE
        }
    };
    Ended::badly(code, status.message().to_owned())
}
