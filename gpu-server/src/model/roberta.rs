//! RoBERTa's encoder (Liu et al. 2019) and XLM-RoBERTa's (Conneau et al. 2020), which differ in vocabulary only: BERT
//! without segments, whose positions are counted as [`super::packed::Numbering::After`] does.

use tch::Tensor;

use super::architecture::{Architecture, Family};
use super::bert::NAMES;
use super::kernels::Param;
use super::layers::{LayerNorm, rows};
use super::packed::{Batch, Wanted};
use super::post_norm::Layers;
use super::weights::Weights;
use crate::error::Error;

/// The encoder.
#[derive(Debug)]
pub struct Roberta {
    words: Param,
    /// The position table plus segment 0's row, which every token has.
    positions: Param,
    norm: LayerNorm,
    layers: Layers,
}

impl Roberta {
    /// Takes the encoder's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>) -> Result<Self, Error> {
        let hidden = shape.hidden_size;
        let table = |name: &str, count| weights.take(&format!("embeddings.{name}_embeddings.weight"), &[count, hidden]);
        let segments = match shape.family {
            Family::Roberta { segments, .. } => table("token_type", segments)?,
            _ => return Err(Error::internal("not RoBERTa")),
        };
        let positions = table("position", shape.max_position_embeddings)?;
        Ok(Self {
            words: Param::new(table("word", shape.vocab_size)?),
            positions: Param::new(positions.f_add(&segments.f_narrow(0, 0, 1)?)?),
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
        let _ = input.f_add_(&rows(&self.positions, &batch.positions)?)?;
        self.layers.forward(self.norm.forward(&input)?, batch, wanted, None)
    }
}
