//! A batch without padding: all tokens of all sequences one after another, and where each sequence is.
//!
//! Sequences are sorted by length, so that those of equal length lie side by side and are computed together where an
//! operation cannot mix sequences (attention on the CPU, pooling). Everything else sees one long [tokens, hidden] matrix.

use tch::{Device, Kind, Tensor};

use super::kernels::{self, Sight};
use super::to_i64;
use super::tokenizer::Encoded;
use crate::error::Error;

/// Sequences of equal length that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one's first token.
    pub start: i64,
    /// How many sequences.
    pub rows: i64,
    /// Tokens of each.
    pub length: i64,
    /// Tokens at the front of each that are not pooled.
    pub skipped: i64,
}

impl Run {
    /// Its part of [tokens, …], as a view [rows, length, …].
    ///
    /// # Errors
    /// What the device says.
    pub fn of(self, tokens: &Tensor) -> Result<Tensor, Error> {
        let part = tokens.f_narrow(0, self.start, self.rows * self.length)?;
        Ok(part.f_unflatten(0, [self.rows, self.length])?)
    }
}

/// How the positions of a sequence's tokens are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// 0 for the first token.
    FromZero,
    /// RoBERTa's way (`create_position_ids_from_input_ids`): tokens with this id, padding, have it as their position,
    /// wherever they stand; all others are counted from the next number on.
    After(u32),
}

impl Numbering {
    fn positions(self, ids: &[u32]) -> impl Iterator<Item = i64> {
        let mut next = match self {
            Self::FromZero => 0,
            Self::After(padding) => i64::from(padding) + 1,
        };
        ids.iter().map(move |&id| match self {
            Self::After(padding) if id == padding => i64::from(padding),
            Self::FromZero | Self::After(_) => {
                next += 1;
                next - 1
            }
        })
    }
}

/// Which token vectors are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Every token's.
    All,
    /// The first one's of each sequence.
    First,
    /// The last one's of each sequence.
    Last,
}

/// Several inputs on a device.
#[derive(Debug)]
pub struct Batch {
    /// i64 [tokens].
    pub ids: Tensor,
    /// i64 [tokens]: 0 for the first segment, 1 for the second.
    pub type_ids: Tensor,
    /// i64 [tokens]: each token's position in its sequence.
    pub positions: Tensor,
    /// i64 [sequences]: where each begins, its skipped tokens left out.
    pub first: Tensor,
    /// i64 [sequences]: where each ends.
    pub last: Tensor,
    /// The sequences, longest first.
    pub runs: Vec<Run>,
    /// For each sequence in here, its place among the inputs.
    pub order: Vec<usize>,
    /// Where each sequence begins, and the end of the last.
    bounds: Vec<i64>,
    /// The same as i32, on a GPU only: what its attention takes.
    starts: Option<Tensor>,
}

