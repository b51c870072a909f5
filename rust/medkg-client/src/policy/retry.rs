//! Whether a failed attempt is made again, and when.
//!
//! One function, [`decide`], over plain values. A retry has to pass every gate: the kind of failure allows it, the call
//! can be repeated without doing its work twice, attempts are left, the wait fits into the deadline, and the budget
//! pays for it. A wait that a peer prescribes for a full queue (`RESOURCE_EXHAUSTED` with `RetryInfo`) is paced by the
//! peer, so it costs neither attempts nor budget and is bounded by the deadline alone.

use std::time::{Duration, Instant};

use super::budget::RetryBudget;
use super::classify::{Action, Failed, Origin};
use super::deadline::Deadline;

/// What [`decide`] has to know besides the failure.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// True if doing the call's work twice is the same as doing it once.
    pub idempotent: bool,
    /// Attempts made so far, the failed one included, those that a full queue sent back excluded.
    pub attempts: u32,
    /// Most attempts for one call; 1 means no retries at all.
    pub max_attempts: u32,
    /// When the call ends.
    pub deadline: Deadline,
    /// The next back-off.
    pub backoff: Duration,
    /// True if an endpoint that this call has not tried yet would take it.
    pub untried_endpoint: bool,
    /// The client's retries.
    pub budget: &'a RetryBudget,
    /// The time.
    pub now: Instant,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Wait, then try again.
    Retry {
        /// How long to wait.
        after: Duration,
        /// True if the peer prescribed the wait, so that the attempt does not count.
        paced: bool,
    },
    /// Hand the error to the caller.
    Stop(Stop),
}

/// Why a call is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// Trying again cannot help.
    Permanent,
    /// The peer may have done the work already, and doing it twice is not the same as once.
    NotIdempotent,
    /// Every attempt has been made.
    AttemptsSpent,
    /// No time is left.
    DeadlineSpent,
    /// The client makes too many retries already.
    BudgetSpent,
    /// The peer asks for more time than is left.
    WaitTooLong,
}

impl Stop {
    /// True if the client has done what it could: repeating the call right away is no new chance.
    pub const fn exhausted(self) -> bool {
        matches!(self, Self::AttemptsSpent | Self::DeadlineSpent | Self::BudgetSpent)
    }
}

