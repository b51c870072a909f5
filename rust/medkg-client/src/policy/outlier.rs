//! Which endpoint fails far more often than the others, though not often enough in a row for its breaker.
//!
//! Such an endpoint is set aside for a while, longer each time. It is a guess, so it is not acted upon where it would take
//! away too much: if less than half of the endpoints were left, all are used (a panic threshold, as Envoy has it: what
//! looks like many bad hosts is more often a bad network on this side).

use std::time::{Duration, Instant};

use super::load::DecayingMean;

/// Fewer calls than this say nothing.
const CALLS: f64 = 5.0;
/// The share of failures from which on an endpoint may be an outlier.
const RATE: f64 = 0.2;
/// How many times as often as the others it has to fail.
const TIMES: f64 = 2.0;
/// The first time aside; each further one is that much longer.
const ASIDE: Duration = Duration::from_secs(10);
/// The longest, in units of the first.
const LONGEST: u32 = 6;

/// How often calls to an endpoint fail, and whether it is set aside.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outlier {
    failures: DecayingMean,
    until: Option<Instant>,
    times: u32,
}

impl Outlier {
    /// Notes how a call ended, where the other endpoints fail at the rate `others`; true if that sets it aside.
    pub fn note(&mut self, failed: bool, others: f64, now: Instant) -> bool {
        self.failures.add(if failed { 1.0 } else { 0.0 }, now);
        if !failed {
            // A while of being well forgives.
            if self.until.is_some_and(|until| now > until + ASIDE * LONGEST) {
                self.times = 0;
            }
            return false;
        }
        let rate = self.rate();
        let out = self.failures.weight(now) >= CALLS && rate >= RATE && rate > TIMES * others;
        if !out || self.aside(now) {
            return false;
        }
        self.times = (self.times + 1).min(LONGEST);
        self.until = now.checked_add(ASIDE * self.times);
        // Afterwards it begins anew, so that it is not judged by what it was set aside for.
        self.failures = DecayingMean::default();
        true
    }

    /// The share of calls that failed lately.
    pub fn rate(&self) -> f64 {
        self.failures.mean().unwrap_or(0.0)
    }

    /// True while it is set aside.
    pub fn aside(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Since when it is back, if it was aside.
    pub fn back_since(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until <= now)
    }
}

/// True if so few of the endpoints are left that all have to be used.
pub fn panics(left: usize, all: usize) -> bool {
    left * 2 < all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(count: usize, of: usize, others: f64, now: Instant) -> Outlier {
        let mut outlier = Outlier::default();
        for call in 0..of {
            outlier.note(call * count / of != (call + 1) * count / of, others, now);
        }
        outlier
    }

    #[test]
    fn one_that_fails_more_often_than_the_others_is_set_aside_for_a_while() {
        let now = Instant::now();
        let outlier = failing(10, 30, 0.01, now);
        assert!(outlier.aside(now));
        assert!(outlier.aside(now + ASIDE.mul_f64(0.99)));
        assert!(!outlier.aside(now + ASIDE));
        assert_eq!(outlier.back_since(now + ASIDE), Some(now + ASIDE));
    }

    #[test]
    fn one_that_fails_as_often_as_the_others_is_no_outlier() {
        let now = Instant::now();
        assert!(!failing(10, 30, 0.3, now).aside(now));
    }

    #[test]
    fn a_few_calls_say_nothing() {
        let now = Instant::now();
        assert!(!failing(4, 4, 0.0, now).aside(now));
        assert!(!failing(1, 30, 0.0, now).aside(now), "one failure among many");
    }

    #[test]
    fn each_time_is_longer_and_being_well_forgives() {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        let mut lengths = Vec::new();
        for _ in 0..8 {
            while !outlier.note(true, 0.0, now) {}
            let begun = now;
            while outlier.aside(now) {
                now += Duration::from_secs(1);
            }
            lengths.push((now - begun).as_secs());
        }
        assert_eq!(lengths, [10, 20, 30, 40, 50, 60, 60, 60]);
        now += 20 * ASIDE;
        outlier.note(false, 0.0, now);
        while !outlier.note(true, 0.0, now) {}
        assert!(!outlier.aside(now + ASIDE));
    }

    #[test]
    fn half_of_the_endpoints_are_enough() {
        assert!(!panics(1, 2));
        assert!(panics(1, 3));
        assert!(!panics(0, 0));
    }
}
