//! Sparse vectors and their fusion with dense ones, from the wire and to it. Each error names the list and the place in it.

use medkg_proto::v1;

use crate::error::Error;
use crate::index::ask::Queries;
use crate::index::fusion::Fusion;
use crate::index::sparse::Rows;
use crate::index::store::Properties;
use crate::service::validate;

/// Terms of one vector.
const MAX_TERMS: usize = 4_096;
/// Largest magnitude of a weight: a product of two, times the most terms, still fits into an f32.
const LARGEST: f32 = 1e15;
const DEFAULT_CANDIDATES: u32 = 100;
const DEFAULT_RANK_CONSTANT: f64 = 60.0;
const MAX_RANK_CONSTANT: f64 = 10_000.0;
const MAX_WEIGHT: f64 = 1_000.0;

/// The sparse dimension of a new collection.
pub fn dimension(wanted: u32) -> Result<u32, Error> {
    let most = u32::MAX / 2;
    if wanted > most {
        let problem = format!("is {wanted}; it must be 1 to {most}, or 0 for none");
        return Err(Error::invalid("collection.sparse_dimension", problem));
    }
    Ok(wanted)
}

/// Rows of a collection with these properties.
pub fn rows(field: &str, vectors: v1::SparseVectors, properties: Properties) -> Result<Rows, Error> {
    let dimension = properties.sparse_dimension;
    if dimension == 0 {
        let problem = "is given, but the collection keeps no sparse vectors; make one with a sparse_dimension";
        return Err(Error::invalid(field, problem));
    }
    let invalid =
        |list: &str, at: usize, problem: String| Err(Error::invalid(format!("{field}.{list}[{at}]"), problem));
    let v1::SparseVectors {
        offsets,
        indices,
        weights,
    } = vectors;
    if weights.len() != indices.len() * size_of::<f32>() {
        let problem = format!(
            "has {} bytes for {} indices; send 4 for each",
            weights.len(),
            indices.len()
        );
        return Err(Error::invalid(format!("{field}.weights"), problem));
    }
    let offsets: Vec<usize> = offsets.into_iter().map(|offset| offset as usize).collect();
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return Err(Error::invalid(
            format!("{field}.offsets"),
            "is empty; send one for each row, and one more",
        ));
    };
    if first != 0 {
        return invalid("offsets", 0, format!("is {first}; the first row begins at 0"));
    }
    for (row, ends) in offsets.windows(2).enumerate() {
        let (start, end) = (ends[0], ends[1]);
        if end < start || end > indices.len() {
            let problem = format!(
                "is {end}; it must be {start} to {}, the number of indices",
                indices.len()
            );
            return invalid("offsets", row + 1, problem);
        }
        if end - start > MAX_TERMS {
            let problem = format!("ends a row of {} terms; at most {MAX_TERMS} are taken", end - start);
            return invalid("offsets", row + 1, problem);
        }
        let mut next = 0;
        for (at, &index) in (start..end).zip(&indices[start..end]) {
            if index >= dimension {
                let problem = format!("is {index}; the collection has sparse dimension {dimension}");
                return invalid("indices", at, problem);
            }
            if index < next {
                let problem = format!("is {index} after {}; indices ascend within a row", next - 1);
                return invalid("indices", at, problem);
            }
            next = index + 1;
        }
    }
    if last != indices.len() {
        let problem = format!(
            "is {last}; the last row ends at {}, the number of indices",
            indices.len()
        );
        return invalid("offsets", offsets.len() - 1, problem);
    }
    let values: Vec<f32> = validate::floats(&weights).collect();
    for (at, value) in values.iter().enumerate() {
        // NaN is neither.
        if !(value.abs() > 0.0 && value.abs() <= LARGEST) {
            let problem = format!("is {value:e}; a weight is finite and not 0, of a magnitude of at most {LARGEST:e}");
            return invalid("weights", at, problem);
        }
    }
    Rows::try_new(offsets[1..].to_vec(), indices, values)
}

/// Rows for the wire.
pub fn wire(rows: Rows) -> v1::SparseVectors {
    let narrow = |end: usize| u32::try_from(end).unwrap_or(u32::MAX);
    let (ends, indices, values) = rows.into_parts();
    v1::SparseVectors {
        offsets: std::iter::once(0).chain(ends.into_iter().map(narrow)).collect(),
        indices,
        weights: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
            .into(),
    }
}

