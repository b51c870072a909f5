//! Which endpoint takes a call.
//!
//! Those are preferred that the call has not tried yet, that say that they serve, and that are not set aside as outliers;
//! each preference is dropped where nobody would be left. Among those whose breaker lets the call through, two are drawn
//! and the less loaded one takes it ([`crate::policy::load`]): unlike the least loaded of all, that does not send
//! everybody to the same endpoint at once.
//!
//! A lost GPU is no reason to reroute: a call that has reached it fails there. Calls that are not yet sent go to servers
//! that say that they serve, and where none does, they go on and are told why.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::endpoint::{Admitted, Endpoint, EndpointStatus, Place};
use crate::members::{Members, Nobody};
use crate::policy::breaker::{BreakerState, Refused};
use crate::policy::classify::Service;
use crate::policy::load::{Typical, lighter};
use crate::policy::outlier::panics;
use crate::service::health::Serving;

/// Every breaker is open.
#[derive(Debug, Clone)]
pub(crate) struct AllOpen {
    /// Which endpoint lets a call through first.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// When that is.
    pub(crate) retry_after: Duration,
}

impl AllOpen {
    fn at(endpoint: &Arc<Endpoint>, why: Refused) -> Self {
        Self {
            endpoint: Some(Arc::clone(endpoint)),
            retry_after: why.retry_after,
        }
    }
}

/// Interchangeable endpoints of a service.
#[derive(Debug)]
pub(crate) struct Pool {
    service: Service,
    members: Arc<Members>,
    typical: Mutex<Typical>,
}

impl Pool {
    pub(crate) fn new(service: Service, members: Arc<Members>) -> Self {
        Self {
            service,
            members,
            typical: Mutex::default(),
        }
    }

    /// Sees to it that it is known who there is.
    pub(crate) async fn ready(&self, patience: Duration) -> Result<(), Nobody> {
        self.members.ready(patience).await
    }

    pub(crate) fn addresses(&self) -> String {
        let members = self.members.current();
        let addresses: Vec<&str> = members.iter().map(|endpoint| endpoint.address.as_str()).collect();
        addresses.join(", ")
    }

    /// What is known of each.
    pub(crate) fn statuses(&self, now: Instant) -> Vec<EndpointStatus> {
        let members = self.members.current();
        members
            .iter()
            .map(|endpoint| endpoint.status(self.service, now))
            .collect()
    }

    /// What is known of each, which is asked how it is.
    pub(crate) async fn survey(&self, patience: Duration) -> Vec<EndpointStatus> {
        let members = self.members.current();
        let asked = members.iter().map(|endpoint| endpoint.ask(self.service, patience));
        futures_util::future::join_all(asked).await
    }

    /// Closes the breakers of an address, or of all; how many were not closed. None if there is no such address.
    pub(crate) fn reset(&self, address: Option<&str>, now: Instant) -> Option<usize> {
        let named = |endpoint: &&Arc<Endpoint>| address.is_none_or(|address| endpoint.address.as_str() == address);
        let members = self.members.current();
        let mut found = members.iter().filter(named).peekable();
        found.peek()?;
        Some(found.filter(|endpoint| endpoint.breaker.reset(now)).count())
    }

    /// True if an endpoint that is not in `tried` would take a call.
    pub(crate) fn has_untried(&self, tried: &[u64], now: Instant) -> bool {
        let members = self.members.current();
        let mut untried = members.iter().filter(|endpoint| !tried.contains(&endpoint.id()));
        untried.any(|endpoint| endpoint.breaker.refuses(now).is_none())
    }

    /// True if there is more than one endpoint.
    pub(crate) fn is_choice(&self) -> bool {
        self.members.current().len() > 1
    }

    /// True if an endpoint other than `here` that is not in `tried` would take a call, and does not say that it serves not.
    pub(crate) fn has_other(&self, tried: &[u64], here: u64, now: Instant) -> bool {
        let members = self.members.current();
        let mut others = members
            .iter()
            .filter(|other| other.id() != here && !tried.contains(&other.id()));
        others.any(|other| other.breaker.refuses(now).is_none() && other.serving(self.service) != Serving::No)
    }

    /// True if no endpoint's breaker is closed, so that at most one call at a time gets through.
    pub(crate) fn none_is_closed(&self, now: Instant) -> bool {
        let members = self.members.current();
        members
            .iter()
            .all(|endpoint| endpoint.breaker.state(now) != BreakerState::Closed)
    }