/// Whether and when to try again after `failed`.
pub fn decide(failed: Failed, situation: Situation<'_>) -> Decision {
    let row = failed.kind.row();
    if row.action == Action::Fail {
        return Decision::Stop(Stop::Permanent);
    }
    if !situation.idempotent && failed.origin != Origin::NeverSent {
        return Decision::Stop(Stop::NotIdempotent);
    }
    let paced = row.action == Action::AsTold && failed.pushback.is_some() && situation.max_attempts > 1;
    if !paced && situation.attempts >= situation.max_attempts {
        return Decision::Stop(Stop::AttemptsSpent);
    }
    let after = match (row.action, failed.pushback) {
        // Another machine has not failed yet: no reason to wait.
        (Action::Elsewhere, _) if situation.untried_endpoint => Duration::ZERO,
        (_, Some(told)) => told.max(situation.backoff),
        (_, None) => situation.backoff,
    };
    if !situation.deadline.allows(situation.now, after) {
        return Decision::Stop(if failed.pushback.is_some() {
            Stop::WaitTooLong
        } else {
            Stop::DeadlineSpent
        });
    }
    if !paced && !situation.budget.withdraw(situation.now) {
        return Decision::Stop(Stop::BudgetSpent);
    }
    Decision::Retry { after, paced }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);
    const BACKOFF: Duration = Duration::from_millis(100);

    struct Setting {
        budget: RetryBudget,
        now: Instant,
    }

    impl Setting {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                budget: RetryBudget::try_new(0.2, now).unwrap(),
                now,
            }
        }

        fn situation(&self) -> Situation<'_> {
            Situation {
                idempotent: true,
                attempts: 1,
                max_attempts: 4,
                deadline: Deadline::after(self.now, 10 * SECOND),
                backoff: BACKOFF,
                untried_endpoint: false,
                budget: &self.budget,
                now: self.now,
            }
        }
    }

    fn failed(kind: ErrorKind) -> Failed {
        Failed {
            kind,
            origin: Origin::Peer,
            pushback: None,
            loading: false,
        }
    }

    // requirement: isolation 6.3
    #[test]
    fn only_transient_kinds_are_retried() {
        for kind in ErrorKind::ALL {
            let setting = Setting::new();
            let retried = matches!(decide(failed(kind), setting.situation()), Decision::Retry { .. });
            let expected = matches!(
                kind,
                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::RateLimited
            );
            assert_eq!(retried, expected, "{kind:?}");
        }
    }

    // requirement: isolation 5.4
    #[test]
    fn a_gpu_fault_is_final_even_when_told_to_wait_and_with_another_endpoint_at_hand() {
        let setting = Setting::new();
        for kind in [ErrorKind::GpuUnavailable, ErrorKind::GpuLost, ErrorKind::GpuOutOfMemory] {
            for origin in [Origin::NeverSent, Origin::Broken, Origin::Timeout, Origin::Peer] {
                let failed = Failed {
                    kind,
                    origin,
                    pushback: Some(SECOND),
                    loading: false,
                };
                let situation = Situation {
                    untried_endpoint: true,
                    ..setting.situation()
                };
                assert_eq!(decide(failed, situation), Decision::Stop(Stop::Permanent));
            }
        }
    }

    #[test]
    fn work_that_must_not_be_done_twice_is_repeated_only_if_it_was_never_sent() {
        let setting = Setting::new();
        let situation = Situation {
            idempotent: false,
            ..setting.situation()
        };
        for (origin, repeated) in [
            (Origin::NeverSent, true),
            (Origin::Broken, false),
            (Origin::Peer, false),
        ] {
            let decision = decide(
                Failed {
                    origin,
                    ..failed(ErrorKind::Unavailable)
                },
                situation,
            );
            assert_eq!(matches!(decision, Decision::Retry { .. }), repeated, "{origin:?}");
        }
    }

    #[test]
    fn attempts_are_bounded() {
        let setting = Setting::new();
        let situation = Situation {
            attempts: 4,
            ..setting.situation()
        };
        assert_eq!(
            decide(failed(ErrorKind::Unavailable), situation),
            Decision::Stop(Stop::AttemptsSpent)
        );
        assert!(Stop::AttemptsSpent.exhausted());
    }

    #[test]
    fn the_next_endpoint_is_tried_at_once_and_the_same_one_after_a_back_off() {
        let setting = Setting::new();
        let here = decide(failed(ErrorKind::Unavailable), setting.situation());
        assert_eq!(
            here,
            Decision::Retry {
                after: BACKOFF,
                paced: false
            }
        );
        let elsewhere = Situation {
            untried_endpoint: true,
            ..setting.situation()
        };
        let there = decide(failed(ErrorKind::Unavailable), elsewhere);
        assert_eq!(
            there,
            Decision::Retry {
                after: Duration::ZERO,
                paced: false
            }
        );
    }

    #[test]
    fn the_peers_wait_is_obeyed_and_costs_nothing() {
        let setting = Setting::new();
        let told = Failed {
            pushback: Some(2 * SECOND),
            ..failed(ErrorKind::RateLimited)
        };
        for _ in 0..1000 {
            let situation = Situation {
                attempts: 4,
                ..setting.situation()
            };
            assert_eq!(
                decide(told, situation),
                Decision::Retry {
                    after: 2 * SECOND,
                    paced: true
                }
            );
        }
        assert!(setting.budget.withdraw(setting.now), "the budget was not touched");
    }

    #[test]
    fn a_peer_that_asks_for_no_wait_at_all_is_still_given_the_back_off() {
        let setting = Setting::new();
        let told = Failed {
            pushback: Some(Duration::ZERO),
            ..failed(ErrorKind::RateLimited)
        };
        assert_eq!(
            decide(told, setting.situation()),
            Decision::Retry {
                after: BACKOFF,
                paced: true
            }
        );
    }

    #[test]
    fn a_wait_that_does_not_fit_ends_the_call_and_leaves_it_to_the_caller() {
        let setting = Setting::new();
        let told = Failed {
            pushback: Some(11 * SECOND),
            ..failed(ErrorKind::RateLimited)
        };
        assert_eq!(decide(told, setting.situation()), Decision::Stop(Stop::WaitTooLong));
        assert!(!Stop::WaitTooLong.exhausted());
        let situation = Situation {
            backoff: 10 * SECOND,
            ..setting.situation()
        };
        assert_eq!(
            decide(failed(ErrorKind::Timeout), situation),
            Decision::Stop(Stop::DeadlineSpent)
        );
    }

    #[test]
    fn one_attempt_means_one_even_for_a_full_queue() {
        let setting = Setting::new();
        let told = Failed {
            pushback: Some(SECOND),
            ..failed(ErrorKind::RateLimited)
        };
        let situation = Situation {
            max_attempts: 1,
            ..setting.situation()
        };
        assert_eq!(decide(told, situation), Decision::Stop(Stop::AttemptsSpent));
    }

    #[test]
    fn the_budget_ends_a_storm() {
        let setting = Setting::new();
        let decisions: Vec<_> = (0..20)
            .map(|_| decide(failed(ErrorKind::Unavailable), setting.situation()))
            .collect();
        assert_eq!(
            decisions.iter().filter(|d| matches!(d, Decision::Retry { .. })).count(),
            10
        );
        assert_eq!(decisions[19], Decision::Stop(Stop::BudgetSpent));
    }

    #[test]
    fn a_refused_wait_takes_nothing_from_the_budget() {
        let setting = Setting::new();
        let situation = Situation {
            backoff: 60 * SECOND,
            ..setting.situation()
        };
        for _ in 0..100 {
            decide(failed(ErrorKind::Unavailable), situation);
        }
        assert!(setting.budget.withdraw(setting.now));
    }
}
