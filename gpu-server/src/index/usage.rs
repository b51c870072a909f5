//! What is done to a collection, counted from the start of the server. Reading it needs neither the device nor the file.
//!
//! Latencies go into an HDR histogram: quantiles within 1 %, in memory that does not grow with the calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;

use crate::error::Error;

/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);
/// Two significant digits: within 1 %.
const DIGITS: u8 = 2;

/// Counts of one collection, or of all.
#[derive(Debug)]
pub struct Usage {
    counts: Mutex<Counts>,
    /// Microseconds.
    latencies: Mutex<Histogram<u64>>,
    /// What the view takes; kept here so that nobody has to ask the lane that has it.
    memory: Mutex<Memory>,
    /// What counts the same for all collections, also for those that are dropped.
    overall: Option<Arc<Self>>,
}

/// Bytes that views take, spare capacity included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of their vectors on the device.
    pub device: u64,
    /// Of the indexes of their sparse vectors, on the host.
    pub sparse_index: u64,
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.device += other.device;
        self.sparse_index += other.sparse_index;
    }
}

/// What was done. Only what succeeded is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that searched.
    pub searches: u64,
    /// Queries in them.
    pub queries: u64,
    /// Calls that wrote points.
    pub upserts: u64,
    /// Points in them.
    pub upserted_points: u64,
    /// Calls that removed points.
    pub deletes: u64,
    /// Points that they removed.
    pub deleted_points: u64,
    /// The end of the last write; None if there was none.
    pub last_write: Option<SystemTime>,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.searches += other.searches;
        self.queries += other.queries;
        self.upserts += other.upserts;
        self.upserted_points += other.upserted_points;
        self.deletes += other.deletes;
        self.deleted_points += other.deleted_points;
        self.last_write = self.last_write.max(other.last_write);
    }
}

/// How long searches took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    /// Half of them took at most this long.
    pub p50: Duration,
    /// Nine in ten.
    pub p90: Duration,
    /// 99 in 100.
    pub p99: Duration,
    /// The longest one.
    pub max: Duration,
}

