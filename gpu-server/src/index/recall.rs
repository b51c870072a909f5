//! Whether search is right: what it returns, against the exact nearest points in float64, computed on the host from the file's
//! vectors.
//!
//! The sample is drawn from the stored points. Searches run on the device like all others; the comparison runs in one thread
//! beside the lanes, part by part, so that memory does not grow with the collection. Writes wait only from the moment that
//! the file's state is fixed until the searches have answered: both then speak of the same points.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::store::scan::{Part, Scan};
use super::store::{Metric, Store, floats};
use crate::error::Error;

/// Scores nearer to each other than this are equal.
pub const TOLERANCE: f64 = 1e-6;
/// How long a check may take if its caller has no deadline.
const LONGEST: Duration = Duration::from_secs(600);
/// Mismatched queries that are named.
const NAMED: usize = 20;
/// Points that are compared at once.
const PART: Scan = Scan {
    payloads: false,
    part_bytes: 1024 * 1024,
    part_points: 4_096,
};

/// What to check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Stored points that are taken as queries.
    pub sample: usize,
    /// Nearest points that are compared for each.
    pub k: usize,
    /// Chooses the sample.
    pub seed: u64,
}

/// How search compares with float64.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recall {
    /// Points that should have been found.
    pub expected: u64,
    /// Those that were.
    pub found: u64,
    /// Queries that were compared.
    pub queries: usize,
    /// Queries for which a point was missing, or the order was wrong.
    pub mismatches: usize,
    /// The ids of the first of them.
    pub mismatched: Vec<String>,
    /// Points that each query was compared with.
    pub points: u64,
}

/// When to give up.
#[derive(Debug, Clone)]
pub struct Limit {
    deadline: Instant,
    left: Arc<AtomicBool>,
}

