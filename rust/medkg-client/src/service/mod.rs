//! One file per service of `proto/medkg/v1`: plain values in, plain values out.
//!
//! The generated types of the wire are built and taken apart here and go no further. What an answer promises (shapes,
//! lengths, indices) is checked before anybody relies on it; an answer that breaks a promise is the server's error.

pub mod embedding;
pub mod gpu;
pub(crate) mod health;
mod model_info;
pub mod reranking;
pub mod vector;

use std::time::Duration;

pub(crate) use medkg_proto::MAX_MESSAGE_BYTES;
use medkg_proto::v1;
pub use model_info::{ModelInfo, ModelKind, ModelState, Pooling, Prompt};

/// What a call cost. The parts of a split call are added up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens computed, special tokens included, padding not.
    pub tokens: u64,
    /// Forward passes that held a part of the call.
    pub batches: u64,
    /// Time between tokenisation and the first forward pass.
    pub queue_time: Duration,
    /// Wall time of those forward passes; they are shared with other calls.
    pub compute_time: Duration,
    /// Where it was computed, e.g. `cpu` or `cuda:0`; several are separated by commas.
    pub device: String,
    /// Requests that the call was split into.
    pub calls: u64,
    /// Attempts beyond the first, over all requests.
    pub retries: u64,
    /// Texts whose embedding was in the cache, or was being computed for another call.
    pub cache_hits: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, part: Option<v1::Usage>, retries: u32) {
        let part = part.unwrap_or_default();
        self.tokens += part.tokens;
        self.batches += u64::from(part.batches);
        self.queue_time += duration(part.queue_time);
        self.compute_time += duration(part.compute_time);
        self.calls += 1;
        self.retries += u64::from(retries);
        if !part.device.is_empty() && !self.device.split(',').any(|device| device == part.device) {
            if !self.device.is_empty() {
                self.device.push(',');
            }
            self.device.push_str(&part.device);
        }
    }
}

impl Usage {
    /// Adds what another part of the call cost.
    pub(crate) fn merge(&mut self, other: &Self) {
        let mut devices: Vec<&str> = self.device.split(',').filter(|device| !device.is_empty()).collect();
        devices.extend(
            other
                .device
                .split(',')
                .filter(|device| !device.is_empty() && !self.device.contains(device)),
        );
        let device = devices.join(",");
        self.device = device;
        self.tokens += other.tokens;
        self.batches += other.batches;
        self.queue_time += other.queue_time;
        self.compute_time += other.compute_time;
        self.calls += other.calls;
        self.retries += other.retries;
        self.cache_hits += other.cache_hits;
    }
}

/// What to do with a text that has more tokens than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// Keep the first tokens.
    Right,
    /// Keep the last tokens; for embeddings only.
    Left,
    /// Refuse the call.
    Refuse,
}

fn truncation(truncation: Option<Truncation>) -> i32 {
    i32::from(match truncation {
        None => v1::Truncation::Unspecified,
        Some(Truncation::Right) => v1::Truncation::Right,
        Some(Truncation::Left) => v1::Truncation::Left,
        Some(Truncation::Refuse) => v1::Truncation::Refuse,
    })
}

/// A negative or absent duration is zero.
fn duration(duration: Option<prost_types::Duration>) -> Duration {
    duration
        .and_then(|duration| duration.try_into().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_added_up() {
        let part = |device: &str| v1::Usage {
            tokens: 10,
            batches: 2,
            queue_time: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            compute_time: Some(prost_types::Duration {
                seconds: 0,
                nanos: 500_000_000,
            }),
            device: device.to_owned(),
        };
        let mut usage = Usage::default();
        usage.add(Some(part("cuda:0")), 0);
        usage.add(Some(part("cuda:1")), 2);
        usage.add(Some(part("cuda:0")), 0);
        usage.add(None, 0);
        let expected = Usage {
            tokens: 30,
            batches: 6,
            queue_time: Duration::from_secs(3),
            compute_time: Duration::from_millis(1500),
            device: "cuda:0,cuda:1".to_owned(),
            calls: 4,
            retries: 2,
            cache_hits: 0,
        };
        assert_eq!(usage, expected);
    }
}
