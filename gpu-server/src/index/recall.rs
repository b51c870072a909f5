//! Whether search is right: what it returns, against the exact nearest points in float64, computed on the host from the file's
//! vectors, dense or sparse.
//!
//! The sample is drawn from the stored points. Searches run on the device like all others; the comparison runs in one thread
//! beside the lanes, part by part, so that memory does not grow with the collection. Writes wait only from the moment that
//! the file's state is fixed until the searches have answered: both then speak of the same points.

mod exact;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sparse::Rows;
use super::store::scan::{Part, Scan};
use super::store::{Store, floats};
use crate::error::Error;
use exact::{Drawn, Exact};

/// Scores nearer to each other than this are equal.
pub const TOLERANCE: f64 = 1e-6;
/// How long a check may take if its caller has no deadline.
const LONGEST: Duration = Duration::from_secs(600);
/// Mismatched queries that are named.
const NAMED: usize = 20;
/// Points that are compared at once.
const fn parts(check: Check) -> Scan {
    Scan {
        payloads: false,
        sparse: check.sparse,
        part_bytes: 1024 * 1024,
        part_points: 4_096,
    }
}

/// What to check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Stored points that are taken as queries.
    pub sample: usize,
    /// Nearest points that are compared for each.
    pub k: usize,
    /// Whether search by sparse vectors is checked, instead of that by dense ones.
    pub sparse: bool,
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
    /// Points that each query was compared with: those that have a vector of the kind.
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
#[derive(Debug)]
pub struct Sample {
    /// Their ids.
    pub ids: Vec<String>,
    /// One vector for each.
    pub vectors: Drawn,
}

/// What search returned for one query, best first.
pub type Returned = Vec<Arc<str>>;

/// Draws a sample, each point that has such a vector as likely as another one: those whose id has the smallest hash under
/// the seed. The same points give the same sample, however they lie in the file.
///
/// # Errors
/// [`Error::DeadlineExpired`], [`Error::Internal`] naming the file.
pub fn draw(store: &Store, check: Check, limit: &Limit) -> Result<Sample, Error> {
    let bytes = store.properties.dimension * size_of::<f32>();
    // Rows as they are in the file.
    let mut chosen: BTreeMap<(u64, String), Vec<u8>> = BTreeMap::new();
    let take = |part: Part| {
        limit.check()?;
        for (at, id) in part.ids.into_iter().enumerate() {
            if check.sparse && part.sparse.row(at).0.is_empty() {
                continue;
            }
            let place = (hash(check.seed, &id), id);
            if chosen.len() == check.sample {
                match chosen.last_key_value() {
                    Some((last, _)) if place < *last => drop(chosen.pop_last()),
                    _ => continue,
                }
            }
            let row = if check.sparse {
                part.sparse.to_bytes(at)
            } else {
                part.vectors[at * bytes..][..bytes].to_vec()
            };
            chosen.insert(place, row);
        }
        Ok(())
    };
    store.scan(parts(check), || Ok(()), take)?;
    let (ids, rows): (Vec<String>, Vec<Vec<u8>>) = chosen.into_iter().map(|((_, id), row)| (id, row)).unzip();
    let vectors = if check.sparse {
        let mut all = Rows::default();
        for row in &rows {
            all.push_bytes(row);
        }
        Drawn::Sparse(all)
    } else {
        Drawn::Dense(rows.iter().flat_map(|row| floats(row)).collect())
    };
    Ok(Sample { ids, vectors })
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

/// What is known so far about the nearest points of one query.
struct Nearest {
    /// The k best scores so far, in no order.
    best: Vec<f64>,
    /// The least of them, once there are k.
    least: f64,
}

impl Nearest {
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
    let mut exact = Exact::new(&sample.vectors, store.properties);
    let none = |_| Nearest {
        best: Vec::with_capacity(check.k),
        least: f64::NEG_INFINITY,
    };
    let mut nearest: Vec<Nearest> = (0..exact.len()).map(none).collect();
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
        for (at, id) in part.ids.iter().enumerate() {
            limit.check()?;
            let asked = wanted.get(id.as_str()).map_or(&[][..], Vec::as_slice);
            let has_one = exact.scores(&part, at, |query, score| {
                nearest[query].offer(score, check.k);
                for &(_, rank) in asked.iter().filter(|(of, _)| *of == query) {
                    scores[query][rank] = score;
                }
            });
            points += u64::from(has_one);
        }
        Ok(())
    };
    store.scan(parts(check), fixed, take)?;
    let mut recall = Recall {
        points,
        ..Recall::default()
    };
    for (at, nearest) in nearest.iter().enumerate() {
        let scores = scores.get(at).map_or(&[][..], Vec::as_slice);
        judge(&mut recall, &sample.ids[at], nearest, scores);
    }
    Ok(recall)
}

/// `scores` are the exact ones of what search returned, in its order; minus infinity for what is no point.
fn judge(recall: &mut Recall, id: &str, query: &Nearest, scores: &[f64]) {
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

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