/// Ends the work of a [`Limit`] when it is dropped: its caller is gone.
#[derive(Debug)]
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Limit {
    /// Until the deadline, and as long as the caller keeps what is returned beside it.
    pub fn new(deadline: Option<Instant>) -> (Self, Waiting) {
        let left = Arc::<AtomicBool>::default();
        let bound = Instant::now() + LONGEST;
        let limit = Self {
            deadline: deadline.map_or(bound, |deadline| deadline.min(bound)),
            left: Arc::clone(&left),
        };
        (limit, Waiting(left))
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Error::DeadlineExpired`].
    pub fn check(&self) -> Result<(), Error> {
        if self.left.load(Ordering::Relaxed) || Instant::now() >= self.deadline {
            return Err(Error::DeadlineExpired);
        }
        Ok(())
    }
}

/// Points that are taken as queries.
#[derive(Debug, Default)]
pub struct Sample {
    /// Their ids.
    pub ids: Vec<String>,
    /// Row-major [ids, dimension].
    pub vectors: Vec<f32>,
}

/// What search returned for one query, best first.
pub type Returned = Vec<Arc<str>>;

/// Draws a sample, each point as likely as another one: those whose id has the smallest hash under the seed. The same
/// points give the same sample, however they lie in the file.
///
/// # Errors
/// [`Error::DeadlineExpired`], [`Error::Internal`] naming the file.
pub fn draw(store: &Store, check: Check, limit: &Limit) -> Result<Sample, Error> {
    let dimension = store.properties.dimension;
    let mut chosen: std::collections::BTreeMap<(u64, String), Vec<f32>> = std::collections::BTreeMap::new();
    let take = |part: Part| {
        limit.check()?;
        for (id, row) in part
            .ids
            .into_iter()
            .zip(part.vectors.chunks_exact(dimension * size_of::<f32>()))
        {
            let place = (hash(check.seed, &id), id);
            if chosen.len() == check.sample {
                match chosen.last_key_value() {
                    Some((last, _)) if place < *last => drop(chosen.pop_last()),
                    _ => continue,
                }
            }
            chosen.insert(place, floats(row).collect());
        }
        Ok(())
    };
    store.scan(PART, || Ok(()), take)?;
    let mut sample = Sample::default();
    for ((_, id), vector) in chosen {
        sample.ids.push(id);
        sample.vectors.extend(vector);
    }
    Ok(sample)
}

/// FNV-1a, finished as `MurmurHash3` does: it need not resist anybody, only spread.
fn hash(seed: u64, id: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut hash = id.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// One query, and what is known so far about its nearest points.
struct Query {
    /// Scaled to unit length under cosine.
    vector: Vec<f64>,
    /// The k best scores so far, in no order.
    best: Vec<f64>,
    /// The least of them, once there are k.
    least: f64,
}

impl Query {
    fn offer(&mut self, score: f64, k: usize) {
        if self.best.len() < k {
            self.best.push(score);
        } else if score > self.least {
            if let Some(worst) = self.best.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *worst = score;
            }
        } else {
            return;
        }
        if self.best.len() == k {
            self.least = self.best.iter().copied().fold(f64::INFINITY, f64::min);
        }
    }
}

/// Compares what `search` returned with the exact scores of all points. `begun` is called when the file's state is fixed, and
/// gives what search returned for it: one list per point of the sample.
///
/// # Errors
/// What `begun` returns; [`Error::DeadlineExpired`], [`Error::Internal`] naming the file.
pub fn compare(
    store: &Store,
    check: Check,
    sample: &Sample,
    limit: &Limit,
    begun: impl FnOnce() -> Result<Vec<Returned>, Error>,
) -> Result<Recall, Error> {
    let (dimension, metric) = (store.properties.dimension, store.properties.metric);
    let wide = |row: &[f32]| scaled(row.iter().map(|&value| f64::from(value)).collect(), metric);
    let mut queries: Vec<Query> = sample
        .vectors
        .chunks_exact(dimension)
        .map(|row| Query {
            vector: wide(row),
            best: Vec::with_capacity(check.k),
            least: f64::NEG_INFINITY,
        })
        .collect();
    let returned = std::cell::OnceCell::new();
    let mut wanted: HashMap<Arc<str>, Vec<(usize, usize)>> = HashMap::new();
    let mut scores: Vec<Vec<f64>> = Vec::new();
    let mut points = 0_u64;
    let fixed = || {
        let _ = returned.set(begun()?);
        Ok(())
    };
    let take = |part: Part| {
        if scores.is_empty() {
            let lists: &[Returned] = returned.get().map_or(&[], Vec::as_slice);
            scores = lists.iter().map(|list| vec![f64::NEG_INFINITY; list.len()]).collect();
            for (query, list) in lists.iter().enumerate() {
                for (rank, id) in list.iter().enumerate() {
                    wanted.entry(Arc::clone(id)).or_default().push((query, rank));
                }
            }
        }
        for (id, row) in part
            .ids
            .iter()
            .zip(part.vectors.chunks_exact(dimension * size_of::<f32>()))
        {
            limit.check()?;
            let row = scaled(floats(row).map(f64::from).collect(), metric);
            points += 1;
            let asked = wanted.get(id.as_str()).map_or(&[][..], Vec::as_slice);
            for (at, query) in queries.iter_mut().enumerate() {
                let exact = nearness(&query.vector, &row, metric);
                query.offer(exact, check.k);
                for &(_, rank) in asked.iter().filter(|(of, _)| *of == at) {
                    scores[at][rank] = exact;
                }
            }
        }
        Ok(())
    };
    store.scan(PART, fixed, take)?;
    let mut recall = Recall {
        points,
        ..Recall::default()
    };
    for (at, query) in queries.iter().enumerate() {
        judge(
            &mut recall,
            &sample.ids[at],
            query,
            scores.get(at).map_or(&[], Vec::as_slice),
        );
    }
    Ok(recall)
}

/// `scores` are the exact ones of what search returned, in its order; minus infinity for what is no point.
fn judge(recall: &mut Recall, id: &str, query: &Query, scores: &[f64]) {
    let least = query.best.iter().copied().fold(f64::INFINITY, f64::min);
    let found = scores
        .iter()
        .filter(|&&score| score >= least - TOLERANCE)
        .count()
        .min(query.best.len());
    let mut ordered = true;
    let mut lowest = f64::INFINITY;
    for &score in scores {
        ordered &= score <= lowest + TOLERANCE;
        lowest = lowest.min(score);
    }
    recall.queries += 1;
    recall.expected += query.best.len() as u64;
    recall.found += found as u64;
    if found < query.best.len() || scores.len() != query.best.len() || !ordered {
        recall.mismatches += 1;
        if recall.mismatched.len() < NAMED {
            recall.mismatched.push(id.to_owned());
        }
    }
}

fn scaled(mut row: Vec<f64>, metric: Metric) -> Vec<f64> {
    if metric == Metric::Cosine {
        let length = dot(&row, &row).sqrt();
        for value in &mut row {
            *value /= length;
        }
    }
    row
}

fn nearness(query: &[f64], row: &[f64], metric: Metric) -> f64 {
    match metric {
        Metric::Cosine | Metric::Dot => dot(query, row),
        Metric::L2 => -sum(query, row, |a, b| (a - b) * (a - b)).sqrt(),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| a * b)
}

/// In eight partial sums, which the compiler can keep in vector registers.
fn sum(a: &[f64], b: &[f64], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = left
        .remainder()
        .iter()
        .zip(right.remainder())
        .map(|(&a, &b)| term(a, b))
        .sum();
    for (a, b) in left.zip(right) {
        for lane in 0..8 {
            sums[lane] += term(a[lane], b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
