//! Sparse vectors: compressed rows, and the inverted index that a collection searches them with.
//!
//! The index is on the host whatever the device is: a query reads the points of its own terms and nothing else, which a
//! product of the whole matrix on the device cannot (ADR 0013). Sums are kept in f64, where the product of two f32 is exact, so
//! that the order of points is that of exact scores. A replaced or removed point leaves its terms behind, marked as dead;
//! when more than half of all terms are, they are swept out at once. That bounds memory, and makes a write cost what it writes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::top::keep_best;
use crate::error::Error;

/// Points summed at once: their sums stay in the processor's cache, however many points there are.
const TILE: usize = 32_768;
/// No point, or no slot.
const NONE: u32 = u32::MAX;
/// A sum that nothing was added to. No sum of products ends here: none of them is zero, and x - x is +0.
const UNTOUCHED: f64 = -0.0;
/// Dead terms that are let be however few living ones there are.
const SPARE: usize = 65_536;
/// Queries that are worth a thread of their own.
const PER_THREAD: usize = 4;

/// Sparse vectors one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Where each row ends in the two lists; it begins where the one before it ends.
    ends: Vec<usize>,
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl Rows {
    /// Rows that end at `ends`. Indices ascend within a row, and no value is 0; whoever reads a request checks that.
    ///
    /// # Errors
    /// [`Error::Internal`] where the lists do not fit together.
    pub fn try_new(ends: Vec<usize>, indices: Vec<u32>, values: Vec<f32>) -> Result<Self, Error> {
        let last = ends.last().copied().unwrap_or(0);
        if !ends.is_sorted() || last != indices.len() || last != values.len() {
            return Err(Error::internal("sparse rows do not fit together"));
        }
        Ok(Self { ends, indices, values })
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all terms.
    pub fn bytes(&self) -> usize {
        self.indices.len() * (size_of::<u32>() + size_of::<f32>())
    }

    /// Indices and values of a row; none for one that is not there.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let end = self.ends.get(row).copied().unwrap_or(self.indices.len());
        let start = match row.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).copied().unwrap_or(end),
        };
        (&self.indices[start..end], &self.values[start..end])
    }

    /// Some of the rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        let mut part = Self::default();
        for row in rows {
            let (indices, values) = self.row(row);
            part.indices.extend_from_slice(indices);
            part.values.extend_from_slice(values);
            part.ends.push(part.indices.len());
        }
        part
    }

    /// A row as it is kept in the file: its indices, then its values, little-endian.
    pub fn to_bytes(&self, row: usize) -> Vec<u8> {
        let (indices, values) = self.row(row);
        let mut bytes = Vec::with_capacity(indices.len() * 8);
        bytes.extend(indices.iter().flat_map(|index| index.to_le_bytes()));
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    /// Adds a row that was kept in the file.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        let (indices, values) = bytes.split_at(bytes.len() / 8 * 4);
        let words = |bytes: &[u8]| -> Vec<[u8; 4]> { bytes.as_chunks::<4>().0.to_vec() };
        self.indices.extend(words(indices).into_iter().map(u32::from_le_bytes));
        self.values.extend(words(values).into_iter().map(f32::from_le_bytes));
        self.ends.push(self.indices.len());
    }

    /// Where each row ends, all indices, and all values.
    pub fn into_parts(self) -> (Vec<usize>, Vec<u32>, Vec<f32>) {
        (self.ends, self.indices, self.values)
    }
}

/// The points that have one term, in ascending order of slots.
#[derive(Debug, Default)]
struct Term {
    slots: Vec<u32>,
    values: Vec<f32>,
}

impl Term {
    /// Spare capacity included.
    fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u32>() + self.values.capacity() * size_of::<f32>()
    }
}

/// The inverted index of one collection. Points have the places of the view; a written vector has a slot, which stays the
/// same while its point moves to another place.
#[derive(Debug, Default)]
pub struct Postings {
    terms: HashMap<u32, Term>,
    /// Of each slot, where its point is; NONE once the vector is dead.
    places: Vec<u32>,
    /// Of each slot, how many terms it has.
    lengths: Vec<u32>,
    /// Of each place, the slot of its vector; NONE if it has none.
    slots: Vec<u32>,
    living: usize,
    dead: usize,
    /// What the lists of all terms take. Kept, because there may be as many terms as a vocabulary has words.
    listed: usize,
}

impl Postings {
    /// Points that have a sparse vector.
    #[cfg(test)]
    pub fn points(&self) -> usize {
        self.slots.iter().filter(|&&slot| slot != NONE).count()
    }

    /// Bytes on the host that it takes, spare capacity included.
    pub fn host_bytes(&self) -> usize {
        // A table of hashbrown fills seven eighths of its places at most, and has a byte for each beside the entry.
        let places = self.terms.capacity() * 8 / 7;
        let table = places * (size_of::<(u32, Term)>() + 1);
        let of_points = self.places.capacity() + self.lengths.capacity() + self.slots.capacity();
        self.listed + table + of_points * size_of::<u32>()
    }

    /// `places[i]` has now row i, or no sparse vector if that has no terms. Places that are new follow each other at the end.
    ///
    /// # Errors
    /// [`Error::Internal`] where there are more points than can be counted.
    pub fn write(&mut self, places: &[usize], rows: &Rows) -> Result<(), Error> {
        for (row, &place) in places.iter().enumerate() {
            self.kill(place);
            if place >= self.slots.len() {
                self.slots.resize(place + 1, NONE);
            }
            let (indices, values) = rows.row(row);
            if indices.is_empty() {
                continue;
            }
            let slot = number(self.places.len())?;
            self.places.push(number(place)?);
            self.lengths.push(number(indices.len())?);
            self.slots[place] = slot;
            self.living += indices.len();
            for (&index, &value) in indices.iter().zip(values) {
                let term = self.terms.entry(index).or_default();
                let before = term.bytes();
                term.slots.push(slot);
                term.values.push(value);
                self.listed += term.bytes() - before;
            }
        }
        self.sweep_if_due();
        Ok(())
    }

