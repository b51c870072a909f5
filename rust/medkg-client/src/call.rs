//! The attempt loop: what every call of every service goes through.
//!
//! A call gets its identity (tenant, trace, request id) once and carries it on every attempt. Each request of the call
//! has one deadline; every attempt is given what is left of it, as `grpc-timeout` and as a timer here, because tonic's
//! own timer stops at the response's headers. What happens after a failure is decided by [`crate::policy`]; this module
//! only carries it out.

mod failing;
mod fallback;
mod hedging;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use medkg_telemetry::tenant::{RequestId, TenantError, TenantId};
use medkg_telemetry::trace_context::TraceContext;
use prost::Message;
use tonic::{Request, Status};

use crate::balance::Pool;
use crate::channel::Channel;
use crate::config::{ClientConfig, ConfigError};
use crate::connection::AttemptError;
use crate::endpoint::{Admitted, Endpoint, Endpoints, Place};
use crate::error::ClientError;
use crate::members::Members;
use crate::policy::backoff::Delays;
use crate::policy::breaker::{BreakerState, Outcome, Permit};
use crate::policy::budget::RetryBudget;
use crate::policy::classify::{Failed, Origin, Service};
use crate::policy::deadline::Deadline;
use crate::policy::retry::{Decision, Situation, decide};
use crate::silence::{Watchful, patience};

use failing::{describe, judge};

/// What a caller can say about one call. None means the client's configuration, or a fresh random value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CallOptions {
    /// For whom the call is made.
    pub tenant: Option<String>,
    /// How long the whole call may take, also if its input is split into several requests. Without it, each request
    /// has the configured timeout.
    pub timeout: Option<Duration>,
    /// W3C `traceparent` of the caller's span.
    pub traceparent: Option<String>,
    /// W3C `tracestate` that belongs to it.
    pub tracestate: Option<String>,
    /// Names the call in logs.
    pub request_id: Option<String>,
}

/// A method of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// True if doing its work twice is the same as doing it once.
    pub(crate) idempotent: bool,
}

/// A call that may make requests.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) tenant: TenantId,
    pub(crate) trace: TraceContext,
    pub(crate) request_id: RequestId,
    whole: Option<Deadline>,
    each: Duration,
}

impl Call {
    fn deadline(&self, now: Instant) -> Deadline {
        let each = Deadline::after(now, self.each);
        self.whole.map_or(each, |whole| whole.min(each))
    }

    fn request<M>(&self, message: M, remaining: Duration) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        self.tenant.inject(metadata);
        self.trace.inject(metadata);
        self.request_id.inject(metadata);
        request.set_timeout(remaining);
        request
    }

    /// The same call with a deadline for each of its answers and none for the whole.
    pub(crate) fn without_end(self) -> Self {
        Self { whole: None, ..self }
    }

    /// The time after which its caller waits no more; none if each of its requests has its own.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.whole.map(|whole| whole.remaining(now()).unwrap_or_default())
    }

    /// The same call with the time of whichever of the two ends later.
    pub(crate) fn lasting_as_long_as(self, other: &Self) -> Self {
        let whole = self.whole.zip(other.whole).map(|(own, others)| own.max(others));
        let each = self.each.max(other.each);
        Self { whole, each, ..self }
    }

    /// Says in an error which call it was.
    pub(crate) fn sign(&self, error: ClientError) -> ClientError {
        error.with(|failure| {
            self.tenant.as_str().clone_into(&mut failure.tenant);
            self.request_id.as_str().clone_into(&mut failure.request_id);
            failure.trace_id = self.trace.trace_id_hex();
        })
    }
}

/// A request that succeeded.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) message: T,
    pub(crate) retries: u32,
    /// Why it is not the answer that was asked for; none if it is.
    pub(crate) degraded: Option<String>,
}

/// Makes the requests of one service.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) service: Service,
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) pool: Pool,
    budget: Arc<RetryBudget>,
    /// Who makes the requests that nobody here takes.
    second: Option<Box<Self>>,
}

