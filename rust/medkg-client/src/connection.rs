//! One connection to one address: made when it is needed, shared by every call, made anew when it is lost.
//!
//! tonic's lazy channel reconnects by itself, but one waiting call at a time: with a host that swallows packets, the
//! tenth waiting call learns of it after ten connect timeouts. Here the first call dials and the others share its
//! result. A channel is given its socket once and can never dial again; a call that finds the connection gone (the
//! server was restarted while nothing was sent) gets a new one without being charged an attempt.
//!
//! HTTP/2 keep-alive runs also while nothing is in flight, so that a dead host is noticed before the next call. A
//! connection that has reached its age is left to the calls that are out on it: new ones go over a new one, so that a
//! name is looked up and certificates are shown again now and then.

use std::error::Error as StdError;
use std::io::ErrorKind::TimedOut;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use hyper_util::client::legacy::connect::HttpConnector;
use medkg_tls::ClientTlsConfig;
use tokio::sync::Mutex;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::channel::Channel;
use crate::config::Address;
use crate::dialler::Dialler;
use crate::policy::classify::{Origin, Service};
use crate::service::health::{Health, Watches};
use crate::silence::{Listening, Watchful};

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// No connection could be made.
    NotConnected {
        /// Says why.
        why: Arc<str>,
        /// True if another call dialled and this one waited for its result: the failure is that call's to report.
        shared: bool,
    },
    /// The peer, or the transport, ended the call.
    Status(Status),
    /// The connection broke while several calls were on it, and another one of them reports it.
    BrokeTogether(Status),
    /// Nobody seems to be there: neither the call nor a question for the server's health was answered.
    Silent {
        /// How long the question stayed unanswered.
        patience: Duration,
        /// True if another call that waited asked it: the failure is that call's to report.
        shared: bool,
    },
    /// The time for the attempt ran out.
    Elapsed,
}

impl AttemptError {
    /// Where it failed.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Self::NotConnected { .. } => Origin::NeverSent,
            Self::Elapsed => Origin::Timeout,
            Self::Status(status) | Self::BrokeTogether(status) => status_origin(status),
            Self::Silent { .. } => Origin::Broken,
        }
    }
}

/// A status without a source came over the wire; one with a source was made by the transport out of an error.
fn status_origin(status: &Status) -> Origin {
    let Some(source) = status.source() else {
        // tonic's server answers a call that outlives its deadline with CANCELLED and this text.
        let timeout = status.code() == Code::Cancelled && status.message() == tonic::TimeoutExpired(()).to_string();
        return if timeout { Origin::Timeout } else { Origin::Peer };
    };
    if find::<tonic::TimeoutExpired>(source).is_some() {
        Origin::Timeout
    } else if was_lost(status) {
        Origin::NeverSent
    } else {
        Origin::Broken
    }
}

/// The time, also where tests have paused it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and everything that caused it.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn StdError + 'static) = *error;
        error.source()
    })
}

/// An error with everything that caused it, without repetitions.
pub(crate) fn explain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for error in chain(error) {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
    }
    text
}

/// A channel that is connected, or was.
#[derive(Debug, Clone)]
struct Live {
    id: u64,
    channel: Channel,
    /// True once a call has found that it broke.
    broken: Arc<AtomicBool>,
    listening: Arc<Listening>,
    old_from: Instant,
    /// They end when nobody makes new calls over the channel: an open watch would keep the connection for ever.
    watches: Arc<Watches>,
}

impl Live {
    async fn run<T, F>(&self, watchful: Option<&Watchful<'_>>, send: &impl Fn(Channel) -> F) -> Result<T, AttemptError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let sending = send(self.channel.clone());
        let result = match watchful {
            None => sending.await,
            Some(watchful) => {
                let silence = self.listening.silence(&self.channel, watchful);
                match select(pin!(sending), pin!(silence)).await {
                    Either::Left((result, _)) => result,
                    Either::Right((shared, _)) => {
                        let patience = watchful.patience;
                        return Err(AttemptError::Silent { patience, shared });
                    }
                }
            }
        };
        result.map_err(|status| broke(status, &self.broken))
    }
}

#[derive(Debug, Default)]
struct State {
    live: Option<Live>,
    failure: Option<Arc<str>>,
}

/// How connections to an address are made.
#[derive(Debug, Clone)]
pub(crate) struct Dialling {
    pub(crate) address: Address,
    pub(crate) connect_timeout: Duration,
    /// After this time new calls go over a new connection.
    pub(crate) max_age: Duration,
    pub(crate) tls: Option<ClientTlsConfig>,
    /// None: TCP.
    pub(crate) dialler: Option<Arc<dyn Dialler>>,
}

/// One connection to an address.
#[derive(Debug)]
pub(crate) struct Connection {
    how: Dialling,
    /// Dials that ended; those who waited while it grew share the result.
    dials: AtomicU64,
    state: Mutex<State>,
}

