//! Qwen3's decoder (Yang et al. 2025) as an encoder of texts: each token sees those before it, so that the last token's
//! vector stands for the text. Queries share keys and values in groups, both are normalised per head, positions are rotary.

use tch::Tensor;

use super::architecture::{Architecture, Family, Qwen3 as Own};
use super::gated::Gated;
use super::kernels::{Param, Sight};
use super::layers::{Linear, RmsNorm, rows};
use super::packed::{Batch, Wanted};
use super::rope::{Rope, Turn};
use super::to_i64;
use super::weights::Weights;
use crate::error::Error;

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    query_key_value: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    attention_output: Linear,
    feed_forward_norm: RmsNorm,
    feed_forward: Gated,
}

/// The decoder without its word predictor.
#[derive(Debug)]
pub struct Qwen3 {
    words: Param,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    rope: Rope,
    heads: i64,
    key_value_heads: i64,
    size: i64,
}

impl Qwen3 {
    /// Takes the decoder's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>) -> Result<Self, Error> {
        let Family::Qwen3(own) = &shape.family else {
            return Err(Error::internal("not Qwen3"));
        };
        let words = weights.take("embed_tokens.weight", &[shape.vocab_size, shape.hidden_size])?;
        let layer = |number| Layer::load(shape, own, weights, number);
        Ok(Self {
            layers: (0..shape.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: RmsNorm::load(weights, "norm", shape.hidden_size, shape.norm_eps)?,
            rope: Rope::new(own.theta, own.head_size, words.device())?,
            heads: to_i64(shape.num_attention_heads)?,
            key_value_heads: to_i64(own.key_value_heads)?,
            size: to_i64(own.head_size)?,
            words: Param::new(words),
        })
    }

    /// The wanted tokens' vectors, [tokens or sequences, hidden], in the weights' element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, batch: &Batch, wanted: Wanted) -> Result<Tensor, Error> {
        let turn = self.rope.at(&batch.positions)?;
        let mut hidden = rows(&self.words, &batch.ids)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let last = number + 1 == self.layers.len();
            hidden = self.layer(layer, &hidden, batch, &turn, if last { wanted } else { Wanted::All })?;
        }
        self.final_norm.forward(&hidden)
    }

    fn layer(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        batch: &Batch,
        turn: &Turn,
        wanted: Wanted,
    ) -> Result<Tensor, Error> {
        let (tokens, _) = hidden.size2()?;
        let (heads, shared) = (self.heads, self.key_value_heads);
        let split = layer.query_key_value.forward(&layer.attention_norm.forward(hidden)?)?;
        let split = split.f_view(&[tokens, heads + 2 * shared, self.size][..])?;
        let query = turn.apply(&layer.query_norm.forward(&split.f_narrow(1, 0, heads)?)?)?;
        let key = turn.apply(&layer.key_norm.forward(&split.f_narrow(1, heads, shared)?)?)?;
        let value = split.f_narrow(1, heads + shared, shared)?;
        let sight = Sight {
            causal: true,
            window: None,
        };
        let scale = 1.0 / (self.size as f64).sqrt();
        let context = batch.attention((&query, &key, &value), sight, scale, None)?;
        let context = layer.attention_output.forward(&batch.only(wanted, &context)?)?;
        let attended = batch.only(wanted, hidden)?.f_add(&context)?;
        let mut output = layer
            .feed_forward
            .forward(&layer.feed_forward_norm.forward(&attended)?)?;
        Ok(output.f_add_(&attended)?)
    }
}

impl Layer {
    fn load(shape: &Architecture, own: &Own, weights: &Weights<'_>, number: usize) -> Result<Self, Error> {
        let (hidden, wide, eps) = (shape.hidden_size, shape.intermediate_size, shape.norm_eps);
        let queries = shape.num_attention_heads * own.head_size;
        let shared = own.key_value_heads * own.head_size;
        let name = |part: &str| format!("layers.{number}.{part}");
        let projection = |part: &str, outputs| (name(&format!("self_attn.{part}_proj")), outputs);
        let projections = [
            projection("q", queries),
            projection("k", shared),
            projection("v", shared),
        ];
        let gated = [(name("mlp.gate_proj"), wide), (name("mlp.up_proj"), wide)];
        Ok(Self {
            attention_norm: RmsNorm::load(weights, &name("input_layernorm"), hidden, eps)?,
            query_key_value: Linear::load_joined(weights, &projections, hidden, own.attention_bias)?,
            query_norm: RmsNorm::load(weights, &name("self_attn.q_norm"), own.head_size, eps)?,
            key_norm: RmsNorm::load(weights, &name("self_attn.k_norm"), own.head_size, eps)?,
            attention_output: Linear::load(weights, &name("self_attn.o_proj"), hidden, queries, own.attention_bias)?,
            feed_forward_norm: RmsNorm::load(weights, &name("post_attention_layernorm"), hidden, eps)?,
            feed_forward: Gated {
                projections: Linear::load_joined(weights, &gated, hidden, false)?,
                activation: shape.activation,
                output: Linear::load(weights, &name("mlp.down_proj"), hidden, wide, false)?,
            },
        })
    }
}