/// The time, also where tests have paused it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Caller {
    pub(crate) fn new(
        service: Service,
        config: Arc<ClientConfig>,
        budget: Arc<RetryBudget>,
        endpoints: &Endpoints,
    ) -> Result<Self, ConfigError> {
        let members = Members::new(service, &config, endpoints)?;
        let second = config.second(service).map(|second| {
            let second = Self::new(service, Arc::new(second), Arc::clone(&budget), endpoints);
            second.map(Box::new)
        });
        Ok(Self {
            service,
            config,
            pool: Pool::new(service, members),
            budget,
            second: second.transpose()?,
        })
    }

    /// Closes the breaker of an address, or of all; how many were not closed.
    pub(crate) fn reset_breakers(&self, address: Option<&str>) -> Result<usize, ClientError> {
        self.reset(address, now()).ok_or_else(|| {
            let problem = format!("is not an address of this client; it has {}", self.addresses());
            ClientError::invalid(self.service, "reset_breakers", "address", &problem)
        })
    }

    /// True if requests side by side would be refused, because every endpoint waits for a probe.
    pub(crate) fn needs_probe(&self) -> bool {
        self.pool.none_is_closed(now())
    }

    /// Gives a call its identity, or says what is wrong with it before anything is sent.
    pub(crate) fn begin(&self, method: Method, options: &CallOptions) -> Result<Call, ClientError> {
        let invalid = |field: &str, description: &dyn std::fmt::Display| {
            ClientError::invalid(self.service, method.name, field, &description.to_string())
        };
        let tenant = match &options.tenant {
            Some(text) => TenantId::try_new(text),
            None => self.config.tenant.clone().ok_or(TenantError::Missing),
        };
        let tenant = tenant.map_err(|error| {
            invalid("tenant", &error).with(|failure| error.reason().as_str().clone_into(&mut failure.reason))
        })?;
        let trace = match (&options.traceparent, &options.tracestate) {
            (Some(parent), state) => TraceContext::parse(parent, state.as_deref()),
            // Without a parent a state belongs to nothing (W3C: it is ignored).
            (None, _) => Ok(TraceContext::random()),
        };
        let trace = trace.map_err(|error| invalid("traceparent", &error))?;
        let request_id = options
            .request_id
            .as_deref()
            .map_or_else(|| Ok(RequestId::random()), RequestId::try_new);
        let request_id = request_id.map_err(|error| invalid("request_id", &error))?;
        if options.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(invalid("timeout", &"is 0; give seconds, more than 0"));
        }
        Ok(Call {
            method,
            tenant,
            trace,
            request_id,
            whole: options.timeout.map(|timeout| Deadline::after(now(), timeout)),
            each: options.timeout.unwrap_or(self.config.timeout),
        })
    }

    /// Makes one request, as often as it takes and the policies allow. `make` builds the message for each attempt.
    pub(crate) async fn request<M, T, F>(
        &self,
        call: &Call,
        make: impl Fn() -> M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Answer<T>, ClientError>
    where
        M: Message,
        F: Future<Output = Result<T, Status>>,
    {
        self.request_until(call, self.progress(call), make, send).await
    }

    /// As [`Self::request`], for a request that has got as far as `progress`.
    async fn request_until<M, T, F>(
        &self,
        call: &Call,
        progress: Progress,
        make: impl Fn() -> M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Answer<T>, ClientError>
    where
        M: Message,
        F: Future<Output = Result<T, Status>>,
    {
        let bytes = Arc::clone(&progress.bytes);
        let make = || {
            let message = make();
            bytes.store(message.encoded_len(), Ordering::Relaxed);
            message
        };
        let answer = match self.config.hedge_after.filter(|_| call.method.idempotent) {
            // In a box: it holds two requests, and most calls are not hedged.
            Some(after) => Box::pin(self.hedged(call, progress, after, make, send)).await,
            None => self.attempts(call, progress, make, send).await,
        };
        answer.map(|(answer, _)| answer)
    }

    /// A request of which no attempt has been made.
    pub(crate) fn progress(&self, call: &Call) -> Progress {
        Progress {
            deadline: call.deadline(now()),
            delays: self.config.backoff.delays(),
            random: fastrand::Rng::new(),
            tried: Vec::new(),
            attempts: 0,
            paced: 0,
            bytes: Arc::default(),
            at: Arc::default(),
        }
    }

    /// As [`Self::request`], for a request that has got as far as `progress`. Also says where it was answered.
    pub(crate) async fn attempts<M, T, F>(
        &self,
        call: &Call,
        mut progress: Progress,
        make: impl Fn() -> M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(Answer<T>, Place), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.budget.deposit(now());
        loop {
            let Some(remaining) = progress.remaining() else {
                return Err(call.sign(self.too_late(call, progress.attempts)));
            };
            if let Err(nobody) = self.pool.ready(remaining).await {
                let error = self.nobody(call.method.name, nobody);
                return Err(call.sign(error.with(|failure| failure.attempts = progress.attempts)));
            }
            let picked = self.pool.pick(&progress.tried, &mut progress.random, now());
            let Admitted { mut place, permit } = match picked {
                Ok(admitted) => admitted,
                Err(all_open) => return Err(call.sign(self.circuit_open(call, &all_open, progress.attempts))),
            };
            self.changed(call, &place.endpoint, permit.change());
            if tokio::time::timeout(remaining, place.enter()).await.is_err() {
                return Err(call.sign(self.too_late(call, progress.attempts)));
            }
            let Some(remaining) = progress.remaining() else {
                return Err(call.sign(self.too_late(call, progress.attempts)));
            };
            progress.attempts += 1;
            let began = now();
            let connection = place.connection();
            let here = place.endpoint.id();
            progress.at.store(here, Ordering::Relaxed);
            let elsewhere = || self.pool.has_other(&progress.tried, here, now());
            let watchful = (call.method.idempotent && self.pool.is_choice()).then(|| Watchful {
                service: self.service,
                patience: patience(remaining),
                elsewhere: &elsewhere,
            });
            let request = |channel| send(channel, call.request(make(), remaining));
            let attempt = connection.run(watchful.as_ref(), request);
            let result = match tokio::time::timeout(remaining, attempt).await {
                Ok(result) => result,
                Err(_) => Err(AttemptError::Elapsed),
            };
            let error = match result {
                Ok(message) => {
                    let now = now();
                    self.changed(call, &place.endpoint, permit.report(now, Outcome::Success));
                    let what = (call.method.name, progress.bytes.load(Ordering::Relaxed));
                    self.pool
                        .note_answer(&place, what, now.saturating_duration_since(began), now);
                    let retries = progress.attempts - 1;
                    let answer = Answer {
                        message,
                        retries,
                        degraded: None,
                    };
                    return Ok((answer, place));
                }
                Err(error) => error,
            };
            self.recover(call, &mut progress, place, Some(permit), error).await?;
        }
    }

    /// As [`Self::recover`], for an answer of a stream that was under way already.
    pub(crate) async fn interrupted(
        &self,
        call: &Call,
        progress: &mut Progress,
        place: Place,
        error: AttemptError,
    ) -> Result<(), ClientError> {
        progress.attempts += 1;
        let permit = place.endpoint.breaker.admit(now()).ok();
        self.recover(call, progress, place, permit, error).await
    }

    /// What follows from a failed attempt: waits until the next one may be made, or gives the error that ends the call.
    async fn recover(
        &self,
        call: &Call,
        progress: &mut Progress,
        place: Place,
        permit: Option<Permit>,
        error: AttemptError,
    ) -> Result<(), ClientError> {
        let failed = judge(&error);
        let endpoint = Arc::clone(&place.endpoint);
        drop(place);
        // One dial is one failure, however many calls waited for it; the one that dialled reports it. So is a connection.
        let shared = matches!(
            error,
            AttemptError::NotConnected { shared: true, .. }
                | AttemptError::BrokeTogether(_)
                | AttemptError::Silent { shared: true, .. }
        );
        if let (Some(permit), false) = (permit, shared) {
            let outcome = if failed.counts() {
                Outcome::Failure
            } else {
                Outcome::Answered
            };
            self.changed(call, &endpoint, permit.report(now(), outcome));
        }
        if failed.counts() && !shared && self.pool.note_failure(&endpoint, now()) {
            let address = endpoint.address.as_str();
            tracing::warn!(
                address,
                "it fails far more often than the others; it is set aside for a while"
            );
        }
        if failed.origin == Origin::Peer {
            self.pool.note_refusal(&endpoint);
        }
        if !progress.tried.contains(&endpoint.id()) {
            progress.tried.push(endpoint.id());
        }
        match self.next(call, progress, failed) {
            Decision::Retry { after, .. } => {
                endpoint.note_failure(&describe(&error));
                let attempt = progress.attempts;
                tracing::debug!(?error, ?after, attempt, "an attempt failed; trying again");
                tokio::time::sleep(after).await;
                Ok(())
            }
            Decision::Stop(stop) => {
                let error = self.give_up(call, &endpoint, &error, failed, stop, progress.attempts);
                if failed.counts() {
                    endpoint.note_failure(&error.message);
                }
                Err(call.sign(error))
            }
        }
    }

    /// Tells of a breaker that changed, and which call it was that changed it.
    fn changed(&self, call: &Call, endpoint: &Endpoint, change: Option<BreakerState>) {
        let Some(state) = change else { return };
        let (address, service, method) = (endpoint.address.as_str(), self.service.name(), call.method.name);
        let (tenant, request_id) = (call.tenant.as_str(), call.request_id.as_str());
        let trace_id = call.trace.trace_id_hex();
        let opened = endpoint.breaker.opened();
        let what = match state {
            BreakerState::Open => "the circuit breaker opened: nothing is sent there for a while",
            BreakerState::HalfOpen => "the circuit breaker is half open: this call is the probe",
            BreakerState::Closed => "the circuit breaker closed: calls go there again",
        };
        if state == BreakerState::Open {
            tracing::warn!(address, service, method, tenant, request_id, trace_id, opened, "{what}");
        } else {
            tracing::info!(address, service, method, tenant, request_id, trace_id, opened, "{what}");
        }
    }

    fn next(&self, call: &Call, progress: &mut Progress, failed: Failed) -> Decision {
        let now = now();
        let decision = decide(
            failed,
            Situation {
                idempotent: call.method.idempotent,
                attempts: progress.attempts - progress.paced,
                max_attempts: self.config.max_attempts,
                deadline: progress.deadline,
                backoff: progress.delays.next(&mut progress.random),
                untried_endpoint: self.pool.has_untried(&progress.tried, now),
                budget: &self.budget,
                now,
            },
        );
        if let Decision::Retry { paced: true, .. } = decision {
            progress.paced += 1;
            // A full queue is no fault of the endpoint: it may be asked again.
            progress.tried.clear();
        }
        decision
    }
}

/// How far a request has got.
#[derive(Debug)]
pub(crate) struct Progress {
    deadline: Deadline,
    delays: Delays,
    random: fastrand::Rng,
    tried: Vec<u64>,
    attempts: u32,
    paced: u32,
    /// The size of the message that was sent last: how long an answer takes depends on it.
    bytes: Arc<AtomicUsize>,
    /// The endpoint of the attempt that is under way.
    at: Arc<AtomicU64>,
}

impl Progress {
    /// The time that is left; none once it is over.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.deadline.remaining(now())
    }
}
