//! A collection's vectors on the device, and exact search over them.
//!
//! Rows are compared in tiles, so that memory stays bounded however many there are. Under cosine the rows are kept
//! scaled to unit length; under L2 distances are computed from differences, not by expanding the square, because the
//! expansion loses the small distances that matter most.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::store::{Metric, Properties};
use crate::error::Error;
use crate::model::pooling::normalize;

/// Rows compared at once.
const TILE: i64 = 65_536;

/// The views of all collections, owned by the first lane.
#[derive(Debug)]
pub struct Views {
    device: Device,
    by_key: HashMap<u64, View>,
}

impl Views {
    /// None yet.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            by_key: HashMap::new(),
        }
    }

    /// Makes a view of some rows (row-major) and keeps it under `key`, in place of any that was there.
    ///
    /// # Errors
    /// What the device says.
    pub fn build(&mut self, key: u64, properties: Properties, ids: &[Arc<str>], rows: &[f32]) -> Result<(), Error> {
        self.by_key.remove(&key);
        let mut view = View::new(properties, self.device)?;
        view.upsert(ids, rows)?;
        self.by_key.insert(key, view);
        Ok(())
    }

    /// The view kept under `key`.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is none.
    pub fn get(&mut self, key: u64) -> Result<&mut View, Error> {
        self.by_key
            .get_mut(&key)
            .ok_or_else(|| Error::internal("a collection has no view"))
    }

    /// Forgets a view.
    pub fn remove(&mut self, key: u64) {
        self.by_key.remove(&key);
    }
}

/// A point that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its id.
    pub id: Arc<str>,
    /// Larger is nearer.
    pub score: f32,
}

/// One collection's rows.
#[derive(Debug)]
pub struct View {
    metric: Metric,
    dimension: i64,
    device: Device,
    /// f32 [capacity, dimension]; the first `ids.len()` rows are in use.
    rows: Tensor,
    ids: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
}

impl View {
    fn new(properties: Properties, device: Device) -> Result<Self, Error> {
        let dimension = int(properties.dimension)?;
        let rows = Tensor::f_empty(&[0, dimension][..], (Kind::Float, device))?;
        Ok(Self {
            metric: properties.metric,
            dimension,
            device,
            rows,
            ids: Vec::new(),
            places: HashMap::new(),
        })
    }

    /// Points in it.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Bytes on the device, spare capacity included.
    pub fn device_bytes(&self) -> u64 {
        u64::try_from(self.rows.numel() * size_of::<f32>()).unwrap_or(u64::MAX)
    }

    /// Adds rows, or replaces those whose id is there.
    ///
    /// # Errors
    /// What the device says.
    pub fn upsert(&mut self, ids: &[Arc<str>], rows: &[f32]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let added = ids.iter().filter(|id| !self.places.contains_key(*id)).count();
        self.reserve(self.ids.len() + added)?;
        let mut fresh = Tensor::f_from_slice(rows)?.f_reshape(&[int(ids.len())?, self.dimension][..])?;
        fresh = fresh.f_to_device(self.device)?;
        if self.metric == Metric::Cosine {
            fresh = normalize(&fresh)?;
        }
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            let place = *self.places.entry(Arc::clone(id)).or_insert_with(|| {
                self.ids.push(Arc::clone(id));
                self.ids.len() - 1
            });
            places.push(int(place)?);
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
        let _ = self.rows.f_index_copy_(0, &places, &fresh)?;
        Ok(())
    }

    /// Removes rows by id; the last row takes the place of a removed one.
    ///
    /// # Errors
    /// What the device says.
    pub fn remove(&mut self, ids: &[String]) -> Result<(), Error> {
        for id in ids {
            let Some(place) = self.places.remove(id.as_str()) else {
                continue;
            };
            let last = self.ids.len() - 1;
            self.ids.swap_remove(place);
            if place != last {
                self.places.insert(Arc::clone(&self.ids[place]), place);
                let moved = self.rows.f_narrow(0, int(last)?, 1)?.f_detach_copy()?;
                self.rows.f_narrow(0, int(place)?, 1)?.f_copy_(&moved)?;
            }
        }
        Ok(())
    }

