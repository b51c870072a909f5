//! Sparse vectors out of a masked language model (SPLADE, Formal et al. 2021): each word of the vocabulary gets the largest
//! log(1 + ReLU(logit)) that any token gives it.

use tch::{Kind, Tensor};

use super::architecture::Architecture;
use super::heads::{Head, word_predictor};
use super::packed::{Batch, joined};
use super::sentence::SpladePooling;
use super::weights::Weights;
use crate::error::Error;

/// Tokens whose logits exist at once: each takes a row over the whole vocabulary.
const TOKENS: u16 = 256;

/// The word predictor and what is made of its logits.
#[derive(Debug)]
pub struct Splade {
    predictor: Head,
    pooling: SpladePooling,
}

impl Splade {
    /// Takes the word predictor's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(shape: &Architecture, pooling: SpladePooling, weights: &Weights<'_>) -> Result<Self, Error> {
        Ok(Self {
            predictor: word_predictor(shape, weights)?,
            pooling,
        })
    }

    /// Token vectors [tokens, hidden] to f32 [sequences, words], none below 0.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor, Error> {
        let mut rows = Vec::with_capacity(batch.order.len());
        for run in &batch.runs {
            for row in 0..run.rows {
                let mut pooled: Option<Tensor> = None;
                for at in (0..run.length).step_by(TOKENS.into()) {
                    let tokens = i64::from(TOKENS).min(run.length - at);
                    let part = hidden.f_narrow(0, run.start + row * run.length + at, tokens)?;
                    let part = self.pool(&self.predictor.forward(&part)?)?;
                    pooled = Some(match pooled {
                        None => part,
                        Some(before) if self.pooling.sum => before.f_add(&part)?,
                        Some(before) => before.f_maximum(&part)?,
                    });
                }
                rows.extend(pooled);
            }
        }
        let rows = joined(rows)?;
        // The logarithm keeps the order, so that of a maximum it is taken once.
        if self.pooling.sum { Ok(rows) } else { self.weight(&rows) }
    }

    /// [tokens, words] to [1, words].
    fn pool(&self, logits: &Tensor) -> Result<Tensor, Error> {
        if self.pooling.sum {
            let weights = self.weight(logits)?;
            Ok(weights.f_sum_dim_intlist(&[0_i64][..], true, Kind::Float)?)
        } else {
            Ok(logits.f_amax([0], true)?)
        }
    }

    fn weight(&self, logits: &Tensor) -> Result<Tensor, Error> {
        let weights = logits.f_relu()?.f_log1p()?;
        if self.pooling.twice {
            Ok(weights.f_log1p()?)
        } else {
            Ok(weights)
        }
    }
}
