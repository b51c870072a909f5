//! How many tokens fit into a GPU's memory, from two measured forward passes. Pure; a CPU has no such limit here.
//!
//! A packed batch needs memory in proportion to its tokens, plus something fixed. Nothing of this has run on a GPU yet.

/// Part of the free memory that batches may take; the rest is for fragments and for what else is on the device.
const USABLE: f64 = 0.8;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_passes_tell_what_fits() {
        let model = MemoryModel::calibrated((100, 1_500), (300, 3_500)).unwrap();
        // 500 bytes fixed, 10 a token; 0.8 of 100,000 are usable.
        assert_eq!(model.most_tokens(100_000), 7_950);
        assert_eq!(model.most_tokens(0), 1);
        assert!(MemoryModel::calibrated((100, 1_500), (300, 1_500)).is_none());
    }
}
