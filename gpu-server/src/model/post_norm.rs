//! The layer of BERT (Devlin et al. 2019), RoBERTa and MPNet: attention, then a feed-forward network, each added to its
//! input and normalised afterwards. The families differ in names, and MPNet in a bias on the attention scores.
//!
//! Query, key and value projections are one matrix product, which changes no result beyond rounding. Where only one
//! token's vector is asked for (a classifier, CLS pooling), the last layer computes no other. Dropout does not exist here:
//! this is inference only.

use tch::Tensor;

use super::activation::Activation;
use super::architecture::Architecture;
use super::kernels::Sight;
use super::layers::{LayerNorm, Linear};
use super::packed::{Batch, Wanted};
use super::to_i64;
use super::weights::Weights;
use crate::error::Error;

/// Everything is seen.
const ALL: Sight = Sight {
    causal: false,
    window: None,
};

/// What a family calls the tensors of a layer.
#[derive(Debug)]
pub struct Names {
    /// Query, key and value.
    pub projections: [&'static str; 3],
    /// The linear layer after attention.
    pub attention_output: &'static str,
    /// The norm after attention.
    pub attention_norm: &'static str,
}

/// A bias on attention scores, [1, heads, length, length] for sequences of a length.
pub type Bias<'a> = Option<&'a dyn Fn(i64) -> Result<Tensor, Error>>;

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

/// The layers.
#[derive(Debug)]
pub struct Layers {
    stack: Vec<Layer>,
    heads: i64,
    activation: Activation,
}

impl Layers {
    /// Takes the tensors of all layers.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>, names: &Names) -> Result<Self, Error> {
        let (hidden, wide, eps) = (shape.hidden_size, shape.intermediate_size, shape.norm_eps);
        let load = |number: usize| {
            let name = |part: &str| format!("encoder.layer.{number}.{part}");
            let linear = |part: &str, outputs, inputs| Linear::load(weights, &name(part), outputs, inputs, true);
            let norm = |part: &str| LayerNorm::load(weights, &name(part), hidden, eps, true);
            let joined = names.projections.map(|part| (name(part), hidden));
            Ok::<_, Error>(Layer {
                query_key_value: Linear::load_joined(weights, &joined, hidden, true)?,
                attention_output: linear(names.attention_output, hidden, hidden)?,
                attention_norm: norm(names.attention_norm)?,
                intermediate: linear("intermediate.dense", wide, hidden)?,
                output: linear("output.dense", hidden, wide)?,
                output_norm: norm("output.LayerNorm")?,
            })
        };
        Ok(Self {
            stack: (0..shape.num_hidden_layers).map(load).collect::<Result<_, _>>()?,
            heads: to_i64(shape.num_attention_heads)?,
            activation: shape.activation,
        })
    }

    /// `input` [tokens, hidden] to the wanted tokens' vectors.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, mut input: Tensor, batch: &Batch, wanted: Wanted, bias: Bias<'_>) -> Result<Tensor, Error> {
        for (number, layer) in self.stack.iter().enumerate() {
            let last = number + 1 == self.stack.len();
            let wanted = if last { wanted } else { Wanted::All };
            input = self.layer(layer, &input, batch, wanted, bias)?;
        }
        Ok(input)
    }

    fn layer(
        &self,
        layer: &Layer,
        input: &Tensor,
        batch: &Batch,
        wanted: Wanted,
        bias: Bias<'_>,
    ) -> Result<Tensor, Error> {
        let (tokens, hidden) = input.size2()?;
        let size = hidden / self.heads;
        let split = layer
            .query_key_value
            .forward(input)?
            .f_view(&[tokens, 3, self.heads, size][..])?;
        let part = |index| split.f_select(1, index);
        let scale = 1.0 / (size as f64).sqrt();
        let context = batch.attention((&part(0)?, &part(1)?, &part(2)?), ALL, scale, bias)?;
        let (context, residual) = (batch.only(wanted, &context)?, batch.only(wanted, input)?);
        let attended = layer.attention_output.forward(&context)?;
        let attended = layer.attention_norm.added(attended, &residual)?;
        let wide = layer.intermediate.activated(&attended, Some(self.activation))?;
        layer.output_norm.added(layer.output.forward(&wide)?, &attended)
    }
}