impl Batch {
    /// Lays inputs out on `device`; none of them is empty.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(inputs: &[&Encoded], numbering: Numbering, device: Device) -> Result<Self, Error> {
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse((inputs[at].ids.len(), inputs[at].skipped)));
        let tokens = inputs.iter().map(|input| input.ids.len()).sum();
        let (mut ids, mut types, mut positions) = (
            Vec::with_capacity(tokens),
            Vec::with_capacity(tokens),
            Vec::with_capacity(tokens),
        );
        let (mut first, mut last) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
        let mut runs: Vec<Run> = Vec::new();
        for &at in &order {
            let input = inputs[at];
            let (start, length) = (to_i64(ids.len())?, to_i64(input.ids.len())?);
            let skipped = to_i64(input.skipped)?;
            first.push(start + skipped);
            last.push(start + length - 1);
            ids.extend(input.ids.iter().map(|&id| i64::from(id)));
            types.extend(input.type_ids.iter().map(|&id| i64::from(id)));
            positions.extend(numbering.positions(&input.ids));
            match runs.last_mut() {
                Some(run) if (run.length, run.skipped) == (length, skipped) => run.rows += 1,
                _ => runs.push(Run {
                    start,
                    rows: 1,
                    length,
                    skipped,
                }),
            }
        }
        let place = |values: &[i64]| -> Result<Tensor, Error> {
            let host = Tensor::f_from_slice(values)?;
            Ok(match device {
                Device::Cpu => host,
                // Out of page-locked memory the copy needs not be waited for. libtorch's allocator keeps that memory until the
                // copy has been made.
                _ => host
                    .f_pin_memory(device)?
                    .f_to_device_(device, Kind::Int64, true, false)?,
            })
        };
        let bounds: Vec<i64> = std::iter::once(0).chain(last.iter().map(|end| end + 1)).collect();
        let starts = match device {
            Device::Cpu => None,
            _ => Some(place(&bounds)?.f_to_kind(Kind::Int)?),
        };
        Ok(Self {
            ids: place(&ids)?,
            type_ids: place(&types)?,
            positions: place(&positions)?,
            first: place(&first)?,
            last: place(&last)?,
            runs,
            order,
            bounds,
            starts,
        })
    }

    /// Those rows of [tokens, …] that are wanted.
    ///
    /// # Errors
    /// What the device says.
    pub fn only(&self, wanted: Wanted, tokens: &Tensor) -> Result<Tensor, Error> {
        Ok(match wanted {
            Wanted::All => tokens.shallow_clone(),
            Wanted::First => tokens.f_index_select(0, &self.first)?,
            Wanted::Last => tokens.f_index_select(0, &self.last)?,
        })
    }

    /// Attention within each sequence: query [tokens, heads, size], key and value [tokens, key heads, size], where each key
    /// head is read by as many queries; gives [tokens, heads * size]. `bias(length)` is added to the scores of sequences of
    /// that length: [1, heads, length, length]; with it there is no sight to limit.
    ///
    /// # Errors
    /// What the device says.
    pub fn attention(
        &self,
        (query, key, value): (&Tensor, &Tensor, &Tensor),
        sight: Sight,
        scale: f64,
        bias: Option<&dyn Fn(i64) -> Result<Tensor, Error>>,
    ) -> Result<Tensor, Error> {
        let (tokens, heads, size) = query.size3()?;
        let parts = (query, key, value);
        if let (None, Device::Cpu) = (bias, query.device())
            && let Some(context) = kernels::sequence_attention(parts, &self.bounds, sight, scale)?
        {
            return Ok(context);
        }
        // libtorch's operators want as many heads of keys as of queries.
        let group = heads / key.size3()?.1;
        let (key, value) = (&spread(key, group)?, &spread(value, group)?);
        let longest = self.runs.first().map_or(0, |run| run.length);
        // A window that is as wide as every sequence hides nothing.
        let window = sight.window.filter(|&window| window < longest - 1);
        let sight = Sight { window, ..sight };
        // The GPU's kernels take no bias, and a window in half precision only.
        let packed = bias.is_none() && (window.is_none() || query.kind() != Kind::Float);
        if let (Some(starts), true) = (&self.starts, packed) {
            let context = kernels::packed_attention((query, key, value), starts, longest, sight, scale)?;
            return Ok(context.f_reshape([tokens, heads * size])?);
        }
        let mut parts = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let split = |tensor| -> Result<Tensor, Error> { Ok(run.of(tensor)?.f_transpose(1, 2)?) };
            let mask = match bias {
                Some(bias) => Some(bias(run.length)?),
                None => mask(run.length, sight, query)?,
            };
            let causal = sight.causal && mask.is_none();
            let context = Tensor::f_scaled_dot_product_attention(
                &split(query)?,
                &split(key)?,
                &split(value)?,
                mask.as_ref(),
                0.0,
                causal,
                scale,
                false,
            )?;
            let context = context.f_transpose(1, 2)?;
            parts.push(context.f_reshape([run.rows * run.length, heads * size])?);
        }
        joined(parts)
    }
}

