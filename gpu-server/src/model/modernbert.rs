//! ModernBERT's encoder (Warner et al. 2024): norms before attention and feed-forward, rotary positions, layers that see
//! everything among layers that see a neighbourhood, a gated feed-forward, and few biases.

use tch::Tensor;

use super::architecture::{Architecture, Family, ModernBert as Own};
use super::gated::Gated;
use super::kernels::{Param, Sight};
use super::layers::{LayerNorm, Linear, rows};
use super::packed::{Batch, Wanted};
use super::rope::{Rope, Turn};
use super::to_i64;
use super::weights::Weights;
use crate::error::Error;

#[derive(Debug)]
struct Layer {
    /// The first layer has none: the embeddings are normalised already.
    attention_norm: Option<LayerNorm>,
    query_key_value: Linear,
    attention_output: Linear,
    feed_forward_norm: LayerNorm,
    feed_forward: Gated,
    local: bool,
}

/// The encoder.
#[derive(Debug)]
pub struct ModernBert {
    words: Param,
    norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    global: Rope,
    local: Rope,
    reach: i64,
    heads: i64,
}

impl ModernBert {
    /// Takes the encoder's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>) -> Result<Self, Error> {
        let Family::ModernBert(own) = &shape.family else {
            return Err(Error::internal("not ModernBERT"));
        };
        let hidden = shape.hidden_size;
        let words = weights.take("embeddings.tok_embeddings.weight", &[shape.vocab_size, hidden])?;
        let rope = |theta| Rope::new(theta, shape.head_size(), words.device());
        let norm = |name: &str| LayerNorm::load(weights, name, hidden, shape.norm_eps, own.norm_bias);
        let layer = |(number, &local)| Layer::load(shape, own, weights, number, local);
        Ok(Self {
            norm: norm("embeddings.norm")?,
            layers: own.local.iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            final_norm: norm("final_norm")?,
            global: rope(own.global_theta)?,
            local: rope(own.local_theta)?,
            reach: own.reach,
            heads: to_i64(shape.num_attention_heads)?,
            words: Param::new(words),
        })
    }

    /// The wanted tokens' vectors, [tokens or sequences, hidden], in the weights' element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, batch: &Batch, wanted: Wanted) -> Result<Tensor, Error> {
        let turns = (self.global.at(&batch.positions)?, self.local.at(&batch.positions)?);
        let mut hidden = self.norm.forward(&rows(&self.words, &batch.ids)?)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let last = number + 1 == self.layers.len();
            let turn = if layer.local { &turns.1 } else { &turns.0 };
            hidden = self.layer(layer, &hidden, batch, turn, if last { wanted } else { Wanted::All })?;
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
        let (tokens, width) = hidden.size2()?;
        let size = width / self.heads;
        let normed = match &layer.attention_norm {
            Some(norm) => norm.forward(hidden)?,
            None => hidden.shallow_clone(),
        };
        let split = layer.query_key_value.forward(&normed)?;
        let split = split.f_view(&[tokens, 3 * self.heads, size][..])?;
        // Queries and keys are turned in one go.
        let turned = turn.apply(&split.f_narrow(1, 0, 2 * self.heads)?)?;
        let (query, key) = (
            turned.f_narrow(1, 0, self.heads)?,
            turned.f_narrow(1, self.heads, self.heads)?,
        );
        let value = split.f_narrow(1, 2 * self.heads, self.heads)?;
        let sight = Sight {
            causal: false,
            window: layer.local.then_some(self.reach),
        };
        let context = batch.attention((&query, &key, &value), sight, 1.0 / (size as f64).sqrt(), None)?;
        let context = layer.attention_output.forward(&batch.only(wanted, &context)?)?;
        let attended = batch.only(wanted, hidden)?.f_add(&context)?;
        let mut output = layer
            .feed_forward
            .forward(&layer.feed_forward_norm.forward(&attended)?)?;
        Ok(output.f_add_(&attended)?)
    }
}

impl Layer {
    fn load(shape: &Architecture, own: &Own, weights: &Weights<'_>, number: usize, local: bool) -> Result<Self, Error> {
        let (hidden, wide) = (shape.hidden_size, shape.intermediate_size);
        let name = |part: &str| format!("layers.{number}.{part}");
        let norm = |part: &str| LayerNorm::load(weights, &name(part), hidden, shape.norm_eps, own.norm_bias);
        Ok(Self {
            attention_norm: (number > 0).then(|| norm("attn_norm")).transpose()?,
            query_key_value: Linear::load(weights, &name("attn.Wqkv"), 3 * hidden, hidden, own.attention_bias)?,
            attention_output: Linear::load(weights, &name("attn.Wo"), hidden, hidden, own.attention_bias)?,
            feed_forward_norm: norm("mlp_norm")?,
            feed_forward: Gated {
                projections: Linear::load(weights, &name("mlp.Wi"), 2 * wide, hidden, own.mlp_bias)?,
                activation: shape.activation,
                output: Linear::load(weights, &name("mlp.Wo"), hidden, wide, own.mlp_bias)?,
            },
            local,
        })
    }
}
