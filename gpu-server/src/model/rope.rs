//! Rotary position embeddings (Su et al. 2021) in the order of halves that transformers uses: element i is turned together
//! with element i + size / 2.

use tch::{Kind, Tensor};

use super::kernels::Param;
use super::to_i64;
use crate::error::Error;

/// The frequencies of one base.
#[derive(Debug)]
pub struct Rope {
    /// f32 [size / 2].
    frequencies: Param,
}

/// What turns the heads of one batch.
#[derive(Debug)]
pub struct Turn {
    /// f32 [tokens, 1, size / 2].
    cosines: Tensor,
    sines: Tensor,
}

impl Rope {
    /// For heads of `size` elements.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(theta: f64, size: usize, device: tch::Device) -> Result<Self, Error> {
        let size = to_i64(size)?;
        let exponents = Tensor::f_arange_start_step(0, size, 2, (Kind::Float, tch::Device::Cpu))?;
        let exponents = exponents.f_div_scalar(size)?;
        let frequencies = Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?;
        Ok(Self {
            frequencies: Param::new(frequencies.f_to_device(device)?),
        })
    }

    /// For tokens at `positions`, i64 [tokens].
    ///
    /// # Errors
    /// What the device says.
    pub fn at(&self, positions: &Tensor) -> Result<Turn, Error> {
        let angles = positions
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(1)?
            .f_mul(&self.frequencies)?
            .f_unsqueeze(1)?;
        Ok(Turn {
            cosines: angles.f_cos()?,
            sines: angles.f_sin()?,
        })
    }
}

impl Turn {
    /// Turns `heads` [tokens, heads, size]; computed in f32, given back as it came.
    ///
    /// # Errors
    /// What the device says.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor, Error> {
        let kind = heads.kind();
        let halves = heads.f_to_kind(Kind::Float)?.f_chunk(2, -1)?;
        let [first, second] = &halves[..] else {
            return Err(Error::internal("a head has two halves"));
        };
        let turned = [
            first.f_mul(&self.cosines)?.f_sub(&second.f_mul(&self.sines)?)?,
            second.f_mul(&self.cosines)?.f_add(&first.f_mul(&self.sines)?)?,
        ];
        Ok(Tensor::f_cat(&turned, -1)?.f_to_kind(kind)?)
    }
}
