//! What a scripted server does with one call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

type Answer = dyn Fn(&[u8]) -> Result<Vec<Bytes>, Status> + Send + Sync;

/// What to do with one call, in the end.
#[derive(Clone)]
pub(crate) enum Act {
    /// Answers each message of the request with any number of messages; an error ends the call.
    Reply(Arc<Answer>),
    /// Ends the call with a status before anything is sent.
    Fail {
        code: Code,
        message: String,
        details: Box<ErrorDetails>,
    },
    /// Drops the TCP connection, and every other call on it, with a reset.
    Reset,
    /// Keeps the call open for ever.
    Hang,
}

/// What a scripted server does with one call; cloned for every call it is used for.
#[derive(Clone)]
pub struct Behaviour {
    pub(crate) delay: Duration,
    pub(crate) act: Act,
}

impl Behaviour {
    /// Answers each message of the request with one message. Unary methods have one message; a stream may have many.
    pub fn reply<Q, R>(answer: impl Fn(Q) -> R + Send + Sync + 'static) -> Self
    where
        Q: Message + Default,
        R: Message,
    {
        Self::reply_many(move |request| Ok(vec![answer(request)]))
    }

    /// Answers each message of the request with any number of messages, or ends the call with a status.
    pub fn reply_many<Q, R>(answer: impl Fn(Q) -> Result<Vec<R>, Status> + Send + Sync + 'static) -> Self
    where
        Q: Message + Default,
        R: Message,
    {
        Self::of(Act::Reply(Arc::new(move |bytes| {
            let request = Q::decode(bytes).map_err(|error| Status::internal(format!("testkit: {error}")))?;
            Ok(answer(request)?
                .iter()
                .map(|message| message.encode_to_vec().into())
                .collect())
        })))
    }

    /// Ends the call with a status that carries `ErrorInfo {reason, domain: "medkg"}`; with an empty reason, without it.
    pub fn fail(code: Code, reason: &str, message: &str) -> Self {
        let mut details = ErrorDetails::new();
        if !reason.is_empty() {
            details.set_error_info(reason, medkg_telemetry::names::ERROR_DOMAIN, []);
        }
        Self::of(Act::Fail {
            code,
            message: message.to_owned(),
            details: Box::new(details),
        })
    }

    /// Adds `RetryInfo` to a failure.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        self.with_details(|details| {
            details.set_retry_info(Some(delay));
        })
    }

    /// Adds a violation to the `BadRequest` of a failure.
    #[must_use]
    pub fn field(self, field: &str, description: &str) -> Self {
        self.with_details(|details| {
            details.add_bad_request_violation(field, description);
        })
    }

    /// Drops the TCP connection with a reset, and with it every other call on that connection.
    pub fn reset() -> Self {
        Self::of(Act::Reset)
    }

    /// Never answers, not even when the deadline that the client named is over.
    pub fn hang() -> Self {
        Self::of(Act::Hang)
    }

    /// Waits first.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn of(act: Act) -> Self {
        Self {
            delay: Duration::ZERO,
            act,
        }
    }

    fn with_details(mut self, change: impl FnOnce(&mut ErrorDetails)) -> Self {
        match &mut self.act {
            Act::Fail { details, .. } => change(details),
            Act::Reply(_) | Act::Reset | Act::Hang => {
                unreachable!("only a failure has details: call `Behaviour::fail` first")
            }
        }
        self
    }
}

impl Act {
    /// The status of a failure.
    pub(crate) fn status(code: Code, message: &str, details: &ErrorDetails) -> Status {
        Status::with_error_details(code, message, details.clone())
    }
}