/// Each head as many times as a group has queries.
fn spread(tensor: &Tensor, group: i64) -> Result<Tensor, Error> {
    if group == 1 {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_repeat_interleave_self_int(group, 1, None)?)
}

/// Parts of a batch, in the order of its runs, one after another.
///
/// # Errors
/// What the device says.
pub fn joined(mut parts: Vec<Tensor>) -> Result<Tensor, Error> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Ok(Tensor::f_cat(&parts, 0)?),
    }
}

/// A bool mask [length, length] for what `is_causal` alone cannot say: none if nothing is hidden or only the future is.
fn mask(length: i64, sight: Sight, like: &Tensor) -> Result<Option<Tensor>, Error> {
    let Some(window) = sight.window.filter(|&window| window < length - 1) else {
        return Ok(None);
    };
    let seen = Tensor::f_ones([length, length], (Kind::Bool, like.device()))?.f_triu(-window)?;
    Ok(Some(seen.f_tril(if sight.causal { 0 } else { window })?))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)] // extents of small tensors
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(lengths: &[usize]) -> Batch {
        let inputs: Vec<Encoded> = lengths
            .iter()
            .map(|&length| Encoded {
                ids: vec![1; length],
                type_ids: vec![0; length],
                ..Encoded::default()
            })
            .collect();
        let inputs: Vec<&Encoded> = inputs.iter().collect();
        Batch::new(&inputs, Numbering::FromZero, Device::Cpu).unwrap()
    }

    /// Attention as the paper writes it (Vaswani et al. 2017), token by token; and for each element how far f32 may be from
    /// it, whatever the order of its sums (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    fn by_definition(parts: [&Tensor; 3], batch: &Batch, sight: Sight, scale: f64) -> Vec<(f64, f64)> {
        const UNIT: f64 = f32::EPSILON as f64 / 2.0;
        let [query, key, value] =
            parts.map(|tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).contiguous().view(-1)).unwrap());
        let (tokens, heads, size) = parts[0].size3().unwrap();
        let (heads, size) = (heads as usize, size as usize);
        let row = |values: &[f64], token: usize, head: usize| values[(token * heads + head) * size..][..size].to_vec();
        let mut out = vec![(0.0, 0.0); tokens as usize * heads * size];
        for window in batch.bounds.windows(2) {
            let (start, end) = (window[0] as usize, window[1] as usize);
            for (at, head) in (start..end).flat_map(|at| (0..heads).map(move |head| (at, head))) {
                let seen: Vec<usize> = (start..end)
                    .filter(|&other| !sight.causal || other <= at)
                    .filter(|&other| sight.window.is_none_or(|window| at.abs_diff(other) as i64 <= window))
                    .collect();
                let asked = row(&query, at, head);
                let products = |other: usize| {
                    let keys = row(&key, other, head);
                    keys.into_iter()
                        .zip(asked.clone())
                        .map(|(k, q)| k * q * scale)
                        .collect::<Vec<f64>>()
                };
                let products: Vec<Vec<f64>> = seen.iter().map(|&other| products(other)).collect();
                let scores: Vec<f64> = products.iter().map(|products| products.iter().sum()).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                // How wrong a weight may be, relative to it: by its score's sum and by its power of e.
                let wrong = products.iter().zip(&scores).map(|(products, score)| {
                    let magnitude: f64 = products.iter().map(|product| product.abs()).sum();
                    UNIT * (size as f64 * magnitude + 2.0 * (score - top).abs() + 8.0)
                });
                let wrong: Vec<f64> = wrong.collect();
                let values: Vec<Vec<f64>> = seen.iter().map(|&other| row(&value, other, head)).collect();
                for place in 0..size {
                    let terms = || {
                        weights
                            .iter()
                            .zip(&values)
                            .map(|(weight, row)| (weight / total, row[place]))
                    };
                    let exact: f64 = terms().map(|(weight, v)| weight * v).sum();
                    let by_weights: f64 = terms()
                        .zip(&wrong)
                        .map(|((weight, v), wrong)| weight * (v - exact).abs() * wrong)
                        .sum();
                    let by_sum: f64 =
                        terms().map(|(weight, v)| weight * v.abs()).sum::<f64>() * UNIT * (seen.len() + 8) as f64;
                    out[(at * heads + head) * size + place] = (exact, by_weights + by_sum);
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn attention_is_what_its_definition_says(
            lengths in proptest::collection::vec(1_usize..90, 1..6),
            heads in 1_i64..4,
            // 24 is no multiple of a vector: libtorch computes it.
            size in prop::sample::select(vec![16_i64, 24, 32, 48, 64]),
            causal: bool,
            window in proptest::option::of(0_i64..100),
            seed: u32,
        ) {
            tch::manual_seed(i64::from(seed));
            let batch = batch(&lengths);
            let tokens = lengths.iter().sum::<usize>() as i64;
            // Side by side, as a joint projection gives them.
            let joint = Tensor::randn([tokens, 3, heads, size], (Kind::Float, Device::Cpu)) * 2.0;
            let [query, key, value] = [0, 1, 2].map(|part| joint.select(1, part));
            let sight = Sight { causal, window };
            let found = batch.attention((&query, &key, &value), sight, 0.2, None).unwrap();
            let found = Vec::<f32>::try_from(found.contiguous().view(-1)).unwrap();
            let wanted = by_definition([&query, &key, &value], &batch, sight, 0.2);
            for (found, (wanted, bound)) in found.iter().zip(&wanted) {
                prop_assert!((f64::from(*found) - wanted).abs() <= *bound, "{found} is not {wanted}, give or take {bound}");
            }
        }
    }

    #[test]
    fn inputs_are_sorted_into_runs_and_their_places_kept() {
        let batch = batch(&[3, 7, 3, 1]);
        assert_eq!(batch.order, [1, 0, 2, 3]);
        let runs: Vec<_> = batch.runs.iter().map(|run| (run.start, run.rows, run.length)).collect();
        assert_eq!(runs, [(0, 1, 7), (7, 2, 3), (13, 1, 1)]);
        assert_eq!(batch.bounds, [0, 7, 10, 13, 14]);
    }

    /// The result is off by half a unit in the last place of the kind at most, and before that by a few roundings of f32: of each
    /// sum and of their mean, which count as much as the norm magnifies them, of the norm, and of the bias.
    #[test]
    fn a_sum_and_its_norm_in_one_pass_are_those_of_two() {
        let few = 8.0 * 2_f64.powi(-24);
        for (kind, rounding) in [(Kind::Float, 2_f64.powi(-24)), (Kind::BFloat16, 2_f64.powi(-8))] {
            for seed in 0..200 {
                tch::manual_seed(seed);
                let make = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
                let (input, residual) = (make(&[5, 48]) * 3.0, make(&[5, 48]) + 1.0);
                let (weight, bias) = (make(&[48]), make(&[48]));
                let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let sum = wide(&input) + wide(&residual);
                let norm = sum.layer_norm([48], None::<Tensor>, None::<Tensor>, 1e-12, true);
                let summed = sum.abs() + sum.abs().mean_dim(-1, true, Kind::Double);
                let magnified = summed / sum.std_dim(-1, false, true) + norm.abs();
                let wanted = norm * wide(&weight) + wide(&bias);
                let bound = wanted.abs() * rounding + (magnified * wide(&weight).abs() + wide(&bias).abs()) * few;
                let (weight, bias) = (kernels::Param::new(weight), kernels::Param::new(bias));
                if let Some(found) = kernels::add_layer_norm(&input, &residual, (&weight, &bias), 1e-12).unwrap() {
                    let most = ((wide(&found) - wanted).abs() / bound).max().double_value(&[]);
                    assert!(
                        most <= 1.0,
                        "{kind:?}, seed {seed}: {most} times what rounding explains"
                    );
                }
            }
        }
    }
}
