//! ATen operators that tch does not bind and kernels for AVX-512 (csrc/), and weights that several threads may read.
//!
//! They are what makes a CPU fast (docs/adr/0009-packed-batches.md). Calling C++
//! and promising thread safety need unsafe code; of the model's modules only this one may have it.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::ops::Deref;

use tch::Tensor;
use torch_sys::C_tensor;

use super::activation::Activation;
use crate::error::Error;

unsafe extern "C" {
    fn medkg_pack(weight: *const C_tensor, problem: *mut c_char, capacity: usize) -> *mut C_tensor;
    fn medkg_packed_linear(
        input: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        activation: c_int,
        problem: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn medkg_sequence_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        starts: *const i64,
        count: usize,
        causal: c_int,
        window: i64,
        scale: f64,
        problem: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn medkg_add_layer_norm(
        input: *const C_tensor,
        residual: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        eps: f64,
        problem: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn medkg_packed_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        starts: *const C_tensor,
        longest: i64,
        causal: c_int,
        window: i64,
        scale: f64,
        problem: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// A weight: a tensor that is never written again once it is here.
#[derive(Debug)]
pub struct Param(Tensor);

// SAFETY: reading a tensor from several threads is what libtorch is made for (reference counts are atomic, and operators do
// not write their inputs). tch's operators that write take `&mut Tensor`, which a Param never gives out.
unsafe impl Sync for Param {}

impl Param {
    /// Takes the tensor over.
    pub const fn new(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

impl Deref for Param {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

/// Takes what a function of csrc/kernels.cpp returned; none if it said that it does not apply.
fn received_if(call: impl FnOnce(*mut c_char, usize) -> *mut C_tensor) -> Result<Option<Tensor>, Error> {
    let mut problem = [0_u8; 1024];
    let tensor = call(problem.as_mut_ptr().cast(), problem.len());
    if !tensor.is_null() {
        // SAFETY: a non-null result is a new at::Tensor that nobody else owns, which is what tch's handle wraps and frees.
        return Ok(Some(unsafe { Tensor::from_ptr(tensor) }));
    }
    match CStr::from_bytes_until_nul(&problem) {
        Ok(message) if message.is_empty() => Ok(None),
        message => {
            let message = message.map_or_else(|_| "".into(), CStr::to_string_lossy);
            Err(tch::TchError::Torch(message.into_owned()).into())
        }
    }
}

/// The same for a function that always applies.
fn received(call: impl FnOnce(*mut c_char, usize) -> *mut C_tensor) -> Result<Tensor, Error> {
    received_if(call)?.ok_or_else(|| Error::internal("a kernel gave no tensor"))
}

/// Packs a weight [outputs, inputs] for [`packed_linear`].
///
/// # Errors
/// When oneDNN does not compute this element type on this CPU.
pub fn pack(weight: &Tensor) -> Result<Param, Error> {
    // SAFETY: the handle is valid for the call, and `received` passes a buffer with its capacity.
    received(|problem, capacity| unsafe { medkg_pack(weight.as_ptr(), problem, capacity) }).map(Param)
}

/// `activation(input · weightᵀ + bias)`, input [rows, inputs], on the CPU.
///
/// # Errors
/// What the device says.
pub fn packed_linear(
    input: &Tensor,
    packed: &Param,
    bias: Option<&Param>,
    activation: Option<Activation>,
) -> Result<Tensor, Error> {
    let code = match activation {
        None => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Silu) => 3,
        Some(Activation::Relu) => 4,
        Some(Activation::Tanh) => return Err(Error::internal("tanh is not fused into a linear layer")),
    };
    let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
    // SAFETY: as in `pack`; a null bias means none.
    received(|problem, capacity| unsafe {
        medkg_packed_linear(input.as_ptr(), packed.as_ptr(), bias, code, problem, capacity)
    })
}

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Nothing after itself.
    pub causal: bool,
    /// At most this many tokens away, on either side.
    pub window: Option<i64>,
}

/// Attention within each sequence, on a CPU: query [tokens, heads, size], key and value [tokens, key heads, size], `starts`
/// [sequences + 1]; gives [tokens, heads * size]. None where the kernel does not apply (no AVX-512, another layout).
///
/// # Errors
/// What the device says.
pub fn sequence_attention(
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    starts: &[i64],
    sight: Sight,
    scale: f64,
) -> Result<Option<Tensor>, Error> {
    let (causal, window) = (c_int::from(sight.causal), sight.window.unwrap_or(-1));
    // SAFETY: as in `pack`; `starts` is valid for its length.
    received_if(|problem, capacity| unsafe {
        medkg_sequence_attention(
            query.as_ptr(),
            key.as_ptr(),
            value.as_ptr(),
            starts.as_ptr(),
            starts.len(),
            causal,
            window,
            scale,
            problem,
            capacity,
        )
    })
}

/// `layer_norm(input + residual)`, both [rows, size], on a CPU. None where the kernel does not apply.
///
/// # Errors
/// What the device says.
pub fn add_layer_norm(
    input: &Tensor,
    residual: &Tensor,
    (weight, bias): (&Param, &Param),
    eps: f64,
) -> Result<Option<Tensor>, Error> {
    // SAFETY: as in `pack`.
    received_if(|problem, capacity| unsafe {
        medkg_add_layer_norm(
            input.as_ptr(),
            residual.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            eps,
            problem,
            capacity,
        )
    })
}

/// Attention within each sequence, on a GPU: query, key and value [tokens, heads, size], `starts` i32 [sequences + 1].
///
/// # Errors
/// What the device says.
pub fn packed_attention(
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    starts: &Tensor,
    longest: i64,
    sight: Sight,
    scale: f64,
) -> Result<Tensor, Error> {
    let (causal, window) = (c_int::from(sight.causal), sight.window.unwrap_or(-1));
    // SAFETY: as in `pack`.
    received(|problem, capacity| unsafe {
        medkg_packed_attention(
            query.as_ptr(),
            key.as_ptr(),
            value.as_ptr(),
            starts.as_ptr(),
            longest,
            causal,
            window,
            scale,
            problem,
            capacity,
        )
    })
}
