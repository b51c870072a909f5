// Kernels for CPUs with AVX-512. Each gives nothing where it does not apply (another CPU, element type or layout), and the
// caller computes the same with libtorch's operators.

#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace medkg {

// query [tokens, heads, size], key and value [tokens, key heads, size], size a multiple of 16; sequence i lies at
// starts[i] up to, not including, starts[i + 1]. window < 0: none. Gives [tokens, heads * size].
std::optional<at::Tensor> sequence_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::vector<int64_t>& starts,
    bool causal, int64_t window, double scale);

// layer_norm(input + residual), both [rows, size].
std::optional<at::Tensor> add_layer_norm(
    const at::Tensor& input, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& bias, double eps);

}  // namespace medkg
