//! How long to wait between attempts: decorrelated jitter.
//!
//! Each delay is drawn from `[initial, 3 × previous]` and capped, so that clients that failed together do not come back
//! together, and a long outage is met with long delays. failsafe has back-offs of its own, but in whole seconds and
//! with assertions for bad values; a [`Backoff`] cannot be invalid.

use std::time::Duration;

/// The bounds of the delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

impl Backoff {
    /// None unless `0 < initial <= max`.
    pub fn try_new(initial: Duration, max: Duration) -> Option<Self> {
        (!initial.is_zero() && initial <= max).then_some(Self { initial, max })
    }

    /// Delays for one call, beginning with short ones.
    pub fn delays(self) -> Delays {
        Delays {
            bounds: self,
            previous: self.initial,
        }
    }
}

/// The delays of one call.
#[derive(Debug, Clone)]
pub struct Delays {
    bounds: Backoff,
    previous: Duration,
}

impl Delays {
    /// The next delay, within the bounds.
    pub fn next(&mut self, random: &mut fastrand::Rng) -> Duration {
        let Backoff { initial, max } = self.bounds;
        let ceiling = self.previous.saturating_mul(3).min(max);
        let span = ceiling.saturating_sub(initial);
        // Rounding must not step over the cap.
        self.previous = (initial + span.mul_f64(random.f64())).min(max);
        self.previous
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_within_the_bounds_and_grow_at_most_threefold(
            initial in 1_u64..10_000_000_000, extra in 0_u64..1_000_000_000_000, seed: u64,
        ) {
            let (initial, max) = (Duration::from_nanos(initial), Duration::from_nanos(initial + extra));
            let mut delays = Backoff::try_new(initial, max).unwrap().delays();
            let mut random = fastrand::Rng::with_seed(seed);
            let mut previous = initial;
            for _ in 0..50 {
                let delay = delays.next(&mut random);
                prop_assert!(delay >= initial && delay <= max, "{delay:?} outside [{initial:?}, {max:?}]");
                prop_assert!(delay <= previous * 3 + Duration::from_nanos(1));
                previous = delay;
            }
        }
    }

    #[test]
    fn bounds_that_make_no_sense_cannot_be_built() {
        assert_eq!(Backoff::try_new(Duration::ZERO, Duration::from_secs(1)), None);
        assert_eq!(Backoff::try_new(Duration::from_secs(2), Duration::from_secs(1)), None);
    }

    #[test]
    fn two_clients_do_not_come_back_together() {
        let backoff = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(5)).unwrap();
        let draw = |seed| {
            let (mut delays, mut random) = (backoff.delays(), fastrand::Rng::with_seed(seed));
            (0..4).map(|_| delays.next(&mut random)).collect::<Vec<_>>()
        };
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn an_outage_is_met_with_delays_near_the_cap() {
        let backoff = Backoff::try_new(Duration::from_millis(10), Duration::from_secs(1)).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let mut delays = backoff.delays();
        let longest = (0..100).map(|_| delays.next(&mut random)).max().unwrap();
        assert!(longest > Duration::from_millis(500), "never grew: {longest:?}");
    }
}
