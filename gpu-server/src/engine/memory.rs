//! How many tokens fit into a GPU's memory, from two forward passes that are measured when a model is loaded. Pure: what
//! computes is passed in. A CPU has no such limit here.
//!
//! A packed batch needs memory in proportion to its tokens, plus something fixed. Nothing of this has run on a GPU yet.

/// Part of the free memory that batches may take; the rest is for fragments and for what else is on the device.
const USABLE: f64 = 0.8;
/// Tokens of the passes.
const PROBES: (usize, usize) = (1_024, 8_192);

/// Bytes that a batch needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryModel {
    fixed: f64,
    per_token: f64,
}

impl MemoryModel {
    /// From the tokens and the bytes of a small pass and of a large one; none where they say nothing (an allocator that
    /// took no more for the large one).
    pub fn calibrated(small: (usize, u64), large: (usize, u64)) -> Option<Self> {
        let tokens = large.0.checked_sub(small.0).filter(|&tokens| tokens > 0)?;
        let bytes = large.1.checked_sub(small.1).filter(|&bytes| bytes > 0)?;
        let per_token = bytes as f64 / tokens as f64;
        let fixed = per_token.mul_add(-(small.0 as f64), small.1 as f64).max(0.0);
        Some(Self { fixed, per_token })
    }

    /// Tokens of the largest batch that fits into `free` bytes; at least 1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // floats saturate
    pub fn most_tokens(&self, free: u64) -> usize {
        ((free as f64).mul_add(USABLE, -self.fixed) / self.per_token).max(1.0) as usize
    }
}

/// Tokens of the largest batch that a model may be given; none where nothing could be learned.
///
/// `taken` computes about so many tokens, and says how many they were and how many bytes fewer the device has free since then;
/// none if that failed. `free` says what the device has free.
pub fn largest_batch(taken: impl Fn(usize) -> Option<(usize, u64)>, free: impl Fn() -> Option<u64>) -> Option<usize> {
    let small = taken(PROBES.0)?;
    let Some(large) = taken(PROBES.1) else {
        return Some(small.0);
    };
    // The allocator keeps what the first pass took, so the second one took only what it needs beyond that; and what both
    // took is there for the next batch.
    let held = small.1 + large.1;
    let model = MemoryModel::calibrated(small, (large.0, held))?;
    Some(model.most_tokens(free()?.saturating_add(held)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A device with an allocator that keeps what it took, as libtorch's does.
    struct Device {
        memory: u64,
        fixed: u64,
        per_token: u64,
        kept: Cell<u64>,
    }

    impl Device {
        fn needed(&self, tokens: usize) -> u64 {
            self.fixed + self.per_token * tokens as u64
        }

        fn taken(&self, tokens: usize) -> Option<(usize, u64)> {
            let (kept, needed) = (self.kept.get(), self.needed(tokens));
            if needed > self.memory {
                return None;
            }
            self.kept.set(kept.max(needed));
            Some((tokens, needed.saturating_sub(kept)))
        }

        fn largest_batch(&self) -> Option<usize> {
            largest_batch(|tokens| self.taken(tokens), || Some(self.memory - self.kept.get()))
        }
    }

    proptest! {
        #[test]
        fn the_largest_batch_fits_and_is_not_small(
            fixed in 0_u64..1_000_000,
            per_token in 1_u64..100_000,
            tokens in 8_192_usize..1_000_000,
        ) {
            let mut device = Device { memory: 0, fixed, per_token, kept: Cell::new(0) };
            device.memory = device.needed(tokens);
            let most = device.largest_batch().unwrap();
            prop_assert!(device.needed(most) <= device.memory, "{most} of {tokens}");
            // Nothing but the reserve is left over.
            let reserve = (1.0 - USABLE) * device.memory as f64;
            prop_assert!((device.needed(most + 1) as f64) + reserve > device.memory as f64 * 0.999, "{most} of {tokens}");
        }
    }

    #[test]
    fn a_model_whose_large_pass_fails_is_given_small_batches() {
        let mut device = Device {
            memory: 0,
            fixed: 5,
            per_token: 7,
            kept: Cell::new(0),
        };
        assert_eq!(device.largest_batch(), None, "nothing could be computed");
        device.memory = device.needed(5_000);
        assert_eq!(device.largest_batch(), Some(PROBES.0));
    }

    #[test]
    fn two_passes_tell_what_fits() {
        let model = MemoryModel::calibrated((100, 1_500), (300, 3_500)).unwrap();
        // 500 bytes fixed, 10 a token; 0.8 of 100,000 are usable.
        assert_eq!(model.most_tokens(100_000), 7_950);
        assert_eq!(model.most_tokens(0), 1);
        assert!(MemoryModel::calibrated((100, 1_500), (300, 1_500)).is_none());
    }
}
