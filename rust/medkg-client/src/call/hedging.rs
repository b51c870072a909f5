//! A second request for an answer that is late (Dean and Barroso, "The Tail at Scale", 2013).
//!
//! Only where it is asked for, only for calls that may be made twice, only for small ones, and only where another endpoint is at
//! hand and the retry budget pays for it. The first answer counts and the other request is cancelled. A fault of a GPU that
//! either of them meets is the answer: the other one must not hide it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::{Request, Status};

use super::{Answer, Call, Caller, Progress, now};
use crate::channel::Channel;
use crate::endpoint::Place;
use crate::error::ClientError;

/// Larger messages are no small reads.
const SMALL: usize = 64 * 1024;

impl Caller {
    /// As [`Self::attempts`], with a second request elsewhere once the first one is late by `after`.
    pub(super) async fn hedged<M, T, F>(
        &self,
        call: &Call,
        progress: Progress,
        after: Duration,
        make: impl Fn() -> M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(Answer<T>, Place), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (bytes, at) = (Arc::clone(&progress.bytes), Arc::clone(&progress.at));
        let deadline = progress.deadline;
        let mut first = pin!(self.attempts(call, progress, &make, &send));
        if let Ok(answer) = tokio::time::timeout(after, &mut first).await {
            return answer;
        }
        let at = [at.load(Ordering::Relaxed)];
        let small = bytes.load(Ordering::Relaxed) <= SMALL;
        if !small || !self.pool.has_untried(&at, now()) || !self.budget.withdraw(now()) {
            return first.await;
        }
        let mut progress = self.progress(call);
        progress.deadline = deadline;
        progress.tried = at.into();
        // The last one that it may make: what fails is left to the first request.
        progress.attempts = self.config.max_attempts.saturating_sub(1);
        let mut second = pin!(self.attempts(call, progress, &make, &send));
        let answer = tokio::select! {
            first = &mut first => return first,
            second = &mut second => second,
        };
        match answer {
            Ok((answer, place)) => Ok((Answer { retries: 1, ..answer }, place)),
            Err(error) if error.kind.is_gpu() => Err(error),
            Err(_) => first.await,
        }
    }
}
