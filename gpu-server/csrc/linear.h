// Matrix products over weights packed for AVX-512: any number of rows with the same code, at or above oneDNN's rate
// (docs/adr/0010-matrix-products.md).

#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace medkg {

enum class Activation { none, gelu, gelu_tanh, silu, relu };

// A panel is kColumns outputs wide. For f32 it is [inputs, kColumns], for bf16 [inputs / 2, kColumns, 2]; all panels of a
// weight [outputs, inputs] are one tensor, the last one filled with zeros.
constexpr int64_t kColumns = 64;

// Whether this CPU multiplies bf16 faster than f32.
bool has_fast_bf16();

// Nothing where the kernel does not apply: another CPU, element type or layout, or bf16 where AMX computes it faster.
std::optional<at::Tensor> pack_panels(const at::Tensor& weight);

// activation(input * weight^T + bias): input [rows, inputs], panels of a weight [outputs, inputs], bias [outputs] or none.
at::Tensor panel_linear(
    const at::Tensor& input, const at::Tensor& panels, const std::optional<at::Tensor>& bias, int64_t outputs,
    Activation activation);

// Rows [row, row_end) of one panel. Strides count elements; `columns` is how many of the panel's outputs are wanted.
template <typename T>
struct Tile {
  const T* input;
  int64_t input_stride;
  const T* panel;
  const T* bias;
  T* out;
  int64_t out_stride;
  int64_t inputs, row, row_end, columns;
  Activation activation;
};

void multiply(const Tile<float>& tile);
void multiply(const Tile<c10::BFloat16>& tile);

}  // namespace medkg