    /// Follows a removal: the last point takes the place of the removed one.
    pub fn swap_remove(&mut self, place: usize) {
        self.kill(place);
        if place >= self.slots.len() {
            return;
        }
        self.slots.swap_remove(place);
        let moved = self.slots.get(place).copied().unwrap_or(NONE);
        if moved != NONE {
            // A place was a slot's place before, so it fits.
            self.places[moved as usize] = u32::try_from(place).unwrap_or(NONE);
        }
        self.sweep_if_due();
    }

    fn kill(&mut self, place: usize) {
        let Some(slot) = self.slots.get_mut(place).filter(|slot| **slot != NONE) else {
            return;
        };
        let terms = self.lengths[*slot as usize] as usize;
        self.places[*slot as usize] = NONE;
        *slot = NONE;
        self.living -= terms;
        self.dead += terms;
    }

    fn sweep_if_due(&mut self) {
        if self.dead > self.living.max(SPARE) {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let mut renamed = vec![NONE; self.places.len()];
        let (mut places, mut lengths) = (Vec::new(), Vec::new());
        for (slot, &place) in self.places.iter().enumerate().filter(|(_, place)| **place != NONE) {
            // Fewer than before, so it fits.
            renamed[slot] = u32::try_from(places.len()).unwrap_or(NONE);
            self.slots[place as usize] = renamed[slot];
            places.push(place);
            lengths.push(self.lengths[slot]);
        }
        self.terms.retain(|_, term| {
            let kept = term.slots.iter().zip(&term.values);
            let kept =
                kept.filter_map(|(&slot, &value)| Some((renamed[slot as usize], value)).filter(|(s, _)| *s != NONE));
            (term.slots, term.values) = kept.unzip();
            !term.slots.is_empty()
        });
        self.listed = self.terms.values().map(Term::bytes).sum();
        (self.places, self.lengths, self.dead) = (places, lengths, 0);
    }

    /// For each query the `k` points with the largest inner product that share a term with it and are `allowed`, best first,
    /// equal ones by id. The queries are shared out among at most `threads` threads.
    pub fn search(
        &self,
        queries: &Rows,
        k: usize,
        ids: &[Arc<str>],
        allowed: Option<&[bool]>,
        threads: usize,
    ) -> Vec<Vec<(usize, f64)>> {
        let mut found = vec![Vec::new(); queries.len()];
        let left = Mutex::new(found.iter_mut().enumerate());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut sums = vec![UNTOUCHED; TILE];
            while let Some((query, found)) = next() {
                *found = self.nearest(queries.row(query), k, ids, allowed, &mut sums);
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(queries.len().div_ceil(PER_THREAD)) {
                // Where no thread can be had, those that there are do the work, and this one is.
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        found
    }

    /// `sums` has [`TILE`] elements, all of them untouched, and is given back so.
    fn nearest(
        &self,
        (indices, weights): (&[u32], &[f32]),
        k: usize,
        ids: &[Arc<str>],
        allowed: Option<&[bool]>,
        sums: &mut [f64],
    ) -> Vec<(usize, f64)> {
        let mut terms: Vec<(&[u32], &[f32], f64)> = indices
            .iter()
            .zip(weights)
            .filter_map(|(index, &weight)| {
                let term = self.terms.get(index)?;
                Some((term.slots.as_slice(), term.values.as_slice(), f64::from(weight)))
            })
            .collect();
        let mut best: Vec<(usize, f64)> = Vec::new();
        // Points below this are not among the k best.
        let mut least = f64::NEG_INFINITY;
        // As many as are sorted at once, so that each point costs little.
        let most = (2 * k).max(1_024);
        for start in (0..self.places.len()).step_by(TILE) {
            let end = start + TILE;
            let mut touched = false;
            for (slots, values, weight) in &mut terms {
                let here = slots.partition_point(|&slot| (slot as usize) < end);
                let (slots_here, later) = slots.split_at(here);
                let (values_here, values_later) = values.split_at(here);
                touched |= here > 0;
                for (&slot, &value) in slots_here.iter().zip(values_here) {
                    // TILE is a power of two.
                    sums[slot as usize % TILE] += *weight * f64::from(value);
                }
                (*slots, *values) = (later, values_later);
            }
            if !touched {
                continue;
            }
            for (sum, &place) in sums.iter_mut().zip(&self.places[start..]) {
                let score = std::mem::replace(sum, UNTOUCHED);
                if score.to_bits() == UNTOUCHED.to_bits() || score < least || place == NONE {
                    continue;
                }
                let place = place as usize;
                if allowed.is_some_and(|allowed| !allowed[place]) {
                    continue;
                }
                best.push((place, score));
                if best.len() >= most {
                    keep_best(&mut best, k, ids);
                    least = best.last().map_or(least, |(_, score)| *score);
                }
            }
        }
        keep_best(&mut best, k, ids);
        best
    }
}

fn number(count: usize) -> Result<u32, Error> {
    u32::try_from(count)
        .ok()
        .filter(|&number| number != NONE)
        .ok_or_else(|| Error::internal("more points than a sparse index can count"))
}

#[cfg(test)]
#[path = "sparse_tests.rs"]
mod tests;
