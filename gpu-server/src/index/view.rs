//! A collection's vectors on the device, and exact search over them.
//!
//! Rows are compared in tiles, so that memory stays bounded however many there are. A filter is decided first, on the host,
//! and only the rows that match are compared; or, in a tile where most match, only their scores are looked at. Under cosine the rows are kept
//! scaled to unit length; under L2 distances are computed from differences, not by expanding the square, because the
//! expansion loses the small distances that matter most.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::columns::{Columns, Read};
use super::filter::{Cell, Field, Filter};
use super::sparse::{Postings, Rows};
use super::store::{Metric, Properties, Storage};
use super::top::{keep_best, tile_top};
use super::usage::Memory;
use crate::error::Error;
use crate::model::kernels::few_scores;
use crate::model::pooling::normalize;

/// Rows compared at once, at most.
const TILE: i64 = 65_536;
/// Elements of the rows compared at once, at most: rows that match a filter are copied together.
const TILE_ELEMENTS: i64 = 32 * 1024 * 1024;
/// Elements that are widened to f32 at once: they stay in the processor's cache, so that memory is read at half the width.
const WIDENED_ELEMENTS: i64 = 512 * 1024;

/// So many queries are compared with rows by a kernel that reads each row once, and widens half precision in registers; for
/// more of them a matrix product is worth its copies.
const FEW_QUERIES: i64 = 8;
/// Elements that are copied at once on a CPU: libtorch shares more out among its threads, and waiting for those costs more
/// than copying, most of all where the cores have other work.
const COPIED_ELEMENTS: i64 = 32 * 1024;
/// Elements that are copied at once to a GPU.
const SENT_ELEMENTS: i64 = 4 * 1024 * 1024;

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

    /// Makes a view of some rows (row-major, f32 little-endian) and keeps it under `key`, in place of any that was there.
    ///
    /// # Errors
    /// What the device says.
    pub fn build(
        &mut self,
        key: u64,
        properties: Properties,
        ids: &[Arc<str>],
        rows: &[u8],
        sparse: &Rows,
    ) -> Result<(), Error> {
        self.by_key.remove(&key);
        let mut view = View::new(properties, self.device)?;
        let staged = view.stage(ids, rows)?;
        view.apply(ids, staged, Read::new())?;
        view.write_sparse(ids, sparse)?;
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

/// Rows that are on the device and that no search sees yet.
#[derive(Debug)]
pub struct Staged {
    /// Points of the view then.
    before: usize,
    /// Places and rows, if some ids are there already; else the rows lie behind the last one in use.
    moving: Option<(Tensor, Tensor)>,
}

/// One collection's rows.
#[derive(Debug)]
pub struct View {
    metric: Metric,
    dimension: i64,
    device: Device,
    /// [capacity, dimension] of `kind`; the first `ids.len()` rows are in use.
    rows: Tensor,
    kind: Kind,
    pub(super) ids: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
    columns: Columns,
    /// None where points have no sparse vectors.
    pub(super) sparse: Option<Postings>,
}

impl View {
    fn new(properties: Properties, device: Device) -> Result<Self, Error> {
        let dimension = int(properties.dimension)?;
        let kind = match properties.storage {
            Storage::F32 => Kind::Float,
            Storage::F16 => Kind::Half,
            Storage::Bf16 => Kind::BFloat16,
        };
        let rows = Tensor::f_empty(&[0, dimension][..], (kind, device))?;
        Ok(Self {
            kind,
            metric: properties.metric,
            dimension,
            device,
            rows,
            ids: Vec::new(),
            places: HashMap::new(),
            columns: Columns::default(),
            sparse: (properties.sparse_dimension > 0).then(Postings::default),
        })
    }

    /// Points in it.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// What it takes.
    pub fn memory(&self) -> Memory {
        let rows = self.rows.numel() * self.kind.elt_size_in_bytes();
        Memory {
            device: u64::try_from(rows).unwrap_or(u64::MAX),
            sparse_index: self.sparse.as_ref().map_or(0, |sparse| sparse.host_bytes() as u64),
        }
    }

    /// The fields whose columns follow the writes.
    pub fn fields(&self) -> Vec<Field> {
        self.columns.fields()
    }

    /// Takes in what the payloads of `ids` have in some fields; all other points have no payload.
    pub fn add_columns(&mut self, ids: &[Arc<str>], read: Read) {
        for (field, cells) in read {
            let mut column = vec![Cell::Absent; self.ids.len()];
            for (id, cell) in ids.iter().zip(cells) {
                if let Some(&place) = self.places.get(id) {
                    column[place] = cell;
                }
            }
            self.columns.insert(field, column);
        }
    }

    /// Puts the rows of a write on the device, where no search sees them: whatever the device can refuse, it refuses here,
    /// before anything is committed. `rows` is row-major, f32 little-endian.
    ///
    /// # Errors
    /// What the device says; nothing that is visible has changed.
    pub fn stage(&mut self, ids: &[Arc<str>], rows: &[u8]) -> Result<Staged, Error> {
        let places: Vec<Option<usize>> = ids.iter().map(|id| self.places.get(id).copied()).collect();
        let added = places.iter().filter(|place| place.is_none()).count();
        let before = self.ids.len();
        self.reserve(before + added)?;
        let count = int(ids.len())?;
        if added == ids.len() {
            // Behind the last row in use there is room for them already.
            let room = self.rows.f_narrow(0, int(before)?, count)?;
            self.fill(&room, rows)?;
            return Ok(Staged { before, moving: None });
        }
        let apart = Tensor::f_empty(&[count, self.dimension][..], (self.kind, self.device))?;
        self.fill(&apart, rows)?;
        let mut next = before;
        let places = places.into_iter().map(|place| {
            int(place.unwrap_or_else(|| {
                next += 1;
                next - 1
            }))
        });
        let places: Vec<i64> = places.collect::<Result<_, _>>()?;
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
        Ok(Staged {
            before,
            moving: Some((places, apart)),
        })
    }

    /// Makes visible what [`Self::stage`] put there for the same ids: adds them, or replaces those that are there. `read` has
    /// their payloads' values for each of [`Self::fields`].
    ///
    /// # Errors
    /// [`Error::Internal`] if something else was written in between; what the device says.
    pub fn apply(&mut self, ids: &[Arc<str>], staged: Staged, read: Read) -> Result<(), Error> {
        if staged.before != self.ids.len() {
            return Err(Error::internal("a view was written to between two halves of a write"));
        }
        if let Some((places, rows)) = staged.moving {
            let (step, count) = (self.copied_rows(), int(ids.len())?);
            let mut start = 0;
            while start < count {
                let length = step.min(count - start);
                let (places, rows) = (places.f_narrow(0, start, length)?, rows.f_narrow(0, start, length)?);
                let _ = self.rows.f_index_copy_(0, &places, &rows)?;
                start += length;
            }
        }
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            let place = *self.places.entry(Arc::clone(id)).or_insert_with(|| {
                self.ids.push(Arc::clone(id));
                self.ids.len() - 1
            });
            places.push(place);
        }
        self.columns.write(&places, read);
        Ok(())
    }

    fn copied_rows(&self) -> i64 {
        let elements = if self.device == Device::Cpu {
            COPIED_ELEMENTS
        } else {
            SENT_ELEMENTS
        };
        (elements / self.dimension).max(1)
    }

    /// Writes rows into `room`, as the view keeps them.
    fn fill(&self, room: &Tensor, rows: &[u8]) -> Result<(), Error> {
        let row_bytes = usize::try_from(self.dimension).map_err(Error::internal)? * size_of::<f32>();
        let step = usize::try_from(self.copied_rows()).map_err(Error::internal)?;
        let mut start = 0;
        for part in rows.chunks(step * row_bytes) {
            let count = int(part.len() / row_bytes)?;
            let fresh = Tensor::f_from_data_size(part, &[count, self.dimension], Kind::Float)?;
            let mut fresh = fresh.f_to_device(self.device)?;
            if self.metric == Metric::Cosine {
                fresh = normalize(&fresh)?;
            }
            room.f_narrow(0, start, count)?.f_copy_(&fresh)?;
            start += count;
        }
        Ok(())
    }

    /// Follows [`Self::upsert`] with the sparse vectors of the same points.
    ///
    /// # Errors
    /// [`Error::Internal`] for a point that is not there.
    pub fn write_sparse(&mut self, ids: &[Arc<str>], rows: &Rows) -> Result<(), Error> {
        let Some(sparse) = &mut self.sparse else {
            return Ok(());
        };
        let place = |id| self.places.get(id).copied();
        let places: Option<Vec<usize>> = ids.iter().map(place).collect();
        sparse.write(&places.ok_or_else(|| Error::internal("a point has no row"))?, rows)
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
            self.columns.swap_remove(place);
            if let Some(sparse) = &mut self.sparse {
                sparse.swap_remove(place);
            }
            if place != last {
                self.places.insert(Arc::clone(&self.ids[place]), place);
                let moved = self.rows.f_narrow(0, int(last)?, 1)?.f_detach_copy()?;
                self.rows.f_narrow(0, int(place)?, 1)?.f_copy_(&moved)?;
            }
        }
        Ok(())
    }

    /// The places of the points that match, in order; None if a column has to be read first.
    pub(super) fn matching(&mut self, filter: &Filter) -> Result<Option<Vec<usize>>, Error> {
        let decided = self.columns.decide(filter, self.ids.len())?;
        Ok(decided.map(|decided| (0..decided.len()).filter(|&place| decided[place]).collect()))
    }

    /// How many points match; None if a column has to be read first.
    ///
    /// # Errors
    /// [`Error::InvalidField`] naming a field that no payload has.
    pub fn count(&mut self, filter: &Filter) -> Result<Option<usize>, Error> {
        Ok(self.matching(filter)?.map(|places| places.len()))
    }

    /// The places of the `k` nearest points of each query (row-major), best first, equal scores by id; of all points or of
    /// the `chosen` ones.
    ///
    /// # Errors
    /// What the device says.
    pub(super) fn nearest(
        &self,
        queries: &[f32],
        k: usize,
        chosen: Option<&[usize]>,
    ) -> Result<Vec<Vec<(usize, f32)>>, Error> {
        let mut queries = Tensor::f_from_slice(queries)?
            .f_reshape(&[-1, self.dimension][..])?
            .f_to_device(self.device)?;
        if self.metric == Metric::Cosine {
            queries = normalize(&queries)?;
        }
        let count = usize::try_from(queries.size2()?.0).map_err(Error::internal)?;
        let mut best: Vec<Vec<(usize, f32)>> = vec![Vec::new(); count];
        let step = usize::try_from(TILE.min(TILE_ELEMENTS / self.dimension)).map_err(Error::internal)?;
        for start in (0..self.ids.len()).step_by(step) {
            let end = self.ids.len().min(start + step);
            let chosen = chosen.map(|chosen| {
                let from = chosen.partition_point(|&place| place < start);
                let to = chosen.partition_point(|&place| place < end);
                &chosen[from..to]
            });
            if chosen.is_some_and(<[usize]>::is_empty) {
                continue;
            }
            let scores = self.tile_scores(&queries, start, end, chosen)?;
            tile_top(&scores, k, |query, found| {
                let place = |at: usize| chosen.map_or(start + at, |chosen| chosen[at]);
                // Adding 0 makes one zero of the two; they are equal, and must not part points that the id orders.
                best[query].extend(found.into_iter().map(|(at, score)| (place(at), score + 0.0)));
                keep_best(&mut best[query], k, &self.ids);
            })?;
        }
        Ok(best)
    }

    /// Scores [queries, points] of the rows from `start` to `end`, or of the `chosen` ones among them.
    fn tile_scores(
        &self,
        queries: &Tensor,
        start: usize,
        end: usize,
        chosen: Option<&[usize]>,
    ) -> Result<Tensor, Error> {
        let tile = self.rows.f_narrow(0, int(start)?, int(end - start)?)?;
        let score = |tile: &Tensor| self.scores(queries, tile);
        let Some(chosen) = chosen.filter(|chosen| chosen.len() < end - start) else {
            return score(&tile);
        };
        let places: Vec<i64> = chosen
            .iter()
            .map(|place| int(place - start))
            .collect::<Result<_, _>>()?;
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
        if chosen.len() > (end - start) / 2 {
            return Ok(score(&tile)?.f_index_select(1, &places)?);
        }
        score(&tile.f_index_select(0, &places)?)
    }

    /// Scores [queries, points] of some rows, in f32 whatever the rows are kept in: a product in half precision would round
    /// the sums, too, and points that differ would tie.
    fn scores(&self, queries: &Tensor, rows: &Tensor) -> Result<Tensor, Error> {
        let score = |rows: &Tensor| match self.metric {
            Metric::Dot => queries.f_matmul(&rows.f_transpose(0, 1)?),
            // Rounding may carry the cosine of equal directions past 1.
            Metric::Cosine => queries.f_matmul(&rows.f_transpose(0, 1)?)?.f_clamp_(-1.0, 1.0),
            // Mode 2: never through a matrix product.
            Metric::L2 => Tensor::f_cdist(queries, rows, 2.0, 2)?.f_neg(),
        };
        let on_cpu = self.device == Device::Cpu;
        if on_cpu && queries.size2()?.0 <= FEW_QUERIES {
            let scores = few_scores(queries, rows, self.metric == Metric::L2)?;
            if let Some(mut scores) = scores {
                return Ok(match self.metric {
                    Metric::Dot => scores,
                    Metric::Cosine => scores.f_clamp_(-1.0, 1.0)?,
                    Metric::L2 => scores.f_neg_()?,
                });
            }
        }
        if self.kind == Kind::Float {
            return Ok(score(rows)?);
        }
        let widened = |rows: &Tensor| score(&rows.f_to_kind(Kind::Float)?);
        if !on_cpu {
            return Ok(widened(rows)?);
        }
        let parts = rows.f_split((WIDENED_ELEMENTS / self.dimension).max(1), 0)?;
        let parts: Vec<Tensor> = parts.iter().map(widened).collect::<Result<_, _>>()?;
        Ok(Tensor::f_cat(&parts, 1)?)
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
            (self.kind, self.device),
        )?;
        let used = int(self.ids.len())?;
        grown.f_narrow(0, 0, used)?.f_copy_(&self.rows.f_narrow(0, 0, used)?)?;
        self.rows = grown;
        Ok(())
    }
}

fn int(value: usize) -> Result<i64, Error> {
    i64::try_from(value).map_err(Error::internal)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
