//! What a failed attempt is, and the error that a call ends with.

use medkg_telemetry::names::{ERROR_DOMAIN, Reason};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Call, Caller, now};
use crate::balance::AllOpen;
use crate::connection::{AttemptError, explain};
use crate::endpoint::Endpoint;
use crate::error::{ClientError, FieldViolation};
use crate::members::Nobody;
use crate::policy::breaker::BreakerState;
use crate::policy::classify::{ErrorKind, Failed, classify};
use crate::policy::retry::Stop;
use crate::service::MAX_MESSAGE_BYTES;

/// Of one message, in MiB.
const LIMIT: usize = MAX_MESSAGE_BYTES / (1024 * 1024);

impl Caller {
    pub(super) fn too_late(&self, call: &Call, attempts: u32) -> ClientError {
        let message = "the deadline passed before the request could be made; give the call more time".to_owned();
        let name = call.method.name;
        ClientError::new(ErrorKind::Timeout, Code::DeadlineExceeded, self.service, name, message).with(|failure| {
            Reason::DeadlineExpired.as_str().clone_into(&mut failure.reason);
            failure.attempts = attempts;
        })
    }

    /// The error where there is nobody to call.
    pub(crate) fn nobody(&self, method: &'static str, nobody: Nobody) -> ClientError {
        let (kind, code, message) = match nobody {
            Nobody::Unknown(why) => {
                let message = format!("no server was found: {why}");
                (ErrorKind::Unavailable, Code::Unavailable, message)
            }
            Nobody::Several(found) => {
                let noun = self.service.noun();
                let message = format!(
                    "several servers were found ({found}), but each holds its own collections and leases, so an answer would be a \
                     part of the whole; give {noun}_addresses with the one that is meant"
                );
                (ErrorKind::Config, Code::FailedPrecondition, message)
            }
        };
        let error = ClientError::new(kind, code, self.service, method, message);
        error.with(|failure| failure.retryable = kind.is_transient())
    }

    pub(super) fn circuit_open(&self, call: &Call, all_open: &AllOpen, attempts: u32) -> ClientError {
        let endpoint = all_open.endpoint.as_deref();
        let message = format!(
            "{} failed repeatedly, so nothing is sent for another {:.1} s; last failure: {}",
            self.pool.addresses(),
            all_open.retry_after.as_secs_f64(),
            endpoint
                .and_then(Endpoint::last_failure)
                .unwrap_or_else(|| "none on record".to_owned()),
        );
        let name = call.method.name;
        ClientError::new(ErrorKind::CircuitOpen, Code::Unavailable, self.service, name, message).with(|failure| {
            endpoint
                .map_or("", |endpoint| endpoint.address.as_str())
                .clone_into(&mut failure.endpoint);
            failure.attempts = attempts;
            failure.retryable = true;
            failure.retry_after = Some(all_open.retry_after);
            failure.breaker_state = Some(BreakerState::Open);
        })
    }

    pub(super) fn give_up(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        error: &AttemptError,
        failed: Failed,
        stop: Stop,
        attempts: u32,
    ) -> ClientError {
        let code = match error {
            AttemptError::NotConnected { .. } | AttemptError::Silent { .. } => Code::Unavailable,
            AttemptError::Elapsed => Code::DeadlineExceeded,
            AttemptError::Status(status) | AttemptError::BrokeTogether(status) => match failed.kind {
                // tonic gives transport errors and timeouts codes that say something else.
                ErrorKind::Unavailable => Code::Unavailable,
                ErrorKind::Timeout => Code::DeadlineExceeded,
                _ => status.code(),
            },
        };
        ClientError::new(failed.kind, code, self.service, call.method.name, describe(error)).with(|failure| {
            endpoint.address.as_str().clone_into(&mut failure.endpoint);
            failure.attempts = attempts;
            failure.retryable = failed.kind.is_transient() && !stop.exhausted();
            failure.retry_after = failed.pushback;
            failure.breaker_state = Some(endpoint.breaker.state(now()));
            if let AttemptError::Status(status) | AttemptError::BrokeTogether(status) = error {
                failure.reason = error_info(status).unwrap_or_default();
                failure.field_violations = field_violations(status);
            }
        })
    }
}

/// `reason` of the status' `ErrorInfo`, if it is medkg's.
fn error_info(status: &Status) -> Option<String> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == ERROR_DOMAIN)
        .map(|info| info.reason)
}

fn field_violations(status: &Status) -> Vec<FieldViolation> {
    let violations = status
        .get_details_bad_request()
        .map(|details| details.field_violations)
        .unwrap_or_default();
    violations
        .into_iter()
        .map(|v| FieldViolation {
            field: v.field,
            description: v.description,
        })
        .collect()
}

pub(super) fn judge(error: &AttemptError) -> Failed {
    let origin = error.origin();
    match error {
        AttemptError::NotConnected { .. } | AttemptError::Silent { .. } => Failed {
            kind: classify(Code::Unavailable, None, origin),
            origin,
            pushback: None,
            loading: false,
        },
        AttemptError::Elapsed => Failed {
            kind: classify(Code::DeadlineExceeded, None, origin),
            origin,
            pushback: None,
            loading: false,
        },
        AttemptError::Status(status) | AttemptError::BrokeTogether(status) => {
            let reason = error_info(status).and_then(|reason| reason.parse().ok());
            let kind = classify(status.code(), reason, origin);
            let pushback = status.get_details_retry_info().and_then(|info| info.retry_delay);
            Failed {
                kind,
                origin,
                pushback,
                loading: reason == Some(Reason::ModelNotReady),
            }
        }
    }
}

/// True if a message was larger than its receiver takes: tonic says so in these words, and with the same status, whether it
/// was the server that received it or this client.
fn is_too_large(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("message length too large")
}

pub(super) fn describe(error: &AttemptError) -> String {
    match error {
        AttemptError::NotConnected { why, .. } => why.to_string(),
        AttemptError::Silent { patience, .. } => format!(
            "no answer, and none to a question for the server's health within {} s either",
            patience.as_secs_f64()
        ),
        AttemptError::Elapsed => "no answer within the deadline; give the call more time, or smaller input".to_owned(),
        AttemptError::Status(status) | AttemptError::BrokeTogether(status) => match std::error::Error::source(status) {
            Some(source) => format!("the connection broke: {}", explain(source)),
            None if status.message().is_empty() && status.code() == Code::Unimplemented => {
                "the server does not offer this; it may be of another version, or run without this role".to_owned()
            }
            None if is_too_large(status) => {
                format!(
                    "the request or its answer is larger than the {LIMIT} MiB that a message may have; send or ask for less at once"
                )
            }
            None if status.message().is_empty() => "the server gave no message".to_owned(),
            None => status.message().to_owned(),
        },
    }
}