/// What a search looks for: `dense` are vectors that were checked already.
pub fn queries(
    dense: Option<Vec<f32>>,
    sparse: Option<v1::SparseVectors>,
    fusion: Option<v1::RankFusion>,
    k: u32,
    properties: Properties,
) -> Result<Queries, Error> {
    let sparse = sparse
        .map(|vectors| rows("sparse_queries", vectors, properties))
        .transpose()?;
    if let (Some(_), true) = (&fusion, dense.is_none() || sparse.is_none()) {
        let problem = "is given, but there is nothing to fuse; send queries and sparse_queries, or leave it out";
        return Err(Error::invalid("fusion", problem));
    }
    match (dense, sparse) {
        (Some(dense), None) => Ok(Queries::Dense(dense)),
        (None, Some(sparse)) => Ok(Queries::Sparse(sparse)),
        (Some(dense), Some(sparse)) => {
            let count = dense.len() / properties.dimension;
            if sparse.len() != count {
                let problem = format!("has {} rows for {count} queries; send one for each", sparse.len());
                return Err(Error::invalid("sparse_queries.offsets", problem));
            }
            let fusion = read_fusion(fusion.unwrap_or_default(), k, count)?;
            Ok(Queries::Both(dense, sparse, fusion))
        }
        (None, None) => Err(Error::invalid(
            "queries",
            "is missing; send queries, sparse_queries, or both",
        )),
    }
}

