//! Reciprocal-rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): ranks of two searches become one order. Scores of the two
//! are on scales of their own, so only ranks count.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::top::keep_best;

/// How two searches are fused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fusion {
    /// Points that each search hands on.
    pub candidates: usize,
    /// The larger it is, the less the first ranks stand out.
    pub rank_constant: f64,
    /// What a rank of the dense search counts.
    pub dense_weight: f64,
    /// What a rank of the sparse search counts.
    pub sparse_weight: f64,
}

/// Where a search has a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// From 1.
    pub rank: u32,
    /// Its score there.
    pub score: f32,
}

/// A point that at least one of the two found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Fused {
    /// Σ weight / (`rank_constant` + rank).
    pub score: f64,
    /// In the dense search.
    pub dense: Option<Standing>,
    /// In the sparse search.
    pub sparse: Option<Standing>,
}

impl Fusion {
    /// The `k` best of two lists of points, best first, equal scores by id; both lists are best first.
    pub fn fuse(
        &self,
        dense: &[(usize, f32)],
        sparse: &[(usize, f64)],
        k: usize,
        ids: &[Arc<str>],
    ) -> Vec<(usize, Fused)> {
        let mut all: BTreeMap<usize, Fused> = BTreeMap::new();
        let part = |rank: u32, weight: f64| weight / (self.rank_constant + f64::from(rank));
        for (rank, &(place, score)) in (1..).zip(dense) {
            let fused = all.entry(place).or_default();
            fused.score += part(rank, self.dense_weight);
            fused.dense = Some(Standing { rank, score });
        }
        for (rank, &(place, score)) in (1..).zip(sparse) {
            let score = super::ask::told(score);
            let fused = all.entry(place).or_default();
            fused.score += part(rank, self.sparse_weight);
            fused.sparse = Some(Standing { rank, score });
        }
        let mut best: Vec<(usize, f64)> = all.iter().map(|(place, fused)| (*place, fused.score)).collect();
        keep_best(&mut best, k, ids);
        let with_parts = |(place, _)| all.remove(&place).map(|fused| (place, fused));
        best.into_iter().filter_map(with_parts).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same in the plainest words: every point's score on its own, then one sort.
    fn plainly(fusion: Fusion, dense: &[usize], sparse: &[usize], k: usize, ids: &[Arc<str>]) -> Vec<(usize, f64)> {
        let part = |list: &[usize], place: usize, weight: f64| {
            let found = list.iter().position(|&other| other == place);
            found.map_or(0.0, |at| weight / (fusion.rank_constant + (at + 1) as f64))
        };
        let mut all: Vec<(usize, f64)> = (0..ids.len())
            .filter(|place| dense.contains(place) || sparse.contains(place))
            .map(|place| {
                (
                    place,
                    part(dense, place, fusion.dense_weight) + part(sparse, place, fusion.sparse_weight),
                )
            })
            .collect();
        all.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| ids[*a].cmp(&ids[*b])));
        all.truncate(k);
        all
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_plain_sums(
            dense in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
            sparse in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
            lengths in (0..12_usize, 0..12_usize),
            k in 1..30_usize,
            rank_constant in prop_oneof![Just(60.0), Just(0.0), Just(1.0)],
            weights in prop_oneof![Just((1.0, 1.0)), Just((0.5, 2.0))],
        ) {
            let ids: Vec<Arc<str>> = (0..12).rev().map(|id| Arc::from(format!("p{id:02}"))).collect();
            let (dense, sparse) = (&dense[..lengths.0], &sparse[..lengths.1]);
            let fusion = Fusion {
                candidates: 12, rank_constant, dense_weight: weights.0, sparse_weight: weights.1,
            };
            let with = |list: &[usize]| list.iter().map(|&place| (place, place as f64)).collect::<Vec<_>>();
            let narrow = dense.iter().map(|&place| (place, 0.5_f32)).collect::<Vec<_>>();
            let fused = fusion.fuse(&narrow, &with(sparse), k, &ids);
            let found: Vec<(usize, f64)> = fused.iter().map(|(place, fused)| (*place, fused.score)).collect();
            prop_assert_eq!(found, plainly(fusion, dense, sparse, k, &ids));
            for (place, point) in fused {
                let rank = |list: &[usize]| list.iter().position(|&other| other == place).map(|at| at + 1);
                prop_assert_eq!(point.dense.map(|standing| standing.rank as usize), rank(dense));
                prop_assert_eq!(point.sparse.map(|standing| standing.rank as usize), rank(sparse));
            }
        }
    }
}
