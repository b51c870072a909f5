//! How full the GPU's memory is, as the NVML watch reads it: for the status, and for whoever waits for a change.
//!
//! A level is left only when the fraction in use is clearly below its threshold, so that memory which goes up and down around
//! a threshold is not told each time. Nothing is refused because of it: what does not fit fails by itself.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::MemoryThresholds;

/// How far below its threshold a level is left, as a fraction of the memory.
const MARGIN: f64 = 0.02;

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// There is enough.
    Normal,
    /// The first threshold was reached.
    Warn,
    /// The second threshold was reached.
    Critical,
}

/// Bytes of the device, of all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In use.
    pub used: u64,
    /// It has.
    pub total: u64,
    /// What that means.
    pub pressure: Pressure,
}

/// Written by the NVML watch, read by everyone.
#[derive(Debug, Clone)]
pub struct Gauge {
    thresholds: MemoryThresholds,
    memory: Arc<watch::Sender<Option<Memory>>>,
}

impl Gauge {
    /// Nothing is known yet.
    pub fn new(thresholds: MemoryThresholds) -> Self {
        Self {
            thresholds,
            memory: Arc::default(),
        }
    }

    /// The newest reading; none where NVML does not tell it.
    pub fn now(&self) -> Option<Memory> {
        *self.memory.borrow()
    }

    /// Wakes when the pressure changes, or becomes known or unknown; not at each reading.
    pub fn changes(&self) -> watch::Receiver<Option<Memory>> {
        self.memory.subscribe()
    }

    /// A reading of the device called `id`.
    pub fn read(&self, id: &str, used: u64, total: u64) {
        self.memory.send_if_modified(|memory| {
            let before = memory.map(|memory| memory.pressure);
            let pressure = level(before, fraction(used, total), self.thresholds);
            *memory = Some(Memory { used, total, pressure });
            let changed = before != Some(pressure);
            match pressure {
                _ if !changed => {}
                Pressure::Critical => tracing::error!(device = %id, used, total, "the GPU's memory is almost full"),
                Pressure::Warn => tracing::warn!(device = %id, used, total, "the GPU's memory is filling up"),
                Pressure::Normal if before.is_none() => {}
                Pressure::Normal => tracing::info!(device = %id, used, total, "the GPU has enough memory again"),
            }
            changed
        });
    }

    /// NVML tells it no more.
    pub fn forget(&self) {
        self.memory.send_if_modified(|memory| memory.take().is_some());
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a fraction of bytes needs no more than 52 bits"
)]
fn fraction(used: u64, total: u64) -> f64 {
    used as f64 / total.max(1) as f64
}

fn level(before: Option<Pressure>, used: f64, thresholds: MemoryThresholds) -> Pressure {
    let reached = |threshold: f64, held: bool| used >= threshold || (held && used >= threshold - MARGIN);
    if reached(thresholds.critical, before == Some(Pressure::Critical)) {
        Pressure::Critical
    } else if reached(
        thresholds.warn,
        matches!(before, Some(Pressure::Warn | Pressure::Critical)),
    ) {
        Pressure::Warn
    } else {
        Pressure::Normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: MemoryThresholds = MemoryThresholds {
        warn: 0.85,
        critical: 0.95,
    };

    #[test]
    fn a_level_is_reached_at_its_threshold_and_left_clearly_below_it() {
        use Pressure::{Critical, Normal, Warn};
        let gauge = Gauge::new(THRESHOLDS);
        assert!(gauge.now().is_none());
        let path = [
            (100, Normal),
            (849, Normal),
            (850, Warn),
            (849, Warn),
            (831, Warn),
            (829, Normal),
            (849, Normal),
            (960, Critical),
            (949, Critical),
            (931, Critical),
            (929, Warn),
            (949, Warn),
            (1_000, Critical),
            (840, Warn),
            (0, Normal),
        ];
        for (used, expected) in path {
            gauge.read("cuda:0", used, 1_000);
            let total = 1_000;
            let pressure = expected;
            assert_eq!(gauge.now(), Some(Memory { used, total, pressure }));
        }
        gauge.read("cuda:0", 0, 0);
        assert_eq!(
            gauge.now().map(|memory| memory.pressure),
            Some(Normal),
            "no division by 0"
        );
    }

    #[test]
    fn only_a_change_of_the_level_wakes_and_the_newest_reading_is_there() {
        let gauge = Gauge::new(THRESHOLDS);
        let changes = gauge.changes();
        gauge.read("cuda:0", 100, 1_000);
        assert!(changes.has_changed().unwrap(), "it became known");
        let changes = gauge.changes();
        gauge.read("cuda:0", 200, 1_000);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(gauge.now().map(|memory| memory.used), Some(200));
        gauge.read("cuda:0", 900, 1_000);
        gauge.read("cuda:0", 990, 1_000);
        assert!(changes.has_changed().unwrap());
        assert_eq!(
            changes.borrow().map(|memory| memory.pressure),
            Some(Pressure::Critical),
            "a slow reader gets the newest"
        );
        gauge.forget();
        assert!(gauge.now().is_none());
    }
}
