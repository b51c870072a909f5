//! The point in time after which nobody waits for the answer any more.
//!
//! A call has one deadline; every attempt, every wait and every connection is given what is left of it. There is no
//! second timeout inside an attempt: a slow answer that still comes in time is an answer.

use std::time::{Duration, Instant};

/// When a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `timeout` after `now`; a timeout that no clock can hold means about 136 years.
    pub fn after(now: Instant, timeout: Duration) -> Self {
        const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
        Self(now.checked_add(timeout.min(FOREVER)).unwrap_or(now))
    }

    /// The earlier of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// What is left; None once it has passed.
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        self.0.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// True if an attempt can still be made after waiting for `wait`.
    pub fn allows(self, now: Instant, wait: Duration) -> bool {
        self.remaining(now).is_some_and(|left| wait < left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_attempt_gets_what_is_left() {
        let start = Instant::now();
        let deadline = Deadline::after(start, 10 * SECOND);
        assert_eq!(deadline.remaining(start), Some(10 * SECOND));
        assert_eq!(deadline.remaining(start + 4 * SECOND), Some(6 * SECOND));
        assert_eq!(deadline.remaining(start + 10 * SECOND), None);
        assert_eq!(deadline.remaining(start + 11 * SECOND), None);
    }

    #[test]
    fn a_wait_that_leaves_no_time_is_not_worth_it() {
        let start = Instant::now();
        let deadline = Deadline::after(start, 10 * SECOND);
        assert!(deadline.allows(start, 9 * SECOND));
        assert!(!deadline.allows(start, 10 * SECOND));
        assert!(!deadline.allows(start + 10 * SECOND, Duration::ZERO));
    }

    #[test]
    fn an_absurd_timeout_does_not_overflow() {
        let start = Instant::now();
        assert!(Deadline::after(start, Duration::MAX).remaining(start) > Some(Duration::from_secs(1 << 31)));
    }

    #[test]
    fn the_earlier_deadline_wins() {
        let start = Instant::now();
        let (near, far) = (Deadline::after(start, SECOND), Deadline::after(start, 2 * SECOND));
        assert_eq!(near.min(far), near);
        assert_eq!(far.min(near), near);
    }
}
