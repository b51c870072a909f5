//! Activation functions by the names that config.json and sentence-transformers use for them.

use tch::Tensor;

use crate::error::Error;

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Gaussian error linear unit, exact (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// x · sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
    /// tanh(x).
    Tanh,
}

impl Activation {
    /// What transformers calls it in `hidden_act`; none for a name that is not computed.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            // Four spellings of one formula.
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Some(Self::GeluTanh),
            "silu" | "swish" => Some(Self::Silu),
            "relu" => Some(Self::Relu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    /// Applies it, in place.
    ///
    /// # Errors
    /// What the device says.
    pub fn apply(self, mut input: Tensor) -> Result<Tensor, Error> {
        Ok(match self {
            Self::Gelu => input.f_gelu_("none")?,
            Self::GeluTanh => input.f_gelu_("tanh")?,
            Self::Silu => input.f_silu_()?,
            Self::Relu => input.f_relu_()?,
            Self::Tanh => input.f_tanh_()?,
        })
    }
}
