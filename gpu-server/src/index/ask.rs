//! What is asked of a view: the nearest points by dense vectors, by sparse ones, or by both.

use std::sync::Arc;

use super::filter::Filter;
use super::fusion::{Fused, Fusion, Standing};
use super::sparse::Rows;
use super::view::View;
use crate::error::Error;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// By what.
    pub queries: Queries,
    /// Points for each of them.
    pub k: usize,
    /// Which points are compared; None means all.
    pub filter: Option<Filter>,
    /// Points below this score are left out.
    pub threshold: Option<f32>,
}

/// Dense vectors are row-major [queries, dimension].
#[derive(Debug, Clone)]
pub enum Queries {
    /// By dense vectors.
    Dense(Vec<f32>),
    /// By sparse vectors.
    Sparse(Rows),
    /// By both, with as many rows each.
    Both(Vec<f32>, Rows, Fusion),
}

impl Queries {
    /// How many, for dense vectors of `dimension`.
    pub fn count(&self, dimension: usize) -> usize {
        match self {
            Self::Dense(vectors) => vectors.len() / dimension,
            Self::Sparse(rows) | Self::Both(_, rows, _) => rows.len(),
        }
    }
}

/// Places and scores, best first.
type Ranked<S> = Vec<(usize, S)>;

/// A point that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its id.
    pub id: Arc<str>,
    /// Larger is nearer.
    pub score: f32,
    /// Where the dense search has it, if it was fused with another.
    pub dense: Option<Standing>,
    /// Where the sparse search has it, if it was fused with another.
    pub sparse: Option<Standing>,
}

/// A score as it is told. Limits of the wire keep it within f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is meant")]
pub fn told(score: f64) -> f32 {
    score as f32
}

impl View {
    /// The nearest points of each query, best first, equal scores by id; None if a column has to be read first.
    ///
    /// # Errors
    /// [`Error::InvalidField`] naming a field that no payload has; what the device says.
    pub fn search(&mut self, ask: &Ask) -> Result<Option<Vec<Vec<Hit>>>, Error> {
        let chosen = match &ask.filter {
            None => None,
            Some(filter) => match self.matching(filter)? {
                None => return Ok(None),
                chosen => chosen,
            },
        };
        let chosen = chosen.as_deref();
        let hit = |place: usize, score: f32| Hit {
            id: Arc::clone(&self.ids[place]),
            score,
            dense: None,
            sparse: None,
        };
        let reaches = |hit: &Hit| ask.threshold.is_none_or(|least| hit.score >= least);
        let found: Vec<Vec<Hit>> = match &ask.queries {
            Queries::Dense(vectors) => {
                let hits = |found: Ranked<f32>| {
                    let hits = found.into_iter().map(|(place, score)| hit(place, score));
                    hits.take_while(reaches).collect()
                };
                self.nearest(vectors, ask.k, chosen)?.into_iter().map(hits).collect()
            }
            Queries::Sparse(rows) => {
                let hits = |found: Ranked<f64>| {
                    let hits = found.into_iter().map(|(place, score)| hit(place, told(score)));
                    hits.take_while(reaches).collect()
                };
                self.nearest_sparse(rows, ask.k, chosen)?
                    .into_iter()
                    .map(hits)
                    .collect()
            }
            Queries::Both(vectors, rows, fusion) => {
                let dense = self.nearest(vectors, fusion.candidates, chosen)?;
                let sparse = self.nearest_sparse(rows, fusion.candidates, chosen)?;
                let hits = |(dense, sparse): (Ranked<f32>, Ranked<f64>)| {
                    let fused = fusion.fuse(&dense, &sparse, ask.k, &self.ids).into_iter();
                    let hits = fused.map(|(place, fused): (usize, Fused)| Hit {
                        dense: fused.dense,
                        sparse: fused.sparse,
                        ..hit(place, told(fused.score))
                    });
                    hits.take_while(reaches).collect()
                };
                dense.into_iter().zip(sparse).map(hits).collect()
            }
        };
        Ok(Some(found))
    }

    fn nearest_sparse(&self, queries: &Rows, k: usize, chosen: Option<&[usize]>) -> Result<Vec<Ranked<f64>>, Error> {
        let sparse = self.sparse.as_ref();
        let sparse = sparse.ok_or_else(|| Error::internal("the collection keeps no sparse vectors"))?;
        let allowed = chosen.map(|chosen| {
            let mut allowed = vec![false; self.ids.len()];
            for &place in chosen {
                allowed[place] = true;
            }
            allowed
        });
        // As many threads as libtorch would take here for the dense search.
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        Ok(sparse.search(queries, k, &self.ids, allowed.as_deref(), threads))
    }
}
