//! What surrounds every call: tenant, request id, trace, deadline, one span, one log line, and the table of errors.

use std::future::Future;
use std::time::{Duration, Instant};

use medkg_telemetry::logging::set_remote_parent;
use medkg_telemetry::names::{ERROR_DOMAIN, Reason};
use medkg_telemetry::tenant::{RequestId, TenantId};
use medkg_telemetry::trace_context::TraceContext;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::Instrument as _;

use super::status;
use crate::engine::job::Caller;
use crate::error::Error;

/// How much earlier than its caller a call is given up, so that the caller gets this server's `DEADLINE_EXCEEDED` with
/// its details. At the deadline itself tonic answers CANCELLED, and an answer that is on its way by then comes too late anyway.
const MARGIN: Duration = Duration::from_millis(5);

/// Who calls and until when.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whose data the call may touch.
    pub tenant: TenantId,
    /// `x-request-id`, or one that was made for the call.
    pub request_id: String,
    /// From `grpc-timeout`, a little earlier.
    pub deadline: Option<Instant>,
    /// Its span; streams keep it for the work that goes on after the call has answered.
    pub span: tracing::Span,
}

impl Call {
    /// As the engine knows them.
    pub fn caller(&self) -> Caller {
        Caller {
            tenant: self.tenant.as_str().into(),
            deadline: self.deadline,
        }
    }

    /// Reads a call's metadata.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the tenant is missing or malformed.
    pub fn read(metadata: &MetadataMap, method: &'static str) -> Result<Self, Status> {
        let request_id = RequestId::extract_or_random(metadata);
        let span = tracing::info_span!(
            "rpc",
            otel.name = method,
            otel.kind = "server",
            method,
            tenant = tracing::field::Empty,
            request_id = request_id.as_str(),
        );
        if let Some(trace) = TraceContext::extract(metadata) {
            // It fails only where nothing is traced; the call is served all the same.
            let _ = set_remote_parent(&span, &trace);
        }
        let tenant = TenantId::extract(metadata).map_err(|error| {
            let mut details = ErrorDetails::new();
            let none = std::collections::HashMap::<String, String>::new();
            details.set_error_info(error.reason().as_str(), ERROR_DOMAIN, none);
            details.add_bad_request_violation(medkg_telemetry::names::TENANT_ID, error.to_string());
            let status = Status::with_error_details(Code::InvalidArgument, error.to_string(), details);
            span.in_scope(|| tracing::info!(code = "InvalidArgument", error = %error, "call refused"));
            status
        })?;
        span.record("tenant", tenant.as_str());
        Ok(Self {
            tenant,
            request_id: request_id.as_str().to_owned(),
            deadline: timeout(metadata).and_then(|left| {
                let margin = (left / 10).min(MARGIN);
                Instant::now().checked_add(left.saturating_sub(margin))
            }),
            span,
        })
    }
}

/// Serves a unary call.
///
/// # Errors
/// The status that the table gives for what `work` returned.
pub async fn unary<T, F: Future<Output = Result<T, Error>>>(
    metadata: &MetadataMap,
    method: &'static str,
    work: impl FnOnce(Call) -> F,
) -> Result<Response<T>, Status> {
    let call = Call::read(metadata, method)?;
    let span = call.span.clone();
    let started = Instant::now();
    async {
        let deadline = call.deadline;
        let result = match deadline {
            None => work(call).await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), work(call))
                .await
                .unwrap_or(Err(Error::DeadlineExpired)),
        };
        finish(started, result.as_ref().err());
        result.map(Response::new).map_err(|error| status::from_error(&error))
    }
    .instrument(span)
    .await
}

/// Logs how a call ended.
pub fn finish(started: Instant, error: Option<&Error>) {
    let seconds = started.elapsed().as_secs_f64();
    match error {
        None => tracing::info!(code = "Ok", seconds, "call served"),
        Some(error) => {
            let status = status::from_error(error);
            let code = format!("{:?}", status.code());
            if matches!(
                status.code(),
                Code::Internal | Code::DataLoss | Code::FailedPrecondition
            ) {
                tracing::error!(code, seconds, %error, "call failed");
            } else {
                tracing::info!(code, seconds, %error, "call refused");
            }
        }
    }
}

/// INTERNAL for a stream that broke in a way that has no domain error.
pub fn broken_stream(detail: &str) -> Status {
    let mut details = ErrorDetails::new();
    let none = std::collections::HashMap::<String, String>::new();
    details.set_error_info(Reason::Internal.as_str(), ERROR_DOMAIN, none);
    Status::with_error_details(Code::Internal, detail, details)
}

/// gRPC over HTTP/2's `Timeout → TimeoutValue TimeoutUnit`: up to eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_nonsense_is_no_deadline() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for nonsense in ["", "S", "12", "999999999S", "-1S", "1x"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
