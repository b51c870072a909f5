//! How many retries a client may make, over all of its calls: a token bucket.
//!
//! Retries help while few calls fail; once most fail they only add load. So each call pays a share of a token in, each
//! retry takes a whole one out, and a quiet client always keeps a small reserve. With the ratio at 0.2, a peer that
//! fails every call sees at most 1.2 times the calls plus the reserve.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tokens a client has at the start and gets back while it is quiet.
const RESERVE: f64 = 10.0;
/// Most tokens that a busy client can save up.
const CEILING: f64 = 100.0;
/// Time in which an empty reserve fills up.
const REFILL: Duration = Duration::from_secs(10);

/// The retries that are left.
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RetryBudget {
    /// None unless `ratio`, in retries per call, is from 0 (no retries) to 10.
    pub fn try_new(ratio: f64, now: Instant) -> Option<Self> {
        let tokens = if ratio > 0.0 { RESERVE } else { 0.0 };
        (0.0..=10.0).contains(&ratio).then(|| Self {
            ratio,
            bucket: Mutex::new(Bucket { tokens, at: now }),
        })
    }

    /// Notes a call's first attempt.
    pub fn deposit(&self, now: Instant) {
        let mut bucket = self.refilled(now);
        bucket.tokens = (bucket.tokens + self.ratio).min(CEILING);
    }

    /// Takes a token for a retry; false if there is none.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut bucket = self.refilled(now);
        let enough = self.ratio > 0.0 && bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }

    fn refilled(&self, now: Instant) -> std::sync::MutexGuard<'_, Bucket> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = now.saturating_duration_since(bucket.at);
        bucket.at = bucket.at.max(now);
        if self.ratio > 0.0 && bucket.tokens < RESERVE {
            bucket.tokens = (bucket.tokens + RESERVE * idle.div_duration_f64(REFILL)).min(RESERVE);
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(budget: &RetryBudget, now: Instant) -> usize {
        std::iter::from_fn(|| budget.withdraw(now).then_some(())).count()
    }

    #[test]
    fn a_new_client_has_its_reserve_and_no_more() {
        let now = Instant::now();
        assert_eq!(drain(&RetryBudget::try_new(0.2, now).unwrap(), now), 10);
    }

    #[test]
    fn five_calls_earn_one_retry() {
        let now = Instant::now();
        let budget = RetryBudget::try_new(0.2, now).unwrap();
        drain(&budget, now);
        for _ in 0..25 {
            budget.deposit(now);
        }
        assert_eq!(drain(&budget, now), 5);
    }

    #[test]
    fn a_quiet_client_gets_its_reserve_back() {
        let now = Instant::now();
        let budget = RetryBudget::try_new(0.2, now).unwrap();
        drain(&budget, now);
        assert_eq!(drain(&budget, now + REFILL / 2), 5);
        assert_eq!(drain(&budget, now + 100 * REFILL), 10);
    }

    #[test]
    fn savings_are_bounded() {
        let now = Instant::now();
        let budget = RetryBudget::try_new(1.0, now).unwrap();
        for _ in 0..10_000 {
            budget.deposit(now);
        }
        assert_eq!(drain(&budget, now), 100);
    }

    #[test]
    fn a_ratio_of_zero_means_no_retries_ever() {
        let now = Instant::now();
        let budget = RetryBudget::try_new(0.0, now).unwrap();
        budget.deposit(now);
        assert!(!budget.withdraw(now + 100 * REFILL));
    }

    #[test]
    fn a_ratio_that_makes_no_sense_cannot_be_built() {
        let now = Instant::now();
        for ratio in [-0.1, 10.1, f64::NAN, f64::INFINITY] {
            assert!(RetryBudget::try_new(ratio, now).is_none(), "{ratio}");
        }
    }
}
