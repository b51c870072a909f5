//! What sentence-transformers puts behind an encoder: pooling, linear layers, scaling to unit length. In f32, whatever the
//! model computes in, from pooling on.

use tch::Tensor;

use super::activation::Activation;
use super::layers::Linear;
use super::packed::{Batch, Wanted};
use super::pooling;
use super::sentence::{Pooling, Step};
use super::to_i64;
use super::weights::Weights;
use crate::error::Error;

#[derive(Debug)]
enum Stage {
    Dense(Linear, Option<Activation>),
    Normalize,
    Truncate(i64),
}

/// Token vectors to one vector per text.
#[derive(Debug)]
pub struct Pipeline {
    pooling: Pooling,
    stages: Vec<Stage>,
}

impl Pipeline {
    /// Takes the tensors of the linear layers.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file and the tensor.
    pub fn load(pooling: &Pooling, steps: &[Step], weights: &Weights<'_>) -> Result<Self, Error> {
        let stage = |step: &Step| match step {
            Step::Normalize => Ok(Stage::Normalize),
            Step::Truncate(kept) => Ok(Stage::Truncate(to_i64(*kept)?)),
            Step::Dense {
                path,
                inputs,
                outputs,
                bias,
                activation,
            } => {
                let weight = weights.take_from(path, "linear.weight", &[*outputs, *inputs])?;
                let bias = bias.then(|| weights.take_from(path, "linear.bias", &[*outputs]));
                Ok::<_, Error>(Stage::Dense(Linear::new(weight, bias.transpose()?), *activation))
            }
        };
        Ok(Self {
            pooling: pooling.clone(),
            stages: steps.iter().map(stage).collect::<Result<_, _>>()?,
        })
    }

    /// The tokens that it reads.
    pub fn wanted(&self) -> Wanted {
        match self.pooling.kinds.as_slice() {
            [kind] => kind.wanted(),
            _ => Wanted::All,
        }
    }

    /// The wanted tokens' vectors to f32 [sequences, elements].
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor, Error> {
        let mut vectors = match self.pooling.kinds.as_slice() {
            [kind] => kind.pool(hidden, batch)?,
            kinds => {
                let parts = kinds.iter().map(|kind| kind.apply(hidden, batch));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)?
            }
        };
        for stage in &self.stages {
            vectors = match stage {
                Stage::Dense(linear, activation) => linear.activated(&vectors, *activation)?,
                Stage::Normalize => pooling::normalize(&vectors)?,
                Stage::Truncate(kept) => vectors.f_narrow(1, 0, *kept)?,
            };
        }
        Ok(vectors)
    }
}
