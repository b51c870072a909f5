//! A circuit breaker for one endpoint, for failures of the network only.
//!
//! failsafe's failure policy decides *when* an endpoint counts as dead and *for how long*; the state machine around it
//! is ours, because failsafe's lets any number of calls through while half open, forgets calls that are cancelled,
//! takes an ignored error for a success, and cannot be given a clock (docs/adr/0003-failsafe.md).
//!
//! Every admitted call holds a [`Permit`] and reports how it ended; a permit that is dropped reports that nobody knows.
//! While half open, exactly one call is out, the probe:
//!
//! - success closes the breaker and forgets the past;
//! - a failure of the network opens it again, for longer;
//! - any other answer of the peer proves that the network is well: calls go through and see that answer, but the next
//!   failure of the network opens the breaker at once;
//! - a cancelled probe proves nothing: the next call is the probe.
//!
//! A permit from before a change of state is ignored: a late answer says nothing about the endpoint now.
//!
//! The last changes are remembered, and a person may close the breaker by hand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use failsafe::FailurePolicy as _;
use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};

/// How much longer each period of being open is than the one before.
const GROWTH: u32 = 2;
/// The longest period of being open, in units of the first.
const LONGEST: u32 = 8;
/// Changes that are remembered.
const REMEMBERED: usize = 32;

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BreakerConfig {
    failures: u32,
    cooldown: Duration,
}

impl BreakerConfig {
    /// None unless `failures >= 1` and `cooldown > 0`.
    pub fn try_new(failures: u32, cooldown: Duration) -> Option<Self> {
        (failures >= 1 && !cooldown.is_zero()).then_some(Self { failures, cooldown })
    }
}

/// The periods of being open: the first, then each twice as long, at most eight times as long.
#[derive(Debug, Clone)]
struct Cooldowns {
    first: Duration,
    factor: u32,
}

impl Iterator for Cooldowns {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let period = self.first.saturating_mul(self.factor);
        self.factor = (self.factor * GROWTH).min(LONGEST);
        Some(period)
    }
}

/// How an admitted call ended, as far as the network is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The call succeeded.
    Success,
    /// The network, or the peer as a whole, failed.
    Failure,
    /// The peer answered with an error of its own; the network is well.
    Answered,
}

/// What a breaker is doing, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused until the cool-down ends.
    Open,
    /// One call is let through to see whether the endpoint answers.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half_open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// When a breaker came into a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When it was.
    pub at: Instant,
    /// What it has been from then on.
    pub state: BreakerState,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// The cool-down is over, or a probe was cancelled: the next call is the probe.
    Ready,
    Probing {
        cooldown: Duration,
    },
}

#[derive(Debug)]
struct Machine {
    state: State,
    policy: ConsecutiveFailures<Cooldowns>,
    /// The period that ended last; a probe that is refused falls back on it.
    cooldown: Duration,
    /// Grows with every change of state.
    epoch: u64,
    /// The newest last.
    changes: VecDeque<Change>,
    /// How often it has opened.
    opened: u64,
}

impl Machine {
    /// What is seen of the change; none where nothing is.
    fn enter(&mut self, now: Instant, state: State) -> Option<BreakerState> {
        self.state = state;
        self.epoch += 1;
        let state = match state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::Ready | State::Probing { .. } => BreakerState::HalfOpen,
        };
        if self.changes.back().is_some_and(|last| last.state == state) {
            return None;
        }
        if self.changes.len() == REMEMBERED {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { at: now, state });
        self.opened += u64::from(state == BreakerState::Open);
        Some(state)
    }

    fn open(&mut self, now: Instant, cooldown: Duration) -> Option<BreakerState> {
        self.cooldown = cooldown;
        let until = now.checked_add(cooldown).unwrap_or(now);
        self.enter(now, State::Open { until })
    }
}

/// The breaker of one endpoint.
#[derive(Debug, Clone)]
pub struct Breaker {
    machine: Arc<Mutex<Machine>>,
}

