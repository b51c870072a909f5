//! What went wrong, with everything that a person or a program needs to find it and to react to it.
//!
//! A [`ClientError`] is made in exactly two places: the attempt loop, from a peer's status, and the checks before anything
//! is sent. It never holds what was sent (texts, vectors, payloads) and no credentials: addresses with user names are
//! refused by the configuration, and keys are known to it by path only.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use medkg_telemetry::names::Reason;
use tonic::Code;

use crate::policy::breaker::BreakerState;
use crate::policy::classify::{ErrorKind, Service};

/// A field of the request that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field with its index as the caller passed it, e.g. `texts[3]`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub description: String,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ClientError(Box<Failure>);

/// The details of a [`ClientError`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Failure {
    /// What it is; everything else that follows from it is in [`ErrorKind::row`].
    pub kind: ErrorKind,
    /// The gRPC status code that was received, or that fits best where none was.
    pub code: Code,
    /// `google.rpc.ErrorInfo.reason`; empty where there is none. A newer peer may send one that is not in [`Reason`].
    pub reason: String,
    /// What happened, in words.
    pub message: String,
    /// The service that was called.
    pub service: Service,
    /// The method, e.g. `GenerateEmbeddings`.
    pub method: &'static str,
    /// The address of the last attempt; empty if nothing was sent.
    pub endpoint: String,
    /// `x-request-id` of the call; empty if the call was refused before it got one.
    pub request_id: String,
    /// Trace id of the call, 32 hex digits; empty if the call was refused before it got one.
    pub trace_id: String,
    /// For whom the call was made; empty if there was no tenant.
    pub tenant: String,
    /// Attempts made; 0 if nothing was sent.
    pub attempts: u32,
    /// True if the same call may succeed later and the client has not already spent its retries on it.
    pub retryable: bool,
    /// How long to wait before the same call makes sense: the peer's `RetryInfo`, or the breaker's cool-down.
    pub retry_after: Option<Duration>,
    /// The fields that are wrong.
    pub field_violations: Vec<FieldViolation>,
    /// What the breaker of the endpoint was doing after the failure.
    pub breaker_state: Option<BreakerState>,
}

impl ClientError {
    /// An error with no more than the necessary; the rest is filled in with [`ClientError::with`].
    pub(crate) fn new(kind: ErrorKind, code: Code, service: Service, method: &'static str, message: String) -> Self {
        Self(Box::new(Failure {
            kind,
            code,
            reason: String::new(),
            message,
            service,
            method,
            endpoint: String::new(),
            request_id: String::new(),
            trace_id: String::new(),
            tenant: String::new(),
            attempts: 0,
            retryable: false,
            retry_after: None,
            field_violations: Vec::new(),
            breaker_state: None,
        }))
    }

    /// A wrong argument that was found before anything was sent.
    pub fn invalid(service: Service, method: &'static str, field: &str, description: &str) -> Self {
        let message = format!("{field}: {description}");
        Self::new(
            ErrorKind::InvalidArgument,
            Code::InvalidArgument,
            service,
            method,
            message,
        )
        .with(|failure| {
            Reason::InvalidField.as_str().clone_into(&mut failure.reason);
            failure.field_violations = vec![FieldViolation {
                field: field.to_owned(),
                description: description.to_owned(),
            }];
        })
    }

    /// An answer that contradicts itself or the request.
    pub(crate) fn broken_answer(service: Service, method: &'static str, message: String) -> Self {
        Self::new(ErrorKind::Internal, Code::Internal, service, method, message)
            .with(|failure| Reason::Internal.as_str().clone_into(&mut failure.reason))
    }

    /// Changes the details.
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Failure)) -> Self {
        change(&mut self.0);
        self
    }

    /// The class in `medkg.errors`.
    pub fn python_class(&self) -> &'static str {
        self.kind.python_class(self.service)
    }
}

impl Deref for ClientError {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

/// The name of a code as gRPC writes it, e.g. `NOT_FOUND`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service.name(), self.method)?;
        if !self.endpoint.is_empty() {
            write!(f, " at {}", self.endpoint)?;
        }
        write!(f, ": {}", code_name(self.code))?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        write!(f, ": {}", self.message)?;
        match (self.attempts, self.request_id.is_empty()) {
            (0, _) => f.write_str(" [nothing was sent]"),
            (1, true) => f.write_str(" [1 attempt]"),
            (1, false) => write!(f, " [1 attempt, request {}, trace {}]", self.request_id, self.trace_id),
            (n, true) => write!(f, " [{n} attempts]"),
            (n, false) => write!(
                f,
                " [{n} attempts, request {}, trace {}]",
                self.request_id, self.trace_id
            ),
        }
    }
}
