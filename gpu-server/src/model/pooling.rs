//! One vector per text out of one vector per token, as sentence-transformers' Pooling and Normalize modules do it
//! (Reimers and Gurevych 2019, Sentence-BERT). Always in f32, whatever the model computes in.

use tch::{Kind, Tensor};

use super::layers::float;
use super::packed::{Batch, Wanted, joined};
use crate::error::Error;

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingKind {
    /// Mean over the tokens.
    Mean,
    /// The first token's vector.
    Cls,
    /// The last token's vector.
    LastToken,
    /// Mean weighted by position, 1 for the first token (Muennighoff 2022, SGPT).
    WeightedMean,
    /// The largest value of each element.
    Max,
    /// Sum over the tokens, divided by the square root of their number.
    MeanSqrtLength,
}

impl PoolingKind {
    /// The tokens that it reads.
    pub const fn wanted(self) -> Wanted {
        match self {
            Self::Cls => Wanted::First,
            Self::LastToken => Wanted::Last,
            Self::Mean | Self::WeightedMean | Self::Max | Self::MeanSqrtLength => Wanted::All,
        }
    }

    /// The vectors of the tokens that it reads to f32 [sequences, hidden].
    ///
    /// # Errors
    /// What the device says.
    pub fn pool(self, wanted: &Tensor, batch: &Batch) -> Result<Tensor, Error> {
        match self.wanted() {
            Wanted::All => self.apply(wanted, batch),
            Wanted::First | Wanted::Last => float(wanted),
        }
    }

    /// `hidden` [tokens, hidden], all tokens' vectors, to f32 [sequences, hidden].
    ///
    /// # Errors
    /// What the device says.
    pub fn apply(self, hidden: &Tensor, batch: &Batch) -> Result<Tensor, Error> {
        match self {
            Self::Cls | Self::LastToken => return float(&batch.only(self.wanted(), hidden)?),
            Self::Mean | Self::WeightedMean | Self::Max | Self::MeanSqrtLength => {}
        }
        let mut parts = Vec::with_capacity(batch.runs.len());
        for run in &batch.runs {
            let pooled = run.length - run.skipped;
            let tokens = float(&run.of(hidden)?.f_narrow(1, run.skipped, pooled)?)?;
            let sum = |values: &Tensor| values.f_sum_dim_intlist(&[1_i64][..], false, Kind::Float);
            let count = pooled as f64;
            parts.push(match self {
                Self::Max => tokens.f_amax([1], false)?,
                Self::MeanSqrtLength => sum(&tokens)?.f_div_scalar(count.sqrt())?,
                Self::WeightedMean => {
                    // A skipped token keeps its place in the count.
                    let (from, to) = (run.skipped + 1, run.length + 1);
                    let weights = Tensor::f_arange_start(from, to, (Kind::Float, tokens.device()))?;
                    let total = count * (from + to - 1) as f64 / 2.0;
                    sum(&tokens.f_mul(&weights.f_unsqueeze(1)?)?)?.f_div_scalar(total)?
                }
                Self::Mean | Self::Cls | Self::LastToken => sum(&tokens)?.f_div_scalar(count)?,
            });
        }
        joined(parts)
    }
}

/// Scales each row to unit L2 norm; the floor 1e-12 is torch.nn.functional.normalize's.
///
/// # Errors
/// What the device says.
pub fn normalize(vectors: &Tensor) -> Result<Tensor, Error> {
    let norms = vectors
        .f_norm_scalaropt_dim(2.0, &[-1_i64][..], true)?
        .f_clamp_min(1e-12)?;
    Ok(vectors.f_div(&norms)?)
}
