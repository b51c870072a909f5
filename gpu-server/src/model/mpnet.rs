//! MPNet's encoder (Song et al. 2020): RoBERTa without segments, with a bias on the attention scores that depends on how
//! far apart two tokens are, the same in every layer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tch::{Device, Kind, Tensor};

use super::architecture::{Architecture, Family};
use super::kernels::Param;
use super::layers::{LayerNorm, rows};
use super::packed::{Batch, Wanted};
use super::post_norm::{Layers, Names};
use super::to_i64;
use super::weights::Weights;
use crate::error::Error;

const NAMES: Names = Names {
    projections: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
};

/// The encoder.
#[derive(Debug)]
pub struct Mpnet {
    words: Param,
    positions: Param,
    norm: LayerNorm,
    layers: Layers,
    /// [1, heads, 2 * reach + 1]: the bias of a key that is `column - reach` tokens after the query.
    distances: Param,
    reach: i64,
}

impl Mpnet {
    /// Takes the encoder's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>) -> Result<Self, Error> {
        let hidden = shape.hidden_size;
        let table = |name: &str, count| {
            let name = format!("embeddings.{name}_embeddings.weight");
            weights.take(&name, &[count, hidden]).map(Param::new)
        };
        let Family::Mpnet { buckets } = shape.family else {
            return Err(Error::internal("not MPNet"));
        };
        let biases = weights.take(
            "encoder.relative_attention_bias.weight",
            &[buckets, shape.num_attention_heads],
        )?;
        let reach = to_i64(shape.max_tokens())? - 1;
        let buckets = buckets_of(&Tensor::f_arange_start(-reach, reach + 1, (Kind::Int64, Device::Cpu))?)?;
        let buckets = buckets.f_to_device(biases.device())?;
        let distances = biases.f_index_select(0, &buckets)?.f_transpose(0, 1)?;
        Ok(Self {
            words: table("word", shape.vocab_size)?,
            positions: table("position", shape.max_position_embeddings)?,
            norm: LayerNorm::load(weights, "embeddings.LayerNorm", hidden, shape.norm_eps, true)?,
            layers: Layers::load(shape, weights, &NAMES)?,
            distances: Param::new(distances.f_unsqueeze(0)?.f_contiguous()?),
            reach,
        })
    }

    /// The wanted tokens' vectors, [tokens or sequences, hidden], in the weights' element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, batch: &Batch, wanted: Wanted) -> Result<Tensor, Error> {
        let mut input = rows(&self.words, &batch.ids)?;
        let _ = input.f_add_(&rows(&self.positions, &batch.positions)?)?;
        let input = self.norm.forward(&input)?;
        // Made once for all layers.
        let mut biases = HashMap::new();
        for run in &batch.runs {
            if let Entry::Vacant(place) = biases.entry(run.length) {
                place.insert(self.bias(run.length, input.device())?);
            }
        }
        let bias = |length| {
            let found = biases.get(&length).map(Tensor::shallow_clone);
            found.ok_or_else(|| Error::internal("a length that is not in the batch"))
        };
        self.layers.forward(input, batch, wanted, Some(&bias))
    }

    /// [1, heads, length, length].
    fn bias(&self, length: i64, device: Device) -> Result<Tensor, Error> {
        let tokens = Tensor::f_arange(length, (Kind::Int64, device))?;
        let distance = tokens.f_unsqueeze(0)?.f_sub(&tokens.f_unsqueeze(1)?)?;
        let columns = distance.f_add_scalar(self.reach)?.f_flatten(0, 1)?;
        let bias = self.distances.f_index_select(2, &columns)?;
        Ok(bias.f_unflatten(2, [length, length])?)
    }
}

/// The buckets of keys that are `distances` tokens after their query (Raffel et al. 2020, T5), i64 [n], of 32: 16 for each
/// direction, of which 8 hold one distance each and 8 hold logarithmically wider ranges, up to 128 tokens. With torch's own
/// logarithm, because a bucket begins where it is a whole number.
fn buckets_of(distances: &Tensor) -> Result<Tensor, Error> {
    let after = distances.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(16)?;
    let distance = distances.f_abs()?;
    let ratio = distance.f_to_kind(Kind::Float)?.f_div_scalar(8.0)?.f_log()?;
    let wider = ratio.f_div_scalar(16.0_f64.ln())?.f_mul_scalar(8.0)?;
    // The logarithm of 0 is not a number of tokens; distances below 8 are taken from the other branch.
    let wider = wider.f_clamp(0.0, 7.0)?.f_to_kind(Kind::Int64)?.f_add_scalar(8)?;
    let near = distance.f_lt(8)?;
    Ok(distance.f_where_self(&near, &wider)?.f_add(&after)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_tokens_have_buckets_of_their_own() {
        let distances = [0, -1, -7, 1, 7, -8, -127, -128, -400, 400];
        let buckets: Vec<i64> = buckets_of(&Tensor::from_slice(&distances)).unwrap().try_into().unwrap();
        assert_eq!(buckets, [0, 1, 7, 17, 23, 8, 15, 15, 15, 31]);
    }
}
