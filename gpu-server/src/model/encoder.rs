//! The families behind one door.

use tch::Tensor;

use super::architecture::{Architecture, Family};
use super::bert::Bert;
use super::modernbert::ModernBert;
use super::mpnet::Mpnet;
use super::packed::{Batch, Wanted};
use super::qwen3::Qwen3;
use super::roberta::Roberta;
use super::weights::Weights;
use crate::error::Error;

/// A transformer: tokens to token vectors.
#[derive(Debug)]
pub enum Encoder {
    /// BERT.
    Bert(Bert),
    /// RoBERTa and XLM-RoBERTa.
    Roberta(Roberta),
    /// MPNet.
    Mpnet(Mpnet),
    /// ModernBERT.
    ModernBert(ModernBert),
    /// Qwen3.
    Qwen3(Qwen3),
}

impl Encoder {
    /// Takes the tensors of the family that config.json names.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, weights: &Weights<'_>) -> Result<Self, Error> {
        Ok(match shape.family {
            Family::Bert { .. } => Self::Bert(Bert::load(shape, weights)?),
            Family::Roberta { .. } => Self::Roberta(Roberta::load(shape, weights)?),
            Family::Mpnet { .. } => Self::Mpnet(Mpnet::load(shape, weights)?),
            Family::ModernBert(_) => Self::ModernBert(ModernBert::load(shape, weights)?),
            Family::Qwen3(_) => Self::Qwen3(Qwen3::load(shape, weights)?),
        })
    }

    /// The wanted tokens' vectors, [tokens or sequences, hidden], in the weights' element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, batch: &Batch, wanted: Wanted) -> Result<Tensor, Error> {
        match self {
            Self::Bert(family) => family.forward(batch, wanted),
            Self::Roberta(family) => family.forward(batch, wanted),
            Self::Mpnet(family) => family.forward(batch, wanted),
            Self::ModernBert(family) => family.forward(batch, wanted),
            Self::Qwen3(family) => family.forward(batch, wanted),
        }
    }
}