fn read_fusion(wanted: v1::RankFusion, k: u32, queries: usize) -> Result<Fusion, Error> {
    let candidates = wanted.candidates.unwrap_or_else(|| k.max(DEFAULT_CANDIDATES));
    if !(k..=super::MAX_K).contains(&candidates) {
        let problem = format!("is {candidates}; it must be k, which is {k}, to {}", super::MAX_K);
        return Err(Error::invalid("fusion.candidates", problem));
    }
    if candidates as usize * queries > super::MAX_FOUND {
        let most = super::MAX_FOUND;
        let problem = format!("({candidates}) times {queries} queries is more than {most}; ask for fewer at once");
        return Err(Error::invalid("fusion.candidates", problem));
    }
    let rank_constant = wanted.rank_constant.unwrap_or(DEFAULT_RANK_CONSTANT);
    if !(0.0..=MAX_RANK_CONSTANT).contains(&rank_constant) {
        let problem = format!("is {rank_constant}; it must be 0 to {MAX_RANK_CONSTANT}");
        return Err(Error::invalid("fusion.rank_constant", problem));
    }
    let weight = |field: &str, weight: Option<f64>| {
        let weight = weight.unwrap_or(1.0);
        if weight > 0.0 && weight <= MAX_WEIGHT {
            return Ok(weight);
        }
        let problem = format!("is {weight}; it must be above 0 and at most {MAX_WEIGHT}");
        Err(Error::invalid(format!("fusion.{field}"), problem))
    };
    Ok(Fusion {
        candidates: candidates as usize,
        rank_constant,
        dense_weight: weight("dense_weight", wanted.dense_weight)?,
        sparse_weight: weight("sparse_weight", wanted.sparse_weight)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::store::{Metric, Storage};

    const PROPERTIES: Properties = Properties {
        dimension: 2,
        metric: Metric::Dot,
        storage: Storage::F32,
        sparse_dimension: 10,
    };

    fn vectors(offsets: &[u32], indices: &[u32], weights: &[f32]) -> v1::SparseVectors {
        v1::SparseVectors {
            offsets: offsets.to_vec(),
            indices: indices.to_vec(),
            weights: weights.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>().into(),
        }
    }

    fn field<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        match result.unwrap_err() {
            Error::InvalidField { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn rows_come_back_as_they_were_sent() {
        let sent = vectors(&[0, 2, 2, 3], &[1, 9, 0], &[1.5, -2.0, 3.0]);
        assert_eq!(wire(rows("s", sent.clone(), PROPERTIES).unwrap()), sent);
        assert_eq!(rows("s", vectors(&[0], &[], &[]), PROPERTIES).unwrap().len(), 0);
    }

    #[test]
    fn each_wrong_place_is_named() {
        let wrong = |offsets: &[u32], indices: &[u32], weights: &[f32]| {
            field(rows("s", vectors(offsets, indices, weights), PROPERTIES))
        };
        assert_eq!(wrong(&[], &[], &[]), "s.offsets");
        assert_eq!(wrong(&[1, 1], &[1], &[1.0]), "s.offsets[0]");
        assert_eq!(wrong(&[0, 2, 1], &[1, 2], &[1.0, 1.0]), "s.offsets[2]");
        assert_eq!(wrong(&[0, 3], &[1, 2], &[1.0, 1.0]), "s.offsets[1]");
        assert_eq!(wrong(&[0, 1], &[1, 2], &[1.0, 1.0]), "s.offsets[1]");
        assert_eq!(wrong(&[0, 2], &[1, 2], &[1.0]), "s.weights");
        assert_eq!(wrong(&[0, 1, 2], &[1, 10], &[1.0, 1.0]), "s.indices[1]");
        assert_eq!(wrong(&[0, 2], &[2, 2], &[1.0, 1.0]), "s.indices[1]");
        assert_eq!(wrong(&[0, 2], &[2, 1], &[1.0, 1.0]), "s.indices[1]");
        for weight in [0.0, -0.0, f32::NAN, f32::INFINITY, 1e16, -1e16] {
            assert_eq!(wrong(&[0, 2], &[1, 2], &[1.0, weight]), "s.weights[1]", "{weight}");
        }
        let none = Properties {
            sparse_dimension: 0,
            ..PROPERTIES
        };
        assert_eq!(field(rows("s", vectors(&[0], &[], &[]), none)), "s");
        assert_eq!(field(dimension(1 << 31)), "collection.sparse_dimension");
        assert_eq!(dimension((1 << 31) - 1).unwrap(), (1 << 31) - 1);
    }

    #[test]
    fn a_row_has_at_most_4096_terms() {
        let wide = Properties {
            sparse_dimension: 30_000,
            ..PROPERTIES
        };
        let of = |terms: u32| vectors(&[0, terms], &(0..terms).collect::<Vec<_>>(), &vec![1.0; terms as usize]);
        assert!(rows("s", of(4_096), wide).is_ok());
        assert_eq!(field(rows("s", of(4_097), wide)), "s.offsets[1]");
    }

    #[test]
    fn fusion_has_defaults_and_bounds() {
        let read = |fusion, k| read_fusion(fusion, k, 2);
        let plain = read(v1::RankFusion::default(), 10).unwrap();
        assert_eq!((plain.candidates, plain.rank_constant), (100, 60.0));
        assert_eq!((plain.dense_weight, plain.sparse_weight), (1.0, 1.0));
        assert_eq!(read(v1::RankFusion::default(), 200).unwrap().candidates, 200);
        for (name, wrong) in [
            (
                "candidates",
                v1::RankFusion {
                    candidates: Some(9),
                    ..Default::default()
                },
            ),
            (
                "candidates",
                v1::RankFusion {
                    candidates: Some(10_001),
                    ..Default::default()
                },
            ),
            (
                "rank_constant",
                v1::RankFusion {
                    rank_constant: Some(-1.0),
                    ..Default::default()
                },
            ),
            (
                "rank_constant",
                v1::RankFusion {
                    rank_constant: Some(f64::NAN),
                    ..Default::default()
                },
            ),
            (
                "dense_weight",
                v1::RankFusion {
                    dense_weight: Some(0.0),
                    ..Default::default()
                },
            ),
            (
                "sparse_weight",
                v1::RankFusion {
                    sparse_weight: Some(f64::INFINITY),
                    ..Default::default()
                },
            ),
        ] {
            assert_eq!(field(read(wrong, 10)), format!("fusion.{name}"));
        }
        assert_eq!(
            field(read_fusion(v1::RankFusion::default(), 10, 2_001)),
            "fusion.candidates"
        );
        let sent = || Some(vectors(&[0, 1], &[1], &[1.0]));
        let of = |dense, sparse, fusion| field(queries(dense, sparse, fusion, 5, PROPERTIES));
        assert_eq!(of(None, None, None), "queries");
        assert_eq!(of(None, sent(), Some(v1::RankFusion::default())), "fusion");
        assert_eq!(of(Some(vec![1.0; 4]), sent(), None), "sparse_queries.offsets");
    }
}
