//! The blocks that all architectures are made of: linear, layer norm, rows of a table.

use tch::{Device, Kind, Tensor};

use super::activation::Activation;
use super::kernels::{self, PackedWeight, Param};
use super::weights::Weights;
use crate::error::Error;

#[derive(Debug)]
enum Weight {
    /// [outputs, inputs].
    Plain(Param),
    Packed(PackedWeight),
}

/// `x · weightᵀ + bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Param>,
}

impl Linear {
    /// A weight [outputs, inputs] and a bias [outputs]; on the CPU the weight is packed.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let packed = (weight.device() == Device::Cpu).then(|| PackedWeight::new(&weight));
        Self {
            // What this CPU cannot do packed it does plain.
            weight: match packed {
                Some(Ok(packed)) => Weight::Packed(packed),
                _ => Weight::Plain(Param::new(weight)),
            },
            bias: bias.map(Param::new),
        }
    }

    /// Takes `name.weight` and, if it has one, `name.bias`.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(weights: &Weights<'_>, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Self, Error> {
        let weight = weights.take(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = bias.then(|| weights.take(&format!("{name}.bias"), &[outputs]));
        Ok(Self::new(weight, bias.transpose()?))
    }

    /// Several layers over the same input as one, their outputs side by side.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load_joined(
        weights: &Weights<'_>,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let mut matrices = Vec::with_capacity(parts.len());
        let mut biases = Vec::with_capacity(parts.len());
        for (name, outputs) in parts {
            matrices.push(weights.take(&format!("{name}.weight"), &[*outputs, inputs])?);
            if bias {
                biases.push(weights.take(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        let biases = bias.then(|| Tensor::f_cat(&biases, 0)).transpose()?;
        Ok(Self::new(Tensor::f_cat(&matrices, 0)?, biases))
    }

    /// `input` [rows, inputs] to [rows, outputs].
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, Error> {
        self.activated(input, None)
    }

    /// With an activation after it.
    ///
    /// # Errors
    /// What the device says.
    pub fn activated(&self, input: &Tensor, activation: Option<Activation>) -> Result<Tensor, Error> {
        match &self.weight {
            Weight::Packed(packed) => packed.multiply(input, self.bias.as_ref(), activation),
            Weight::Plain(weight) => {
                let output = input.f_linear(weight, self.bias.as_deref())?;
                match activation {
                    Some(activation) => activation.apply(output),
                    None => Ok(output),
                }
            }
        }
    }
}

/// Layer normalisation (Ba et al. 2016).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Param,
    bias: Option<Param>,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    /// Takes `name.weight` and, if it has one, `name.bias`.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(weights: &Weights<'_>, name: &str, size: usize, eps: f64, bias: bool) -> Result<Self, Error> {
        let bias = bias.then(|| weights.take(&format!("{name}.bias"), &[size]));
        Ok(Self {
            weight: Param::new(weights.take(&format!("{name}.weight"), &[size])?),
            bias: bias.transpose()?.map(Param::new),
            size: super::to_i64(size)?,
            eps,
        })
    }

    /// Over the last dimension.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, Error> {
        let bias = self.bias.as_deref();
        Ok(input.f_layer_norm([self.size], Some(&*self.weight), bias, self.eps, true)?)
    }

    /// Of `input + residual`; `input` is used up.
    ///
    /// # Errors
    /// What the device says.
    pub fn added(&self, mut input: Tensor, residual: &Tensor) -> Result<Tensor, Error> {
        if let Some(bias) = &self.bias
            && let Some(output) = kernels::add_layer_norm(&input, residual, (&self.weight, bias), self.eps)?
        {
            return Ok(output);
        }
        self.forward(&input.f_add_(residual)?)
    }
}

/// Root mean square normalisation (Zhang and Sennrich 2019).
#[derive(Debug)]
pub struct RmsNorm {
    weight: Param,
    size: i64,
    eps: f64,
}

impl RmsNorm {
    /// Takes `name.weight`.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the tensor.
    pub fn load(weights: &Weights<'_>, name: &str, size: usize, eps: f64) -> Result<Self, Error> {
        Ok(Self {
            weight: Param::new(weights.take(&format!("{name}.weight"), &[size])?),
            size: super::to_i64(size)?,
            eps,
        })
    }

    /// Over the last dimension.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, Error> {
        Ok(input.f_rms_norm([self.size], Some(&*self.weight), self.eps)?)
    }
}

/// A table's rows; `ids` i64 [tokens].
///
/// # Errors
/// What the device says.
pub fn rows(table: &Param, ids: &Tensor) -> Result<Tensor, Error> {
    Ok(Tensor::f_embedding(table, ids, -1, false, false)?)
}

/// To f32.
///
/// # Errors
/// What the device says.
pub fn float(input: &Tensor) -> Result<Tensor, Error> {
    Ok(input.f_to_kind(Kind::Float)?)
}
