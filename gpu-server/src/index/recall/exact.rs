//! Exact scores of stored points in float64, in the plainest way there is: point after point, against every query.
//!
//! Nothing of the view is used. Dense vectors are compared element by element, and a sparse one's terms are looked up in the
//! queries, where search looks a query's terms up in the points.

use std::collections::HashMap;

use crate::index::ask::Queries;
use crate::index::sparse::Rows;
use crate::index::store::scan::Part;
use crate::index::store::{Metric, Properties, floats};

/// Vectors that are taken as queries.
#[derive(Debug)]
pub enum Drawn {
    /// Row-major [queries, dimension].
    Dense(Vec<f32>),
    /// With terms, all of them.
    Sparse(Rows),
}

impl Drawn {
    /// What to search for, at most `most` at once.
    pub fn parts(&self, most: usize, dimension: usize) -> Vec<Queries> {
        match self {
            Self::Dense(vectors) => {
                let parts = vectors.chunks(most * dimension);
                parts.map(|part| Queries::Dense(part.to_vec())).collect()
            }
            Self::Sparse(rows) => {
                let starts = (0..rows.len()).step_by(most);
                let part = |start: usize| rows.part(start..rows.len().min(start + most));
                starts.map(|start| Queries::Sparse(part(start))).collect()
            }
        }
    }
}

/// Queries, and what a point scores with them.
#[derive(Debug)]
pub enum Exact {
    /// By dense vectors.
    Dense {
        /// Scaled to unit length under cosine.
        queries: Vec<Vec<f64>>,
        /// How nearness is measured.
        metric: Metric,
    },
    /// By sparse vectors.
    Sparse {
        /// Of each term, the queries that have it, and its weight there.
        terms: HashMap<u32, Vec<(usize, f64)>>,
        /// Of each query, the sum so far; None while it shares no term with the point.
        sums: Vec<Option<f64>>,
    },
}

impl Exact {
    /// Queries of a collection.
    pub fn new(drawn: &Drawn, properties: Properties) -> Self {
        match drawn {
            Drawn::Dense(vectors) => {
                let wide = |row: &[f32]| scaled(row.iter().map(|&value| f64::from(value)).collect(), properties.metric);
                Self::Dense {
                    queries: vectors.chunks_exact(properties.dimension).map(wide).collect(),
                    metric: properties.metric,
                }
            }
            Drawn::Sparse(rows) => {
                let mut terms: HashMap<u32, Vec<(usize, f64)>> = HashMap::new();
                for query in 0..rows.len() {
                    let (indices, weights) = rows.row(query);
                    for (&index, &weight) in indices.iter().zip(weights) {
                        terms.entry(index).or_default().push((query, f64::from(weight)));
                    }
                }
                Self::Sparse {
                    terms,
                    sums: vec![None; rows.len()],
                }
            }
        }
    }

    /// Queries.
    pub fn len(&self) -> usize {
        match self {
            Self::Dense { queries, .. } => queries.len(),
            Self::Sparse { sums, .. } => sums.len(),
        }
    }

    /// Gives `each` the score of a point with every query that finds it; false if the point has no vector of this kind.
    pub fn scores(&mut self, part: &Part, at: usize, mut each: impl FnMut(usize, f64)) -> bool {
        match self {
            Self::Dense { queries, metric } => {
                let bytes = part.vectors.len() / part.ids.len();
                let row = floats(&part.vectors[at * bytes..][..bytes]);
                let row = scaled(row.map(f64::from).collect(), *metric);
                for (query, vector) in queries.iter().enumerate() {
                    each(query, nearness(vector, &row, *metric));
                }
                true
            }
            Self::Sparse { terms, sums } => {
                let (indices, weights) = part.sparse.row(at);
                for (index, &weight) in indices.iter().zip(weights) {
                    for &(query, of_query) in terms.get(index).map_or(&[][..], Vec::as_slice) {
                        *sums[query].get_or_insert(0.0) += of_query * f64::from(weight);
                    }
                }
                for (query, sum) in sums.iter_mut().enumerate() {
                    if let Some(sum) = sum.take() {
                        each(query, sum);
                    }
                }
                !indices.is_empty()
            }
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
mod tests {
    use super::*;

    #[test]
    fn sums_in_parts_are_the_sum() {
        for length in [0, 1, 7, 8, 9, 384, 385] {
            let a: Vec<f64> = (0..length).map(|i| f64::from(i) + 1.0).collect();
            let b: Vec<f64> = (0..length).map(|i| f64::from(i * 2) - 3.0).collect();
            let plain = 0.0 + a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
            assert_eq!(
                dot(&a, &b).to_bits(),
                plain.to_bits(),
                "integers are exact in any order"
            );
        }
    }

    #[test]
    fn parts_are_the_queries_in_order() {
        let rows = Rows::try_new(vec![1, 3, 4], vec![5, 0, 7, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let parts = Drawn::Sparse(rows.clone()).parts(2, 9);
        let [Queries::Sparse(first), Queries::Sparse(second)] = &parts[..] else {
            panic!("{parts:?}")
        };
        assert_eq!((first.len(), second.len()), (2, 1));
        assert_eq!((first.row(1), second.row(0)), (rows.row(1), rows.row(2)));
        let parts = Drawn::Dense(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).parts(2, 2);
        let [Queries::Dense(first), Queries::Dense(second)] = &parts[..] else {
            panic!("{parts:?}")
        };
        assert_eq!((first.len(), second.as_slice()), (4, &[5.0, 6.0][..]));
    }

    #[test]
    fn a_point_is_found_by_the_queries_that_share_a_term_with_it() {
        let queries = Rows::try_new(vec![2, 3], vec![1, 4, 9], vec![2.0, 3.0, 1.0]).unwrap();
        let properties = Properties {
            dimension: 1,
            metric: Metric::Cosine,
            storage: crate::index::store::Storage::F32,
            sparse_dimension: 10,
        };
        let mut exact = Exact::new(&Drawn::Sparse(queries), properties);
        let part = Part {
            ids: ["both", "cancels", "far", "none"].map(str::to_owned).to_vec(),
            sparse: Rows::try_new(
                vec![3, 5, 6, 6],
                vec![1, 4, 9, 1, 4, 7],
                vec![1.0, 1.0, -1.0, 3.0, -2.0, 5.0],
            )
            .unwrap(),
            ..Part::default()
        };
        let mut told = |at| {
            let mut found = Vec::new();
            let has = exact.scores(&part, at, |query, score| found.push((query, score)));
            (has, found)
        };
        assert_eq!(told(0), (true, vec![(0, 5.0), (1, -1.0)]));
        assert_eq!(
            told(1),
            (true, vec![(0, 0.0)]),
            "it shares terms, whatever they sum up to"
        );
        assert_eq!(told(2), (true, Vec::new()));
        assert_eq!(told(3), (false, Vec::new()));
    }
}
