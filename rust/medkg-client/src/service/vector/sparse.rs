//! Sparse vectors, and how what they find is fused with what dense ones find.

use std::ops::Range;

use bytes::Bytes;
use medkg_proto::v1;

use super::{ELEMENT, read::floats};
use crate::batching;
use crate::error::ClientError;

/// Sparse vectors as compressed sparse rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMatrix {
    /// Row i lies at `offsets[i]..offsets[i + 1]` of the two lists.
    offsets: Vec<usize>,
    indices: Vec<u32>,
    /// Little-endian float32.
    weights: Bytes,
}

impl SparseMatrix {
    /// Rows that can be cut apart; what else is wrong with them the server says.
    ///
    /// # Errors
    /// Which of `offsets`, `offsets[3]` and `weights` does not fit, and why.
    pub fn try_new(offsets: Vec<usize>, indices: Vec<u32>, weights: Bytes) -> Result<Self, (String, String)> {
        if offsets.first() != Some(&0) {
            let found = offsets
                .first()
                .map_or_else(|| "is empty".to_owned(), |first| format!("begins with {first}"));
            return Err(("offsets".to_owned(), format!("{found}; the first row begins at 0")));
        }
        let falls = offsets.windows(2).position(|ends| ends[1] < ends[0]);
        if let Some(row) = falls {
            let what = format!("is {} after {}; rows follow each other", offsets[row + 1], offsets[row]);
            return Err((format!("offsets[{}]", row + 1), what));
        }
        let last = offsets.len() - 1;
        if offsets[last] != indices.len() {
            let what = format!(
                "is {}; the last row ends at {}, the number of indices",
                offsets[last],
                indices.len()
            );
            return Err((format!("offsets[{last}]"), what));
        }
        if weights.len() != indices.len() * ELEMENT {
            let what = format!("has {} weights for {} indices", weights.len() / ELEMENT, indices.len());
            return Err(("weights".to_owned(), what));
        }
        Ok(Self {
            offsets,
            indices,
            weights,
        })
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Bytes of a row on the wire, at most: an index takes up to 5.
    pub(super) fn size(&self, row: usize) -> usize {
        (self.offsets[row + 1] - self.offsets[row]) * (5 + ELEMENT) + 5
    }

    pub(super) fn wire(&self, range: Range<usize>) -> v1::SparseVectors {
        let (start, end) = (self.offsets[range.start], self.offsets[range.end]);
        let narrow = |offset: &usize| u32::try_from(offset - start).unwrap_or(u32::MAX);
        v1::SparseVectors {
            offsets: self.offsets[range.start..=range.end].iter().map(narrow).collect(),
            indices: self.indices[start..end].to_vec(),
            weights: self.weights.slice(start * ELEMENT..end * ELEMENT),
        }
    }

    /// Makes the places that a server named in a request that began with row `start` those of the whole.
    pub(super) fn shift(&self, error: ClientError, field: &str, start: usize) -> ClientError {
        let first = self.offsets[start];
        let error = batching::shift(error, &format!("{field}.offsets"), start);
        let error = batching::shift(error, &format!("{field}.indices"), first);
        batching::shift(error, &format!("{field}.weights"), first)
    }
}

/// How what two searches find is fused; None means the server's default.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RankFusion {
    /// Points that each search hands on.
    pub candidates: Option<u32>,
    /// The larger it is, the less the first ranks stand out.
    pub rank_constant: Option<f64>,
    /// What a rank of the dense search counts.
    pub dense_weight: Option<f64>,
    /// What a rank of the sparse search counts.
    pub sparse_weight: Option<f64>,
}

impl From<RankFusion> for v1::RankFusion {
    fn from(fusion: RankFusion) -> Self {
        let RankFusion {
            candidates,
            rank_constant,
            dense_weight,
            sparse_weight,
        } = fusion;
        Self {
            candidates,
            rank_constant,
            dense_weight,
            sparse_weight,
        }
    }
}

/// Where a search has a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// From 1.
    pub rank: u32,
    /// Its score there.
    pub score: f32,
}