impl Connection {
    pub(crate) fn new(how: Dialling) -> Self {
        Self {
            how,
            dials: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Runs `send` over the connection, making one first if there is none. With `watchful` it ends when nobody seems to be
    /// there.
    pub(crate) async fn run<T, F>(
        &self,
        watchful: Option<&Watchful<'_>>,
        send: impl Fn(Channel) -> F,
    ) -> Result<T, AttemptError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let live = self.live().await?;
        let status = match live.run(watchful, &send).await {
            Err(AttemptError::Status(status)) if was_lost(&status) => status,
            result => return result,
        };
        let address = self.how.address.as_str();
        tracing::debug!(address, %status, "the connection was gone; making a new one");
        self.retire(live.id).await;
        self.live().await?.run(watchful, &send).await
    }

    /// Keeps `health` up to date for a service, over the connection that there is. While one is being made nothing is begun:
    /// nobody waits for this, and the next call asks for it again.
    pub(crate) fn watch(&self, service: Service, health: &Arc<Health>) {
        if let Ok(state) = self.state.try_lock()
            && let Some(live) = &state.live
        {
            live.watches.begin(service, &live.channel, health);
        }
    }

    async fn live(&self) -> Result<Live, AttemptError> {
        let seen = self.dials.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live
            && now() < live.old_from
        {
            return Ok(live.clone());
        }
        let finished = self.dials.load(Ordering::Acquire);
        if let (true, Some(failure)) = (finished != seen, &state.failure) {
            let why = Arc::clone(failure);
            return Err(AttemptError::NotConnected { why, shared: true });
        }
        let result = self.dial().await;
        self.dials.store(finished + 1, Ordering::Release);
        match result {
            Ok(channel) => {
                // Connections that were made together are not given up together.
                let age = self.how.max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
                let now = now();
                let live = Live {
                    id: finished,
                    channel,
                    broken: Arc::default(),
                    listening: Arc::default(),
                    old_from: now.checked_add(age).unwrap_or(now),
                    watches: Arc::default(),
                };
                *state = State {
                    live: Some(live.clone()),
                    failure: None,
                };
                Ok(live)
            }
            Err(error) => {
                let why = Arc::from(error);
                state.failure = Some(Arc::clone(&why));
                Err(AttemptError::NotConnected { why, shared: false })
            }
        }
    }

    async fn retire(&self, id: u64) {
        let mut state = self.state.lock().await;
        if state.live.as_ref().is_some_and(|live| live.id == id) {
            state.live = None;
        }
    }

    async fn dial(&self) -> Result<Channel, String> {
        let dialled = tokio::time::timeout(self.how.connect_timeout, self.handshake());
        match dialled.await {
            // The connector gives each address of a host a share of the time.
            Ok(Err(error)) if find::<std::io::Error>(&*error).is_none_or(|error| error.kind() != TimedOut) => {
                Err(format!("cannot connect: {}", explain(&*error)))
            }
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(_)) | Err(_) => Err(format!(
                "cannot connect within {} s; is the address right, and does the network let packets through?",
                self.how.connect_timeout.as_secs_f64()
            )),
        }
    }

    async fn handshake(&self) -> Result<Channel, Box<dyn StdError + Send + Sync>> {
        let uri = self.how.address.uri().clone();
        if let Some(dialler) = &self.how.dialler {
            return Channel::open(dialler.dial(&uri).await?, &self.how.address).await;
        }
        if let Some(tls) = &self.how.tls {
            let socket = tls.connector().oneshot(uri).await?.into_inner();
            return Channel::open(socket, &self.how.address).await;
        }
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.how.connect_timeout));
        Channel::open(tcp.oneshot(uri).await?.into_inner(), &self.how.address).await
    }
}

/// One connection that breaks is one failure, however many calls were on it: the first one to notice reports it. A stream
/// that is reset alone is that call's own.
fn broke(status: Status, broken: &AtomicBool) -> AttemptError {
    let alone = |source| find::<h2::Error>(source).is_some_and(h2::Error::is_reset);
    let whole = status_origin(&status) == Origin::Broken && !status.source().is_some_and(alone);
    if whole && broken.swap(true, Ordering::Relaxed) {
        AttemptError::BrokeTogether(status)
    } else {
        AttemptError::Status(status)
    }
}

/// True if the server has not begun with the call, because its connection was gone: closed before (a server that was
/// restarted), or while the call was on its way (a server that lets connections live for a bounded time). hyper cancels what
/// still waits; a GOAWAY ends those streams that its sender has not begun with and never will (RFC 9113, section 6.8).
fn was_lost(status: &Status) -> bool {
    let refused =
        |error: &h2::Error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    status.source().is_some_and(|source| {
        find::<hyper::Error>(source).is_some_and(|error| error.is_canceled() || error.is_closed())
            || find::<h2::Error>(source).is_some_and(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_over_the_wire_is_the_peers_answer() {
        for code in [Code::Internal, Code::Unavailable, Code::Cancelled, Code::Unknown] {
            assert_eq!(AttemptError::Status(Status::new(code, "x")).origin(), Origin::Peer);
        }
    }

    #[test]
    fn tonics_two_ways_to_say_timeout_are_timeouts() {
        let from_server = Status::cancelled("Timeout expired");
        assert_eq!(AttemptError::Status(from_server).origin(), Origin::Timeout);
        let here = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        assert_eq!(AttemptError::Status(here).origin(), Origin::Timeout);
    }

    #[test]
    fn a_transport_error_is_no_answer_whatever_code_tonic_gives_it() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(reset));
        assert_eq!(AttemptError::Status(status).origin(), Origin::Broken);
    }

    #[test]
    fn an_explanation_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(explain(&error), "outer: inner");
    }
}