    /// The `k` nearest points of each query (row-major), best first, equal scores by id.
    ///
    /// # Errors
    /// What the device says.
    pub fn search(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, Error> {
        let mut queries = Tensor::f_from_slice(queries)?
            .f_reshape(&[-1, self.dimension][..])?
            .f_to_device(self.device)?;
        if self.metric == Metric::Cosine {
            queries = normalize(&queries)?;
        }
        let count = usize::try_from(queries.size2()?.0).map_err(Error::internal)?;
        let mut best: Vec<Vec<(usize, f32)>> = vec![Vec::new(); count];
        let total = int(self.ids.len())?;
        let mut start = 0;
        while start < total {
            let length = TILE.min(total - start);
            let tile = self.rows.f_narrow(0, start, length)?;
            let scores = match self.metric {
                Metric::Cosine | Metric::Dot => queries.f_matmul(&tile.f_transpose(0, 1)?)?,
                // Mode 2: never through a matrix product.
                Metric::L2 => Tensor::f_cdist(&queries, &tile, 2.0, 2)?.f_neg()?,
            };
            for (found, tile_best) in best.iter_mut().zip(tile_top(&scores, k)?) {
                found.extend(
                    tile_best
                        .into_iter()
                        .map(|(at, score)| (usize::try_from(start).unwrap_or(0) + at, score)),
                );
                self.keep_best(found, k);
            }
            start += length;
        }
        let hit = |(place, score): (usize, f32)| Hit {
            id: Arc::clone(&self.ids[place]),
            // Rounding may carry the cosine of equal directions past 1.
            score: if self.metric == Metric::Cosine {
                score.clamp(-1.0, 1.0)
            } else {
                score
            },
        };
        Ok(best
            .into_iter()
            .map(|found| found.into_iter().map(hit).collect())
            .collect())
    }

    fn keep_best(&self, found: &mut Vec<(usize, f32)>, k: usize) {
        found.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| self.ids[*a].cmp(&self.ids[*b])));
        found.truncate(k);
    }

    fn reserve(&mut self, wanted: usize) -> Result<(), Error> {
        let capacity = self.rows.size2()?.0;
        let wanted = int(wanted)?;
        if wanted <= capacity {
            return Ok(());
        }
        // Doubling makes many small upserts cost linear time in all; the first one gets what it asks for.
        let grown = Tensor::f_empty(
            &[wanted.max(capacity * 2), self.dimension][..],
            (Kind::Float, self.device),
        )?;
        let used = int(self.ids.len())?;
        grown.f_narrow(0, 0, used)?.f_copy_(&self.rows.f_narrow(0, 0, used)?)?;
        self.rows = grown;
        Ok(())
    }
}

/// Per row of `scores` [queries, points]: every point that is among the `k` best or ties with the last of them.
fn tile_top(scores: &Tensor, k: usize) -> Result<Vec<Vec<(usize, f32)>>, Error> {
    let (count, points) = scores.size2()?;
    let wanted = int(k)?.min(points);
    let (values, places) = scores.f_topk(wanted, 1, true, true)?;
    let cut = values.f_narrow(1, wanted - 1, 1)?;
    let reaching = host_i64(
        &scores
            .f_ge_tensor(&cut)?
            .f_sum_dim_intlist(&[1_i64][..], false, Kind::Int64)?,
    )?;
    let values = host_f32(&values)?;
    let places = host_i64(&places)?;
    let per_row = usize::try_from(wanted).map_err(Error::internal)?;
    let mut rows = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for (row, (values, places)) in values
        .chunks_exact(per_row)
        .zip(places.chunks_exact(per_row))
        .enumerate()
    {
        if reaching[row] <= wanted {
            let pairs = places
                .iter()
                .zip(values)
                .map(|(&place, &value)| (usize::try_from(place).unwrap_or(0), value));
            rows.push(pairs.collect());
        } else {
            // topk may keep any of the points that tie with the k-th; the order by id needs all of them.
            let line = scores.f_get(int(row)?)?;
            let all = host_i64(
                &line
                    .f_ge_tensor(&cut.f_get(int(row)?)?)?
                    .f_nonzero()?
                    .f_flatten(0, -1)?,
            )?;
            let line = host_f32(&line)?;
            let places = all.into_iter().map(|place| usize::try_from(place).unwrap_or(0));
            rows.push(places.map(|place| (place, line[place])).collect());
        }
    }
    Ok(rows)
}

