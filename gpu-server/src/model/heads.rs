//! What stands on top of an encoder: the classifier of a cross-encoder, the word predictor of a masked language model, and
//! the two words that a decoder may answer with. All are the same few layers under names that differ from family to family.

use tch::Tensor;

use super::activation::Activation;
use super::architecture::{Architecture, Family};
use super::checkpoint::{Checkpoint, ScoreHead};
use super::layers::{LayerNorm, Linear, float};
use super::pooling::PoolingKind;
use super::sentence::LogitScore;
use super::weights::Weights;
use crate::error::Error;

/// A dense layer, its activation, a norm, and a linear layer to the output; all but the last are optional.
#[derive(Debug)]
pub struct Head {
    dense: Option<(Linear, Activation)>,
    norm: Option<LayerNorm>,
    output: Linear,
}

impl Head {
    /// `input` [rows, hidden] to f32 [rows, outputs].
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, Error> {
        let mut hidden = input.shallow_clone();
        if let Some((dense, activation)) = &self.dense {
            hidden = dense.activated(&hidden, Some(*activation))?;
        }
        if let Some(norm) = &self.norm {
            hidden = norm.forward(&hidden)?;
        }
        float(&self.output.forward(&hidden)?)
    }
}

/// Turns token vectors into one score.
#[derive(Debug)]
pub struct Scorer {
    /// The vector that it reads.
    pub pooling: PoolingKind,
    head: Head,
    /// Whether the score is the first output minus the second one.
    difference: bool,
}

impl Scorer {
    /// Takes the head's tensors.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(checkpoint: &Checkpoint, head: ScoreHead, weights: &Weights<'_>) -> Result<Self, Error> {
        let shape = &checkpoint.architecture;
        if let ScoreHead::NextToken(ids) = head {
            return next_token(checkpoint, ids, weights);
        }
        let hidden = shape.hidden_size;
        let linear = |name: &str, outputs, bias| Linear::load(weights, name, outputs, hidden, bias);
        let (pooling, dense, norm, output) = match &shape.family {
            Family::Bert { .. } => {
                let dense = (linear("pooler.dense", hidden, true)?, Activation::Tanh);
                (PoolingKind::Cls, Some(dense), None, linear("classifier", 1, true)?)
            }
            Family::Roberta { .. } | Family::Mpnet { .. } => {
                let dense = (linear("classifier.dense", hidden, true)?, Activation::Tanh);
                let output = linear("classifier.out_proj", 1, true)?;
                (PoolingKind::Cls, Some(dense), None, output)
            }
            Family::ModernBert(own) => {
                let dense = linear("head.dense", hidden, own.classifier_bias)?;
                let norm = LayerNorm::load(weights, "head.norm", hidden, shape.norm_eps, own.norm_bias)?;
                let pooling = if own.mean_classifier {
                    PoolingKind::Mean
                } else {
                    PoolingKind::Cls
                };
                let dense = (dense, own.classifier_activation);
                (pooling, Some(dense), Some(norm), linear("classifier", 1, true)?)
            }
            Family::Qwen3(_) => (PoolingKind::LastToken, None, None, linear("score", 1, false)?),
        };
        Ok(Self {
            pooling,
            head: Head { dense, norm, output },
            difference: false,
        })
    }

    /// Pooled vectors [sequences, hidden] to one f32 logit each, [sequences, 1].
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor, Error> {
        let outputs = self.head.forward(pooled)?;
        if self.difference {
            Ok(outputs.f_narrow(1, 0, 1)?.f_sub(&outputs.f_narrow(1, 1, 1)?)?)
        } else {
            Ok(outputs)
        }
    }
}

/// Of the word predictor only the rows of the words that count.
fn next_token(checkpoint: &Checkpoint, ids: LogitScore, weights: &Weights<'_>) -> Result<Scorer, Error> {
    let shape = &checkpoint.architecture;
    let tied = matches!(&shape.family, Family::Qwen3(own) if own.tied);
    let name = if tied && !weights.has("lm_head.weight") {
        "embed_tokens.weight"
    } else {
        "lm_head.weight"
    };
    let wanted: Vec<u32> = std::iter::once(ids.true_token_id).chain(ids.false_token_id).collect();
    if let Some(id) = wanted.iter().find(|&&id| id as usize >= shape.vocab_size) {
        return Err(checkpoint.failed("config.json", format!("vocab_size has no row for the token {id}")));
    }
    let table = weights.take(name, &[shape.vocab_size, shape.hidden_size])?;
    let wanted: Vec<i64> = wanted.into_iter().map(i64::from).collect();
    let rows = table.f_index_select(0, &Tensor::f_from_slice(&wanted)?.f_to_device(table.device())?)?;
    Ok(Scorer {
        pooling: PoolingKind::LastToken,
        head: Head {
            dense: None,
            norm: None,
            output: Linear::new(rows, None),
        },
        difference: wanted.len() == 2,
    })
}

/// A masked language model's word predictor: f32 logits over the vocabulary for each token.
///
/// # Errors
/// [`Error::ModelLoadFailed`] that names the tensor.
pub fn word_predictor(shape: &Architecture, weights: &Weights<'_>) -> Result<Head, Error> {
    let (hidden, words) = (shape.hidden_size, shape.vocab_size);
    let (dense, norm, decoder, bias, table) = match &shape.family {
        Family::Bert { .. } => (
            ("cls.predictions.transform.dense", true, shape.activation),
            ("cls.predictions.transform.LayerNorm", true),
            "cls.predictions.decoder.weight",
            Some(["cls.predictions.bias", "cls.predictions.decoder.bias"]),
            "embeddings.word_embeddings.weight",
        ),
        Family::Roberta { .. } | Family::Mpnet { .. } => (
            ("lm_head.dense", true, Activation::Gelu),
            ("lm_head.layer_norm", true),
            "lm_head.decoder.weight",
            Some(["lm_head.bias", "lm_head.decoder.bias"]),
            "embeddings.word_embeddings.weight",
        ),
        Family::ModernBert(own) => (
            ("head.dense", own.classifier_bias, own.classifier_activation),
            ("head.norm", own.norm_bias),
            "decoder.weight",
            own.decoder_bias.then_some(["decoder.bias", "decoder.bias"]),
            "embeddings.tok_embeddings.weight",
        ),
        Family::Qwen3(_) => return Err(Error::internal("a decoder predicts the next word")),
    };
    // The weight is the word table, unless the checkpoint has one of its own; the bias is stored under either name.
    let weight = weights.take(if weights.has(decoder) { decoder } else { table }, &[words, hidden])?;
    let bias = bias.map(|names| weights.take(names[usize::from(!weights.has(names[0]))], &[words]));
    Ok(Head {
        dense: Some((Linear::load(weights, dense.0, hidden, hidden, dense.1)?, dense.2)),
        norm: Some(LayerNorm::load(weights, norm.0, hidden, shape.norm_eps, norm.1)?),
        output: Linear::new(weight, bias.transpose()?),
    })
}