/// The latencies of several collections together.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    ///
    /// # Errors
    /// [`Error::Internal`] when the histogram's bounds are refused.
    pub fn try_new() -> Result<Self, Error> {
        Ok(Self(histogram()?))
    }

    /// Their quantiles; None if there was no search.
    pub fn quantiles(&self) -> Option<Quantiles> {
        if self.0.is_empty() {
            return None;
        }
        let at = |quantile| Duration::from_micros(self.0.value_at_quantile(quantile));
        Some(Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

/// Latencies as Prometheus counts them.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// How many there were.
    pub count: u64,
    /// Seconds of all, within 1 %.
    pub sum: f64,
    /// Up to how many seconds, and how many more than in the one before; the last one has no bound.
    pub up_to: Vec<(f64, u64)>,
}

impl Latencies {
    /// Counts them between these bounds, which ascend.
    pub fn buckets(&self, bounds: &[Duration]) -> Buckets {
        let mut from = 0;
        let mut up_to: Vec<(f64, u64)> = Vec::new();
        for bound in bounds {
            let to = micros(*bound);
            up_to.push((bound.as_secs_f64(), self.0.count_between(from, to)));
            from = to + 1;
        }
        up_to.push((f64::INFINITY, self.0.count_between(from, u64::MAX)));
        Buckets {
            count: self.0.len(),
            #[allow(clippy::cast_precision_loss)] // it is within 1 % anyway
            sum: self.0.mean() * self.0.len() as f64 / 1e6,
            up_to,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn histogram() -> Result<Histogram<u64>, Error> {
    Histogram::new_with_bounds(1, micros(LONGEST), DIGITS).map_err(Error::internal)
}

impl Usage {
    /// Nothing was done yet; what will be is counted in `overall` too.
    ///
    /// # Errors
    /// As [`Latencies::try_new`].
    pub fn try_new(overall: Option<Arc<Self>>) -> Result<Self, Error> {
        Ok(Self {
            counts: Mutex::default(),
            latencies: Mutex::new(histogram()?),
            memory: Mutex::default(),
            overall,
        })
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A search was answered after `took`.
    pub fn searched(&self, queries: usize, took: Duration) {
        if let Some(overall) = &self.overall {
            overall.searched(queries, took);
        }
        self.count(|counts| {
            counts.searches += 1;
            counts.queries += queries as u64;
        });
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(micros(took));
    }

    /// Points were written.
    pub fn upserted(&self, points: usize) {
        if let Some(overall) = &self.overall {
            overall.upserted(points);
        }
        self.count(|counts| {
            counts.upserts += 1;
            counts.upserted_points += points as u64;
            counts.last_write = Some(SystemTime::now());
        });
    }

    /// Points were removed.
    pub fn deleted(&self, points: u64) {
        if let Some(overall) = &self.overall {
            overall.deleted(points);
        }
        self.count(|counts| {
            counts.deletes += 1;
            counts.deleted_points += points;
            counts.last_write = Some(SystemTime::now());
        });
    }

    /// What the view takes now.
    pub fn set_memory(&self, memory: Memory) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    /// What the view takes.
    pub fn memory(&self) -> Memory {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds this collection's latencies to those of others.
    pub fn add_latencies(&self, to: &mut Latencies) {
        // Both have the same bounds, so that adding cannot fail.
        let _ =
            to.0.add(&*self.latencies.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_latencies_within_one_percent() {
        let (one, other) = (Usage::try_new(None).unwrap(), Usage::try_new(None).unwrap());
        let mut took: Vec<u64> = (0..10_000_u64).map(|i| 50 + (i * 7_919) % 1_000_003).collect();
        for (i, &micros) in took.iter().enumerate() {
            let usage = if i % 3 == 0 { &one } else { &other };
            usage.searched(2, Duration::from_micros(micros));
        }
        let mut all = Latencies::try_new().unwrap();
        assert_eq!(all.quantiles(), None);
        one.add_latencies(&mut all);
        other.add_latencies(&mut all);
        took.sort_unstable();
        let found = all.quantiles().unwrap();
        for (told, at) in [
            (found.p50, 5_000),
            (found.p90, 9_000),
            (found.p99, 9_900),
            (found.max, 10_000),
        ] {
            let exact = took[at - 1] as f64;
            let error = (told.as_micros() as f64 - exact).abs() / exact;
            assert!(error <= 0.01, "{told:?} for {exact} µs");
        }
        let mut counts = one.counts();
        counts += other.counts();
        assert_eq!((counts.searches, counts.queries), (10_000, 20_000));
    }

    #[test]
    fn every_latency_is_in_one_bucket_of_all_collections() {
        let all = Arc::new(Usage::try_new(None).unwrap());
        for _ in 0..2 {
            // Dropped at the end of the turn, and counted all the same.
            let one = Usage::try_new(Some(Arc::clone(&all))).unwrap();
            for millis in [0, 1, 4, 4_000, 9_000_000] {
                one.searched(1, Duration::from_millis(millis));
            }
        }
        let mut latencies = Latencies::try_new().unwrap();
        all.add_latencies(&mut latencies);
        let told = latencies.buckets(&[Duration::from_millis(2), Duration::from_secs(1)]);
        assert_eq!((told.count, all.counts().searches), (10, 10));
        let counts: Vec<u64> = told.up_to.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [4, 2, 4]);
        // One longer than an hour counts as one of an hour.
        let exact = 2.0 * (0.005 + 4.0 + 3600.0);
        assert!((told.sum - exact).abs() / exact < 0.01, "{told:?}");
    }

    #[test]
    fn what_took_longer_than_an_hour_counts_as_one_and_memory_does_not_grow() {
        let usage = Usage::try_new(None).unwrap();
        let before = usage.latencies.lock().unwrap().distinct_values();
        for seconds in [0, 3_599, 3_601, u64::MAX / 1_000_000] {
            usage.searched(1, Duration::from_secs(seconds));
        }
        assert_eq!(usage.latencies.lock().unwrap().distinct_values(), before);
        let mut all = Latencies::try_new().unwrap();
        usage.add_latencies(&mut all);
        let max = all.quantiles().unwrap().max;
        assert!((LONGEST..LONGEST + LONGEST / 100).contains(&max), "{max:?}");
    }

    #[test]
    fn the_last_write_is_the_latest_one_of_several_collections() {
        let (old, new, never) = (
            Usage::try_new(None).unwrap(),
            Usage::try_new(None).unwrap(),
            Usage::try_new(None).unwrap(),
        );
        old.upserted(3);
        std::thread::yield_now();
        new.deleted(1);
        let mut counts = new.counts();
        counts += old.counts();
        counts += never.counts();
        assert_eq!(counts.last_write, new.counts().last_write);
        assert_eq!(never.counts().last_write, None);
        assert_eq!(
            (
                counts.upserts,
                counts.upserted_points,
                counts.deletes,
                counts.deleted_points
            ),
            (1, 3, 1, 1)
        );
    }
}