impl Standing {
    pub(super) fn of(rank: Option<u32>, score: Option<f32>) -> Option<Self> {
        Some(Self {
            rank: rank?,
            score: score?,
        })
    }
}

/// Sparse vectors that were fetched.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SparseRows {
    /// Row i lies at `offsets[i]..offsets[i + 1]` of the two lists.
    pub offsets: Vec<i64>,
    /// Ascending within a row.
    pub indices: Vec<i32>,
    /// The weight of each.
    pub weights: Vec<f32>,
}

impl Default for SparseRows {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            indices: Vec::new(),
            weights: Vec::new(),
        }
    }
}

impl SparseRows {
    /// Adds the rows of a part of an answer with `rows` ids.
    ///
    /// # Errors
    /// In words, why that is no answer.
    pub(super) fn extend(&mut self, part: Option<v1::SparseVectors>, rows: usize) -> Result<(), String> {
        let part = part.unwrap_or_default();
        let fits = part.offsets.len() == rows + 1
            && part.offsets.is_sorted()
            && part.offsets[rows] as usize == part.indices.len()
            && part.weights.len() == part.indices.len() * ELEMENT;
        if !fits {
            return Err(format!(
                "{rows} ids came with {} offsets of sparse vectors",
                part.offsets.len()
            ));
        }
        let before = i64::try_from(self.indices.len()).map_err(|error| error.to_string())?;
        self.offsets
            .extend(part.offsets[1..].iter().map(|&offset| before + i64::from(offset)));
        for index in part.indices {
            self.indices
                .push(i32::try_from(index).map_err(|_| format!("a sparse vector has the index {index}"))?);
        }
        self.weights.extend(floats(&part.weights));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::Service;

    fn matrix() -> SparseMatrix {
        let weights: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|w| w.to_le_bytes()).collect();
        SparseMatrix::try_new(vec![0, 2, 2, 3, 4], vec![1, 5, 7, 0], weights.into()).unwrap()
    }

    #[test]
    fn a_range_of_rows_is_cut_out() {
        let part = matrix().wire(2..4);
        assert_eq!((part.offsets, part.indices), (vec![0, 1, 2], vec![7, 0]));
        assert_eq!(floats(&part.weights).collect::<Vec<_>>(), [3.0, 4.0]);
        assert_eq!(matrix().wire(1..2).offsets, [0, 0]);
    }

    #[test]
    fn parts_of_an_answer_are_put_together() {
        let mut all = SparseRows::default();
        for range in [0..1, 1..2, 2..4] {
            let rows = range.len();
            all.extend(Some(matrix().wire(range)), rows).unwrap();
        }
        assert_eq!(all.offsets, [0, 2, 2, 3, 4]);
        assert_eq!((all.indices, all.weights), (vec![1, 5, 7, 0], vec![1.0, 2.0, 3.0, 4.0]));
        assert!(SparseRows::default().extend(None, 1).is_err());
        assert!(SparseRows::default().extend(Some(matrix().wire(0..2)), 1).is_err());
    }

    #[test]
    fn places_are_named_as_the_caller_counts() {
        let named = |field: &str| {
            let error = ClientError::invalid(Service::Vector, "UpsertVectors", field, "is wrong");
            matrix().shift(error, "sparse", 2).field_violations[0].field.clone()
        };
        assert_eq!(named("sparse.indices[1]"), "sparse.indices[3]");
        assert_eq!(named("sparse.weights[0]"), "sparse.weights[2]");
        assert_eq!(named("sparse.offsets[1]"), "sparse.offsets[3]");
    }

    #[test]
    fn lists_that_do_not_fit_are_named() {
        let field = |offsets: &[usize], indices: usize, bytes: usize| {
            SparseMatrix::try_new(offsets.to_vec(), vec![0; indices], vec![0; bytes].into())
                .unwrap_err()
                .0
        };
        assert_eq!(field(&[], 0, 0), "offsets");
        assert_eq!(field(&[1, 1], 1, 4), "offsets");
        assert_eq!(field(&[0, 2, 1], 1, 4), "offsets[2]");
        assert_eq!(field(&[0, 2], 1, 4), "offsets[1]");
        assert_eq!(field(&[0, 1], 1, 3), "weights");
    }
}
