//! The best of a tile of scores, ties included; and the best of what several tiles gave.

use std::cmp::Ordering;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// Gives `take`, for each row of `scores` [queries, points], every point that is among the `k` best or ties with the last
/// of them, with its score. Row by row: where everything ties, only one row's points are in memory.
///
/// # Errors
/// What the device says.
pub fn tile_top(scores: &Tensor, k: usize, mut take: impl FnMut(usize, Vec<(usize, f32)>)) -> Result<(), Error> {
    let points = scores.size2()?.1;
    let wanted = i64::try_from(k).map_err(Error::internal)?.min(points);
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
    let index = |place: i64| usize::try_from(place).unwrap_or(0);
    let rows = values.chunks_exact(per_row).zip(places.chunks_exact(per_row));
    for (row, (values, places)) in rows.enumerate() {
        if reaching[row] <= wanted {
            take(
                row,
                places
                    .iter()
                    .map(|&place| index(place))
                    .zip(values.iter().copied())
                    .collect(),
            );
            continue;
        }
        // topk may keep any of the points that tie with the k-th; the order by id needs all of them.
        let at = i64::try_from(row).map_err(Error::internal)?;
        let line = scores.f_get(at)?;
        let all = host_i64(&line.f_ge_tensor(&cut.f_get(at)?)?.f_nonzero()?.f_flatten(0, -1)?)?;
        let line = host_f32(&line)?;
        take(
            row,
            all.into_iter()
                .map(|place| (index(place), line[index(place)]))
                .collect(),
        );
    }
    Ok(())
}

/// Keeps the `k` best points, best first, equal ones by id. `ids` are those of all points.
pub fn keep_best<S: PartialOrd>(found: &mut Vec<(usize, S)>, k: usize, ids: &[Arc<str>]) {
    let order = |(a, x): &(usize, S), (b, y): &(usize, S)| {
        // Sums of finite products are never NaN.
        let nearer = y.partial_cmp(x).unwrap_or(Ordering::Equal);
        nearer.then_with(|| ids[*a].cmp(&ids[*b]))
    };
    if found.len() > k {
        found.select_nth_unstable_by(k, order);
        found.truncate(k);
    }
    found.sort_unstable_by(order);
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
