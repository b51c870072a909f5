//! A second cluster, for requests that none of the servers of the first takes because of the network.
//!
//! It is asked last: when every attempt at the first one is spent, or every breaker there is open, and time is left. What a
//! server answered is never asked again elsewhere, a fault of its GPU least of all. An answer of the second cluster says that
//! it is one.

use std::time::Instant;

use prost::Message;
use tonic::{Request, Status};

use super::{Answer, Call, Caller, now};
use crate::channel::Channel;
use crate::endpoint::EndpointStatus;
use crate::error::ClientError;
use crate::policy::classify::ErrorKind;

impl ClientError {
    /// True if nobody could be reached, or nobody who was reached could serve: what a fallback may stand in for.
    pub(crate) fn is_of_the_network(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unavailable | ErrorKind::CircuitOpen | ErrorKind::Timeout
        )
    }
}

impl Caller {
    /// As [`Self::request`], at the second cluster where the first one fails, if there is one.
    pub(crate) async fn request_anywhere<M, T, F>(
        &self,
        call: &Call,
        make: impl Fn() -> M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Answer<T>, ClientError>
    where
        M: Message,
        F: Future<Output = Result<T, Status>>,
    {
        let progress = self.progress(call);
        let deadline = progress.deadline;
        let first = match self.request_until(call, progress, &make, &send).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(second) = self.second.as_deref().filter(|_| first.is_of_the_network()) else {
            return Err(first);
        };
        if deadline.remaining(now()).is_none() {
            return Err(first);
        }
        let mut progress = second.progress(call);
        progress.deadline = deadline;
        match second.request_until(call, progress, make, send).await {
            Ok(answer) => Ok(Answer {
                retries: answer.retries + first.attempts,
                degraded: Some(format!("answered by a fallback server: {}", first.message)),
                ..answer
            }),
            Err(error) if error.is_of_the_network() => Err(first.with(|failure| {
                failure.message = format!("{}; the fallback servers fail too: {}", failure.message, error.message);
                failure.attempts += error.attempts;
            })),
            Err(error) => Err(error),
        }
    }

    /// What is known of the service's servers, those of the second cluster last.
    pub(crate) fn endpoints(&self) -> Vec<EndpointStatus> {
        let mut known = self.pool.statuses(now());
        known.extend(self.second.iter().flat_map(|second| second.endpoints()));
        known
    }

    /// Closes breakers in both clusters; none if neither has the address.
    pub(super) fn reset(&self, address: Option<&str>, now: Instant) -> Option<usize> {
        let here = self.pool.reset(address, now);
        let there = self.second.as_ref().and_then(|second| second.reset(address, now));
        here.into_iter().chain(there).reduce(|here, there| here + there)
    }

    /// Those of both clusters.
    pub(super) fn addresses(&self) -> String {
        let here = self.pool.addresses();
        let there = self.second.as_ref().map(|second| second.addresses());
        here.split_terminator(", ")
            .map(str::to_owned)
            .chain(there)
            .collect::<Vec<_>>()
            .join(", ")
    }
}