    /// The endpoint for the next attempt of a call that has made attempts at `tried`.
    pub(crate) fn pick(&self, tried: &[u64], random: &mut fastrand::Rng, now: Instant) -> Result<Admitted, AllOpen> {
        let members = self.members.current();
        if let [only] = &*members {
            return only.admit(now).map_err(|why| AllOpen::at(only, why));
        }
        let (mut open, mut closed) = (Vec::with_capacity(members.len()), Vec::new());
        for endpoint in &*members {
            match endpoint.breaker.refuses(now) {
                Some(why) => closed.push(AllOpen::at(endpoint, why)),
                None => open.push(endpoint),
            }
        }
        while !open.is_empty() {
            let preferred = self.preferred(&open, tried, now);
            let chosen = Arc::clone(self.lighter(&preferred, random, now));
            match chosen.admit(now) {
                Ok(admitted) => return Ok(admitted),
                // Another call was quicker to be the probe.
                Err(why) => closed.push(AllOpen::at(&chosen, why)),
            }
            open.retain(|endpoint| !Arc::ptr_eq(endpoint, &chosen));
        }
        let soonest = closed.into_iter().min_by_key(|closed| closed.retry_after);
        Err(soonest.unwrap_or(AllOpen {
            endpoint: None,
            retry_after: Duration::ZERO,
        }))
    }

    /// Those of `open`, which is not empty, that should rather take a call; not empty either.
    fn preferred<'a>(&self, open: &[&'a Arc<Endpoint>], tried: &[u64], now: Instant) -> Vec<&'a Arc<Endpoint>> {
        let mut left = open.to_vec();
        narrow(&mut left, |endpoint| !tried.contains(&endpoint.id()));
        narrow(&mut left, |endpoint| endpoint.serving(self.service) != Serving::No);
        let all = left.len();
        if !panics(left.iter().filter(|endpoint| !endpoint.aside(now)).count(), all) {
            narrow(&mut left, |endpoint| !endpoint.aside(now));
        }
        left
    }

    /// The less loaded of two that are drawn; `among` is not empty.
    fn lighter<'a>(&self, among: &[&'a Arc<Endpoint>], random: &mut fastrand::Rng, now: Instant) -> &'a Arc<Endpoint> {
        let first = random.usize(..among.len());
        if among.len() == 1 {
            return among[first];
        }
        // Drawn from the others, each as likely as the next.
        let second = (first + random.usize(1..among.len())) % among.len();
        let load = |index: usize| among[index].load(self.service, now);
        among[if lighter(load(second), load(first)) {
            second
        } else {
            first
        }]
    }

    /// Notes an answer to a call of `bytes`, which took `latency`.
    pub(crate) fn note_answer(&self, place: &Place, call: (&'static str, usize), latency: Duration, now: Instant) {
        if self.members.current().len() == 1 {
            return;
        }
        let (method, bytes) = call;
        let slowness = {
            let mut typical = self.typical.lock().unwrap_or_else(PoisonError::into_inner);
            typical.compare(method, bytes, latency, now)
        };
        place.endpoint.note_answer(slowness, now);
        if place.endpoint.serving(self.service) == Serving::Unknown {
            place.endpoint.watch(self.service);
        }
    }

    /// Notes that an endpoint answered with an error. One that refuses every call at once looks idle: it has to say itself
    /// whether it serves.
    pub(crate) fn note_refusal(&self, endpoint: &Endpoint) {
        if self.is_choice() && endpoint.serving(self.service) == Serving::Unknown {
            endpoint.watch(self.service);
        }
    }

    /// Notes a failure of the network; true if the endpoint is set aside for it.
    pub(crate) fn note_failure(&self, endpoint: &Arc<Endpoint>, now: Instant) -> bool {
        self.members.suspect();
        let members = self.members.current();
        let others = members.iter().filter(|other| !Arc::ptr_eq(other, endpoint));
        let (sum, count) = others.fold((0.0, 0_u32), |(sum, count), other| {
            (sum + other.failure_rate(), count + 1)
        });
        count > 0 && endpoint.note_outlier(sum / f64::from(count), now)
    }
}

/// Keeps those that fit, unless none does.
fn narrow(endpoints: &mut Vec<&Arc<Endpoint>>, fits: impl Fn(&Endpoint) -> bool) {
    if endpoints.iter().any(|endpoint| fits(endpoint)) {
        endpoints.retain(|endpoint| fits(endpoint));
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
