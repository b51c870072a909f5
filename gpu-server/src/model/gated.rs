//! The gated feed-forward network (Shazeer 2020): of two projections of the same input, one goes through an activation and
//! multiplies the other.

use tch::Tensor;

use super::activation::Activation;
use super::layers::Linear;
use crate::error::Error;

/// Two projections and the way back.
#[derive(Debug)]
pub struct Gated {
    /// Both projections side by side, the activated one first.
    pub projections: Linear,
    /// What follows the activated one.
    pub activation: Activation,
    /// Back to the input's size.
    pub output: Linear,
}

impl Gated {
    /// `input` [rows, hidden] to the same shape.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, Error> {
        let halves = self.projections.forward(input)?.f_chunk(2, -1)?;
        let [activated, other] = <[Tensor; 2]>::try_from(halves).map_err(|_| Error::internal("a half is missing"))?;
        let wide = self.activation.apply(activated)?.f_mul(&other)?;
        self.output.forward(&wide)
    }
}
