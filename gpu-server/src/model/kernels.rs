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
    safe fn medkg_cpu_has_fast_bf16() -> c_int;
    fn medkg_take_stream(index: c_int, problem: *mut c_char, capacity: usize) -> *mut C_tensor;
    fn medkg_pack_panels(weight: *const C_tensor, problem: *mut c_char, capacity: usize) -> *mut C_tensor;
    fn medkg_panel_linear(
        input: *const C_tensor,
        panels: *const C_tensor,
        bias: *const C_tensor,
        outputs: i64,
        activation: c_int,
        problem: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn medkg_pack_onednn(weight: *const C_tensor, problem: *mut c_char, capacity: usize) -> *mut C_tensor;
    fn medkg_onednn_linear(
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
    fn medkg_few_scores(
        queries: *const C_tensor,
        rows: *const C_tensor,
        distances: c_int,
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

/// From now on this thread computes on a stream of its own on GPU `index`, which goes before the others.
///
/// # Errors
/// What CUDA says.
pub fn take_stream(index: usize) -> Result<(), Error> {
    let index = c_int::try_from(index).map_err(Error::internal)?;
    // SAFETY: it takes a number, and writes into the buffer that `received_if` gives it.
    received_if(|problem, capacity| unsafe { medkg_take_stream(index, problem, capacity) }).map(drop)
}

/// Whether this CPU multiplies bf16 faster than f32 (`AVX512_BF16` or AMX).
pub fn cpu_has_fast_bf16() -> bool {
    medkg_cpu_has_fast_bf16() != 0
}

/// A weight [outputs, inputs] on the CPU, laid out for the fastest product that this CPU has.
#[derive(Debug)]
pub enum PackedWeight {
    /// For csrc/linear.cpp, which needs to know how many outputs there are.
    Panels(Param, i64),
    /// For oneDNN.
    OneDnn(Param),
}

impl PackedWeight {
    /// Packs it.
    ///
    /// # Errors
    /// When neither kernel computes this element type on this CPU.
    pub fn new(weight: &Tensor) -> Result<Self, Error> {
        // SAFETY: the handle is valid for the call, and a buffer comes with its capacity.
        let panels = received_if(|problem, capacity| unsafe { medkg_pack_panels(weight.as_ptr(), problem, capacity) })?;
        if let Some(panels) = panels {
            let outputs = weight.size().first().copied().unwrap_or_default();
            return Ok(Self::Panels(Param(panels), outputs));
        }
        Self::for_onednn(weight)
    }

    fn for_onednn(weight: &Tensor) -> Result<Self, Error> {
        // SAFETY: as in `new`.
        received(|problem, capacity| unsafe { medkg_pack_onednn(weight.as_ptr(), problem, capacity) })
            .map(|packed| Self::OneDnn(Param(packed)))
    }

    /// `activation(input · weightᵀ + bias)`, input [rows, inputs] of the weight's element type.
    ///
    /// # Errors
    /// What the device says.
    pub fn multiply(
        &self,
        input: &Tensor,
        bias: Option<&Param>,
        activation: Option<Activation>,
    ) -> Result<Tensor, Error> {
        let (code, after) = match (self, activation) {
            (_, None) => (0, None),
            (_, Some(Activation::Gelu)) => (1, None),
            (_, Some(Activation::GeluTanh)) => (2, None),
            (_, Some(Activation::Silu)) => (3, None),
            (Self::Panels(..), Some(Activation::Relu)) => (4, None),
            // oneDNN's ReLU makes 0 of what is not a number, which would hide it.
            (Self::OneDnn(_), Some(Activation::Relu)) | (_, Some(Activation::Tanh)) => (0, activation),
        };
        let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
        // SAFETY: as in `new`; a null bias means none.
        let output = received(|problem, capacity| unsafe {
            match self {
                Self::Panels(panels, outputs) => {
                    medkg_panel_linear(input.as_ptr(), panels.as_ptr(), bias, *outputs, code, problem, capacity)
                }
                Self::OneDnn(packed) => {
                    medkg_onednn_linear(input.as_ptr(), packed.as_ptr(), bias, code, problem, capacity)
                }
            }
        })?;
        match after {
            Some(activation) => activation.apply(output),
            None => Ok(output),
        }
    }
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
    // SAFETY: as in `PackedWeight::new`; `starts` is valid for its length.
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
    // SAFETY: as in `PackedWeight::new`.
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

/// Inner products, or Euclidean distances, of `queries` [count, size] f32 with `rows` [points, size] f32, f16 or bf16, on a
/// CPU: [count, points] f32. None where the kernel does not apply.
///
/// # Errors
/// What the device says.
pub fn few_scores(queries: &Tensor, rows: &Tensor, distances: bool) -> Result<Option<Tensor>, Error> {
    let distances = c_int::from(distances);
    // SAFETY: as in `PackedWeight::new`.
    received_if(|problem, capacity| unsafe {
        medkg_few_scores(queries.as_ptr(), rows.as_ptr(), distances, problem, capacity)
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
    // SAFETY: as in `PackedWeight::new`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::{Device, Kind};

    const ACTIVATIONS: [Option<Activation>; 6] = [
        None,
        Some(Activation::Gelu),
        Some(Activation::GeluTanh),
        Some(Activation::Silu),
        Some(Activation::Relu),
        Some(Activation::Tanh),
    ];

    /// Packed in each way that this CPU computes; f32 always has one.
    fn every_way(weight: &Tensor) -> Vec<PackedWeight> {
        let ways = [PackedWeight::new(weight), PackedWeight::for_onednn(weight)];
        let ways: Vec<PackedWeight> = ways.into_iter().flatten().collect();
        assert!(!ways.is_empty() || weight.kind() != Kind::Float);
        ways
    }

    /// How far the product is from that in f64 of the same values, in parts of what rounding explains. A sum in f32 is off by a few
    /// units in the last place of the sum of its terms' sizes: signs are at random here, so the errors of its additions are, too
    /// (below 6 units in 6,000 cases; 8 are allowed). An activation passes that on 1.2-fold at most and adds a few units of
    /// its own; the element type is rounded to once, and once before tanh, which comes after the product.
    fn worst(
        packed: &PackedWeight,
        (input, weight): (&Tensor, &Tensor),
        bias: Option<&Param>,
        activation: Option<Activation>,
    ) -> f64 {
        let unit = 2_f64.powi(-24);
        let rounding = if input.kind() == Kind::Float {
            unit
        } else {
            2_f64.powi(-8)
        };
        let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let bias_of = |size: fn(Tensor) -> Tensor| bias.map(|bias| size(wide(bias)));
        let sum = wide(input).linear(&wide(weight), bias_of(|bias| bias).as_ref());
        let sizes = wide(input)
            .abs()
            .linear(&wide(weight).abs(), bias_of(|bias| bias.abs()).as_ref());
        let lost = sizes * (8.0 * unit);
        let (wanted, lost) = match activation {
            None => (sum, lost),
            Some(activation) => {
                let before = if activation == Activation::Tanh { rounding } else { 0.0 };
                let wanted = activation.apply(sum.shallow_clone()).unwrap();
                (wanted, lost * 1.2 + sum.abs() * before + 8.0 * unit)
            }
        };
        let found = packed.multiply(input, bias, activation).unwrap();
        assert_eq!((found.size(), found.kind()), (wanted.size(), input.kind()));
        let bound = lost + wanted.abs() * rounding;
        ((wide(&found) - &wanted).abs() / bound).max().double_value(&[])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_packed_product_is_what_its_definition_says(
            rows in 1_i64..300,
            inputs in 1_i64..150,
            outputs in 1_i64..200,
            activation in prop::sample::select(ACTIVATIONS.to_vec()),
            has_bias: bool,
            half: bool,
            // Rows of a wider matrix, as a joint projection leaves them.
            part: bool,
            seed: u32,
        ) {
            tch::manual_seed(i64::from(seed));
            let kind = if half { Kind::BFloat16 } else { Kind::Float };
            let make = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            let weight = (make(&[outputs, inputs]) * 0.1).to_kind(kind);
            let bias = has_bias.then(|| Param::new(make(&[outputs])));
            let wide = make(&[rows, inputs + 7]);
            let input = if part { wide.narrow(1, 3, inputs) } else { make(&[rows, inputs]) };
            for packed in every_way(&weight) {
                let worst = worst(&packed, (&input, &weight), bias.as_ref(), activation);
                prop_assert!(worst <= 1.0, "{worst} times what rounding explains");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn scores_of_few_queries_are_those_of_a_matrix_product(
            queries in 1_i64..5,
            points in 1_i64..400,
            size in 1_i64..200,
            kind in prop_oneof![Just(Kind::Float), Just(Kind::Half), Just(Kind::BFloat16)],
            distances: bool,
            seed: u32,
        ) {
            tch::manual_seed(i64::from(seed));
            let make = |count: i64| Tensor::randn([count, size], (Kind::Float, Device::Cpu));
            let (queries, rows) = (make(queries), make(points).to_kind(kind));
            // A CPU without AVX-512 has no kernel to test.
            if let Some(found) = few_scores(&queries, &rows, distances).unwrap() {
                let (wide_queries, wide_rows) = (queries.to_kind(Kind::Double), rows.to_kind(Kind::Double));
                let wanted = if distances {
                    (wide_queries.unsqueeze(1) - wide_rows.unsqueeze(0)).square().sum_dim_intlist(2, false, None).sqrt()
                } else {
                    wide_queries.matmul(&wide_rows.transpose(0, 1))
                };
                prop_assert_eq!((found.size(), found.kind()), (wanted.size(), Kind::Float));
                let worst = (found.to_kind(Kind::Double) - &wanted).abs().max().double_value(&[]);
                prop_assert!(worst < 1e-5 * (size as f64).sqrt(), "{worst}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so_in_its_row_alone() {
        let options = (Kind::Float, Device::Cpu);
        let (input, weight) = (Tensor::ones([9, 32], options), Tensor::ones([70, 32], options));
        let _ = input.narrow(0, 4, 1).fill_(f64::NAN);
        for (packed, activation) in every_way(&weight)
            .iter()
            .flat_map(|packed| ACTIVATIONS.map(|one| (packed, one)))
        {
            let rows = packed.multiply(&input, None, activation).unwrap();
            let bad = Vec::<bool>::try_from(rows.isnan().any_dim(1, false)).unwrap();
            assert_eq!(bad, (0..9).map(|row| row == 4).collect::<Vec<_>>(), "{activation:?}");
        }
    }

    #[test]
    fn another_width_or_element_type_is_refused() {
        let options = (Kind::Float, Device::Cpu);
        let packed = PackedWeight::new(&Tensor::ones([70, 32], options)).unwrap();
        assert!(packed.multiply(&Tensor::ones([2, 31], options), None, None).is_err());
        assert!(
            packed
                .multiply(&Tensor::ones([2, 32], (Kind::Double, Device::Cpu)), None, None)
                .is_err()
        );
        let bias = Param::new(Tensor::ones([64], options));
        assert!(
            packed
                .multiply(&Tensor::ones([2, 32], options), Some(&bias), None)
                .is_err()
        );
    }
}
