// Scores of rows for few queries at once, for CPUs with AVX-512. As attention.h says of its kernels.

#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace medkg {

// queries [count, size] f32, rows [points, size] f32, f16 or bf16; gives [count, points] f32: inner products, or Euclidean
// distances.
std::optional<at::Tensor> few_scores(const at::Tensor& queries, const at::Tensor& rows, bool distances);

}  // namespace medkg
