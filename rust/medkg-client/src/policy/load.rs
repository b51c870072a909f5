//! How loaded an endpoint is: what the power of two choices compares (Mitzenmacher, "The Power of Two Choices in
//! Randomized Load Balancing", 2001).
//!
//! The load is the calls in flight, times how slow the endpoint is, times what keeps the load off an endpoint that has
//! just begun. A latency alone says little where one call embeds one word and the next one a hundred pages: so slowness
//! is the latency of a call divided by what calls of the same method and size usually take at all endpoints.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What lies this far back counts 1/e.
const MEMORY: Duration = Duration::from_secs(10);
/// So many usual values are put beside those that were measured.
const PRIOR: f64 = 10.0;
/// An endpoint that has just begun is given its full share after this time.
const SLOW_START: Duration = Duration::from_secs(10);
/// How much an endpoint that has just begun is made to look worse than it is.
const SLOW_START_FACTOR: f64 = 10.0;
/// One answer that took an hour must not keep an endpoint out for ever.
const SLOWEST: f64 = 100.0;

/// A mean of values that forgets exponentially with time.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecayingMean {
    sum: f64,
    weight: f64,
    at: Option<Instant>,
}

impl DecayingMean {
    fn decay(&mut self, now: Instant) {
        if let Some(at) = self.at {
            let kept = (-now.saturating_duration_since(at).div_duration_f64(MEMORY)).exp();
            self.sum *= kept;
            self.weight *= kept;
        }
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    /// Takes a value in.
    pub fn add(&mut self, value: f64, now: Instant) {
        self.decay(now);
        self.sum += value;
        self.weight += 1.0;
    }

    /// The mean; none before the first value.
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// The mean together with ten values `usual` that are not forgotten: a few values, or what is long ago, say little.
    pub fn settling(mut self, usual: f64, now: Instant) -> f64 {
        self.decay(now);
        (self.sum + PRIOR * usual) / (self.weight + PRIOR)
    }

    /// How many values it rests on, those of long ago counted less.
    pub fn weight(mut self, now: Instant) -> f64 {
        self.decay(now);
        self.weight
    }
}

/// What a call of a method and a size usually takes.
#[derive(Debug, Default)]
pub struct Typical {
    /// By method and by the binary logarithm of the bytes.
    latencies: HashMap<(&'static str, u32), DecayingMean>,
}

impl Typical {
    /// Takes a latency in; how it compares with what is usual: 2.0 is twice as slow.
    pub fn compare(&mut self, method: &'static str, bytes: usize, latency: Duration, now: Instant) -> f64 {
        let usual = self.latencies.entry((method, bytes.max(1).ilog2())).or_default();
        usual.add(latency.as_secs_f64(), now);
        let ratio = usual.mean().map_or(1.0, |mean| latency.as_secs_f64() / mean);
        if ratio.is_finite() { ratio.min(SLOWEST) } else { 1.0 }
    }
}

/// The load of an endpoint with `pending` calls, whose latencies are `slowness` times the usual ones, and which has been in
/// use for `age`.
pub fn load(pending: usize, slowness: f64, age: Duration) -> f64 {
    let age = age.div_duration_f64(SLOW_START);
    let beginning = if age < 1.0 {
        (1.0 / age).min(SLOW_START_FACTOR)
    } else {
        1.0
    };
    // So many calls are never in flight that a float would not hold them exactly.
    #[expect(clippy::cast_precision_loss)]
    let pending = pending as f64 + 1.0;
    pending * slowness * beginning
}

/// True if a load is clearly less than another one. What differs by less than a quarter is noise: where it decided, a
/// single caller would always be sent to the same one of two equal endpoints.
pub fn lighter(one: f64, other: f64) -> bool {
    one * 1.25 < other
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const OLD: Duration = Duration::from_secs(3600);

    proptest! {
        #[test]
        fn a_mean_lies_within_its_values(values in prop::collection::vec(0.0_f64..1e6, 1..50), gap in 0_u64..100_000) {
            let (mut mean, mut now) = (DecayingMean::default(), Instant::now());
            for value in &values {
                mean.add(*value, now);
                now += Duration::from_millis(gap);
            }
            let least = values.iter().copied().fold(f64::MAX, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let found = mean.mean().unwrap();
            prop_assert!(found >= least - 1e-6 && found <= most + 1e-6, "{found} outside [{least}, {most}]");
        }
    }

    #[test]
    fn the_past_is_forgotten() {
        let (mut mean, now) = (DecayingMean::default(), Instant::now());
        for _ in 0..1000 {
            mean.add(10.0, now);
        }
        mean.add(1.0, now + 20 * MEMORY);
        assert!(mean.mean().unwrap() < 1.01, "{mean:?}");
        assert!(mean.weight(now + 40 * MEMORY) < 0.01);
    }

    #[test]
    fn what_is_long_ago_says_little() {
        let (mut mean, now) = (DecayingMean::default(), Instant::now());
        assert!((mean.settling(1.0, now) - 1.0).abs() < f64::EPSILON);
        for _ in 0..90 {
            mean.add(3.0, now);
        }
        assert!((mean.settling(1.0, now) - 2.8).abs() < 1e-9);
        assert!(mean.settling(1.0, now + 20 * MEMORY) < 1.01);
    }

    #[test]
    fn small_differences_are_none() {
        assert!(!lighter(1.0, 1.2) && !lighter(1.2, 1.0));
        assert!(lighter(1.0, 1.3));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_is_borne() {
        let (mut mean, now) = (DecayingMean::default(), Instant::now() + SECOND);
        mean.add(1.0, now);
        mean.add(3.0, now.checked_sub(SECOND).unwrap());
        assert_eq!(mean.mean(), Some(2.0));
    }

    #[test]
    fn calls_are_compared_with_calls_of_their_kind_and_size() {
        let (mut typical, now) = (Typical::default(), Instant::now());
        for _ in 0..100 {
            typical.compare("GenerateEmbeddings", 100, Duration::from_millis(1), now);
            typical.compare("GenerateEmbeddings", 1_000_000, Duration::from_secs(1), now);
        }
        let large = typical.compare("GenerateEmbeddings", 1_000_000, Duration::from_secs(1), now);
        assert!((large - 1.0).abs() < 0.01, "a large call is no slow one: {large}");
        let slow = typical.compare("GenerateEmbeddings", 100, Duration::from_millis(3), now);
        assert!((slow - 3.0).abs() < 0.1, "{slow}");
        let first = typical.compare("ListModels", 100, Duration::from_secs(5), now);
        assert!((first - 1.0).abs() < f64::EPSILON);
        assert!((typical.compare("ListModels", 100, OLD, now) - SLOWEST).abs() < SLOWEST);
    }

    #[test]
    fn no_time_at_all_is_no_slowness() {
        let mut typical = Typical::default();
        assert!((typical.compare("GetStatus", 0, Duration::ZERO, Instant::now()) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn load_grows_with_calls_and_slowness_and_falls_with_age() {
        assert!(load(1, 1.0, OLD) > load(0, 1.0, OLD));
        assert!(load(0, 2.0, OLD) > load(0, 1.0, OLD));
        assert!(load(0, 1.0, SECOND) > load(0, 1.0, 5 * SECOND));
        assert!(load(0, 1.0, 5 * SECOND) > load(0, 1.0, SLOW_START));
        let new = load(0, 1.0, Duration::ZERO);
        assert!(
            (new - SLOW_START_FACTOR).abs() < f64::EPSILON,
            "a new one is used, if seldom: {new}"
        );
    }
}