fn host_f32(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}

fn host_i64(tensor: &Tensor) -> Result<Vec<i64>, Error> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut values = vec![0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}

fn int(value: usize) -> Result<i64, Error> {
    i64::try_from(value).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        match metric {
            Metric::Dot => dot(a, b),
            Metric::Cosine => dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()),
            Metric::L2 => -a
                .iter()
                .zip(b)
                .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
                .sum::<f64>()
                .sqrt(),
        }
    }

    fn vector() -> impl Strategy<Value = Vec<f32>> {
        // Few distinct values, so that equal scores happen.
        proptest::collection::vec((1_i8..4).prop_map(f32::from), 3)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Upsert(Vec<(u8, Vec<f32>)>),
        Remove(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => proptest::collection::btree_map(0_u8..20, vector(), 1..8).prop_map(|m| Step::Upsert(m.into_iter().collect())),
            1 => proptest::collection::vec(0_u8..20, 1..6).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn search_equals_a_plain_model(
            steps in proptest::collection::vec(step(), 1..12),
            query in vector(),
            k in 1_usize..8,
            metric in prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)],
        ) {
            let mut view = View::new(Properties { dimension: 3, metric }, Device::Cpu).unwrap();
            let mut plain: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Upsert(points) => {
                        let ids: Vec<Arc<str>> = points.iter().map(|(id, _)| format!("p{id:02}").into()).collect();
                        let rows: Vec<f32> = points.iter().flat_map(|(_, vector)| vector.clone()).collect();
                        view.upsert(&ids, &rows).unwrap();
                        plain.extend(points.into_iter().map(|(id, vector)| (format!("p{id:02}"), vector)));
                    }
                    Step::Remove(ids) => {
                        let ids: Vec<String> = ids.into_iter().map(|id| format!("p{id:02}")).collect();
                        view.remove(&ids).unwrap();
                        plain.retain(|id, _| !ids.contains(id));
                    }
                }
            }
            prop_assert_eq!(view.len(), plain.len());
            let found = view.search(&query, k).unwrap().remove(0);
            let mut want: Vec<(f64, &String)> = plain.iter().map(|(id, v)| (score(metric, &query, v), id)).collect();
            want.sort_by(|(x, a), (y, b)| y.total_cmp(x).then_with(|| a.cmp(b)));
            prop_assert_eq!(found.len(), k.min(plain.len()));
            for (hit, (score_wanted, id)) in found.iter().zip(&want) {
                prop_assert!((f64::from(hit.score) - score_wanted).abs() < 1e-5);
                // Where float32 cannot tell two scores apart, either order is right; equal inputs must follow the ids.
                let twin = want.iter().filter(|(s, _)| (s - score_wanted).abs() < 1e-6).count() > 1;
                prop_assert!(twin || *hit.id == **id);
            }
        }
    }

    #[test]
    fn equal_scores_are_ordered_by_id_also_at_the_cut() {
        let mut view = View::new(
            Properties {
                dimension: 1,
                metric: Metric::Dot,
            },
            Device::Cpu,
        )
        .unwrap();
        let ids: Vec<Arc<str>> = ["d", "b", "c", "a", "e"].map(Arc::from).into();
        view.upsert(&ids, &[1.0, 1.0, 1.0, 1.0, 2.0]).unwrap();
        let found: Vec<String> = view.search(&[1.0], 3).unwrap()[0]
            .iter()
            .map(|hit| hit.id.to_string())
            .collect();
        assert_eq!(found, ["e", "a", "b"]);
    }
}
