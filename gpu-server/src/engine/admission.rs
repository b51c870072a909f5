//! Keeps the queue bounded, and says when to come back. Pure: time is passed in.
//!
//! Tokens are counted from admission to the answer. A tenant may hold no more than a multiple of the room that is left
//! (Choudhury and Hahne 1998, "Dynamic queue length thresholds"): one tenant alone gets most of the queue, and there is room for
//! another one whatever the first does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

/// A tenant holds at most this many times the room that is left.
const SHARE: usize = 7;
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(60);
/// What is said before anything was measured.
const UNKNOWN: Duration = Duration::from_secs(1);

/// Who holds how many tokens, and how fast they go.
#[derive(Debug)]
pub struct Admission {
    limit: usize,
    held: usize,
    tenants: HashMap<Arc<str>, usize>,
    lanes: usize,
    /// Exponentially weighted tokens per second of a lane; 0 until something was computed.
    rate: f64,
}

impl Admission {
    /// At most `limit` tokens, computed by `lanes` at a time.
    pub fn new(limit: usize, lanes: usize) -> Self {
        Self {
            limit,
            held: 0,
            tenants: HashMap::new(),
            lanes,
            rate: 0.0,
        }
    }

    /// Takes room for `tokens`. A job larger than what there is for it is let in when nothing else is held.
    ///
    /// # Errors
    /// [`Error::QueueFull`] with the time after which there should be room.
    pub fn admit(&mut self, tenant: &Arc<str>, tokens: usize) -> Result<(), Error> {
        self.check(tenant, tokens)?;
        self.held += tokens;
        *self.tenants.entry(Arc::clone(tenant)).or_default() += tokens;
        Ok(())
    }

    /// Whether [`Self::admit`] would let `tokens` in.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, tenant: &str, tokens: usize) -> Result<(), Error> {
        let own = self.tenants.get(tenant).copied().unwrap_or(0);
        let left = self.limit.checked_sub(self.held.saturating_add(tokens));
        if self.held == 0 || left.is_some_and(|left| own + tokens <= SHARE * left) {
            return Ok(());
        }
        Err(Error::QueueFull {
            waiting: format!("{} tokens", self.held),
            retry_after: self.retry_after(own, tokens),
        })
    }

    /// Gives room back.
    pub fn release(&mut self, tenant: &Arc<str>, tokens: usize) {
        self.held -= tokens;
        if let Some(own) = self.tenants.get_mut(tenant) {
            *own -= tokens;
            if *own == 0 {
                self.tenants.remove(tenant);
            }
        }
    }

    /// Notes that a lane computed `tokens` in `elapsed`.
    pub fn observe(&mut self, tokens: usize, elapsed: Duration) {
        let sample = tokens as f64 / elapsed.as_secs_f64().max(1e-6);
        self.rate = if self.rate > 0.0 {
            self.rate.mul_add(0.9, sample * 0.1)
        } else {
            sample
        };
    }

    /// How long `tokens` take all lanes.
    pub fn time_for(&self, tokens: usize) -> Duration {
        if self.rate <= 0.0 {
            return UNKNOWN;
        }
        let seconds = tokens as f64 / (self.rate * self.lanes as f64);
        Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64())).max(SHORTEST)
    }

    /// Until enough has been computed: of the tenant's own tokens, at its share of the speed, where it has some.
    fn retry_after(&self, own: usize, wanted: usize) -> Duration {
        // Each token that goes frees room and lowers what the tenant holds, if it is its own.
        let over = (own + wanted + SHARE * (self.held + wanted)).saturating_sub(SHARE * self.limit);
        let (surplus, share) = match own {
            0 => (over.div_ceil(SHARE), 1),
            _ => (over.div_ceil(SHARE + 1), self.tenants.len()),
        };
        self.time_for(surplus.min(self.held).saturating_mul(share))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small and not negative

    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn refusal(result: Result<(), Error>) -> (String, Duration) {
        match result.unwrap_err() {
            Error::QueueFull { waiting, retry_after } => (waiting, retry_after),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_to_come_back() {
        let a = tenant("a");
        let mut admission = Admission::new(800, 2);
        admission.admit(&a, 700).unwrap();
        assert_eq!(refusal(admission.admit(&a, 8)), ("700 tokens".to_owned(), UNKNOWN));
        admission.observe(20, Duration::from_secs(1));
        let (_, wait) = refusal(admission.admit(&a, 80));
        // At most 7/8 of 800 may be held: 80 tokens must go, at 20 a second on each of two lanes.
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-9, "{wait:?}");
        admission.release(&a, 80);
        admission.admit(&a, 80).unwrap();
    }

    #[test]
    fn a_flood_leaves_room_for_another_tenant() {
        let (flood, other) = (tenant("flood"), tenant("other"));
        let mut admission = Admission::new(800, 1);
        while admission.admit(&flood, 10).is_ok() {}
        admission.admit(&other, 50).unwrap();
        admission.observe(10, Duration::from_secs(1));
        // The flood waits longer: it gets half of the speed.
        let (own, foreign) = (
            refusal(admission.admit(&flood, 60)).1,
            refusal(admission.admit(&tenant("new"), 60)).1,
        );
        assert!(own > foreign, "{own:?} {foreign:?}");
    }

    #[test]
    fn an_oversized_job_is_let_in_alone() {
        let a = tenant("a");
        let mut admission = Admission::new(10, 1);
        admission.admit(&a, 50).unwrap();
        assert!(admission.admit(&tenant("b"), 1).is_err());
        admission.release(&a, 50);
        assert!(admission.admit(&tenant("b"), 1).is_ok());
    }

    proptest! {
        #[test]
        fn after_the_wait_there_is_room(limit in 8_usize..10_000, jobs in proptest::collection::vec(1_usize..500, 1..60)) {
            let a = tenant("a");
            let mut admission = Admission::new(limit, 1);
            admission.observe(1, Duration::from_secs(1));
            for tokens in jobs {
                if let Err(Error::QueueFull { retry_after, .. }) = admission.admit(&a, tokens) {
                    prop_assert!(retry_after >= SHORTEST && retry_after <= LONGEST);
                    if tokens <= limit / 2 && retry_after < LONGEST {
                        // At one token a second, this many have gone.
                        let gone = retry_after.as_secs_f64().ceil() as usize;
                        admission.release(&a, gone.min(admission.held));
                        prop_assert!(admission.admit(&a, tokens).is_ok());
                    }
                }
                prop_assert!(admission.held <= limit.max(500));
            }
        }
    }
}
