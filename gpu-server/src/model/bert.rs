//! BERT's encoder (Devlin et al. 2019), computed as transformers computes it: words, positions and segments are added,
//! normalised, and go through the layers of `post_norm`.

use tch::Tensor;

use super::architecture::Architecture;
use super::kernels::Param;
use super::layers::{LayerNorm, rows};
use super::packed::{Batch, Wanted};
use super::post_norm::{Layers, Names};
use super::weights::Weights;
use crate::error::Error;

/// The names that RoBERTa kept.
pub const NAMES: Names = Names {
    projections: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
};

/// The encoder.
#[derive(Debug)]
pub struct Bert {
    words: Param,
    positions: Param,
    segments: Param,
    norm: LayerNorm,
    layers: Layers,
}

impl Bert {
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
        Ok(Self {
            words: table("word", shape.vocab_size)?,
            positions: table("position", shape.max_position_embeddings)?,
            segments: table("token_type", shape.segments())?,
            norm: LayerNorm::load(weights, "embeddings.LayerNorm", hidden, shape.norm_eps, true)?,
            layers: Layers::load(shape, weights, &NAMES)?,
        })
    }

    /// The wanted tokens' vectors, [tokens or sequences, hidden], in the weights' element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, batch: &Batch, wanted: Wanted) -> Result<Tensor, Error> {
        let mut input = rows(&self.words, &batch.ids)?;
        let _ = input.f_add_(&rows(&self.segments, &batch.type_ids)?)?;
        let _ = input.f_add_(&rows(&self.positions, &batch.positions)?)?;
        self.layers.forward(self.norm.forward(&input)?, batch, wanted, None)
    }
}