/// The breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Until the next call is let through.
    pub retry_after: Duration,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        let cooldowns = Cooldowns {
            first: config.cooldown,
            factor: 1,
        };
        let policy = consecutive_failures(config.failures, cooldowns);
        let machine = Machine {
            state: State::Closed,
            policy,
            cooldown: config.cooldown,
            epoch: 0,
            changes: VecDeque::new(),
            opened: 0,
        };
        Self {
            machine: Arc::new(Mutex::new(machine)),
        }
    }

    /// Lets a call through, or says how long to wait.
    pub fn admit(&self, now: Instant) -> Result<Permit, Refused> {
        let mut machine = self.lock();
        if let Some(refused) = refusal(&machine, now) {
            return Err(refused);
        }
        let cooldown = machine.cooldown;
        let change = match machine.state {
            State::Open { .. } | State::Ready => machine.enter(now, State::Probing { cooldown }),
            State::Closed | State::Probing { .. } => None,
        };
        Ok(Permit {
            breaker: self.clone(),
            epoch: machine.epoch,
            admitted: now,
            change,
            reported: false,
        })
    }

    /// What [`Breaker::admit`] would refuse now, without taking a permit.
    pub fn refuses(&self, now: Instant) -> Option<Refused> {
        refusal(&self.lock(), now)
    }

    /// What the breaker is doing.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.lock().state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open,
            State::Open { .. } | State::Ready | State::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    /// Its last changes, the newest last; none if it has always been closed.
    pub fn changes(&self) -> Vec<Change> {
        self.lock().changes.iter().copied().collect()
    }

    /// How often it has opened since it was made.
    pub fn opened(&self) -> u64 {
        self.lock().opened
    }

    /// Since when it has been closed again; none if it is not closed, or always was.
    pub fn closed_since(&self) -> Option<Instant> {
        let machine = self.lock();
        let last = machine.changes.back()?;
        (last.state == BreakerState::Closed).then_some(last.at)
    }

    /// Closes it and forgets the failures: a person knows that the endpoint is well. False if it was closed.
    pub fn reset(&self, now: Instant) -> bool {
        let mut machine = self.lock();
        machine.policy.record_success();
        machine.policy.revived();
        let was_closed = matches!(machine.state, State::Closed);
        if !was_closed {
            machine.enter(now, State::Closed);
        }
        !was_closed
    }

    fn report(&self, epoch: u64, now: Instant, outcome: Outcome) -> Option<BreakerState> {
        let mut machine = self.lock();
        if machine.epoch != epoch {
            return None;
        }
        match (machine.state, outcome) {
            (State::Closed, Outcome::Success) => {
                machine.policy.record_success();
                None
            }
            (State::Closed, Outcome::Answered) | (State::Open { .. } | State::Ready, _) => None,
            (State::Closed, Outcome::Failure) => {
                let cooldown = machine.policy.mark_dead_on_failure()?;
                machine.open(now, cooldown)
            }
            (State::Probing { .. }, Outcome::Success) => {
                machine.policy.record_success();
                machine.policy.revived();
                machine.enter(now, State::Closed)
            }
            // The policy keeps its count, so that one more failure opens the breaker again.
            (State::Probing { .. }, Outcome::Answered) => machine.enter(now, State::Closed),
            (State::Probing { cooldown }, Outcome::Failure) => {
                let cooldown = machine.policy.mark_dead_on_failure().unwrap_or(cooldown);
                machine.open(now, cooldown)
            }
        }
    }

    fn abandon(&self, epoch: u64, now: Instant) {
        let mut machine = self.lock();
        if machine.epoch == epoch && matches!(machine.state, State::Probing { .. }) {
            machine.enter(now, State::Ready);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(machine: &Machine, now: Instant) -> Option<Refused> {
    match machine.state {
        State::Closed | State::Ready => None,
        State::Open { until } => until
            .checked_duration_since(now)
            .filter(|d| !d.is_zero())
            .map(|retry_after| Refused { retry_after }),
        // How long the probe takes is unknown; the cool-down is the scale on which this endpoint recovers.
        State::Probing { cooldown } => Some(Refused { retry_after: cooldown }),
    }
}

/// An admitted call. Report how it ended; dropping it reports that it was cancelled.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts as a cancelled call"]
pub struct Permit {
    breaker: Breaker,
    epoch: u64,
    /// A probe that is dropped changes nothing that is seen, so no other time is needed.
    admitted: Instant,
    change: Option<BreakerState>,
    reported: bool,
}

impl Permit {
    /// What letting the call through made of the breaker, if it changed.
    pub fn change(&self) -> Option<BreakerState> {
        self.change
    }

    /// Says how the call ended; what that made of the breaker, if it changed.
    pub fn report(mut self, now: Instant, outcome: Outcome) -> Option<BreakerState> {
        self.reported = true;
        self.breaker.report(self.epoch, now, outcome)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.reported {
            self.breaker.abandon(self.epoch, self.admitted);
        }
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
