#include "linear.h"

#include <ATen/Parallel.h>
#include <cpuid.h>

#include <algorithm>

#include "avx512.h"

namespace medkg {
namespace {

// Rows that a thread takes at a time; their inputs stay in its second-level cache while it goes through the panels.
constexpr int64_t kChunk = 96;

struct Bf16 {
  bool dot;  // AVX512_BF16
  bool amx;  // AMX-BF16, whose tiles oneDNN uses
};

Bf16 bf16_support() {
  static const Bf16 support = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Bf16 found{false, false};
    // Intel SDM, CPUID leaf 7: sub-leaf 1 EAX bit 5 and sub-leaf 0 EDX bit 22.
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) found.dot = (a >> 5 & 1u) != 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) found.amx = (d >> 22 & 1u) != 0;
    return found;
  }();
  return support;
}

bool applies(const at::Tensor& weight) {
  if (!weight.is_cpu() || weight.dim() != 2 || !has_avx512()) return false;
  if (weight.scalar_type() == at::kFloat) return true;
  return weight.scalar_type() == at::kBFloat16 && weight.size(1) % 2 == 0 && bf16_support().dot && !bf16_support().amx;
}

template <typename T>
void run(
    const at::Tensor& input, const at::Tensor& panels, const at::Tensor* bias, at::Tensor& out, Activation activation) {
  const int64_t rows = input.size(0), inputs = input.size(1), outputs = out.size(1);
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  const T* values = input.const_data_ptr<T>();
  const T* weights = panels.const_data_ptr<T>();
  const T* biases = bias == nullptr ? nullptr : bias->const_data_ptr<T>();
  T* outs = out.mutable_data_ptr<T>();
  at::parallel_for(0, panels.size(0) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t panel = at / chunks, row = at % chunks * kChunk, column = panel * kColumns;
      multiply(Tile<T>{
          values, input.stride(0), weights + column * inputs, biases == nullptr ? nullptr : biases + column,
          outs + column, outputs, inputs, row, std::min(row + kChunk, rows), std::min(kColumns, outputs - column),
          activation});
    }
  });
}

}  // namespace

bool has_fast_bf16() { return (has_avx512() && bf16_support().dot) || bf16_support().amx; }

std::optional<at::Tensor> pack_panels(const at::Tensor& weight) {
  if (!applies(weight)) return std::nullopt;
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t count = (outputs + kColumns - 1) / kColumns;
  const int64_t values = weight.scalar_type() == at::kFloat ? 1 : 2;
  at::Tensor filled = at::zeros({count * kColumns, inputs}, weight.options());
  filled.narrow(0, 0, outputs).copy_(weight);
  return filled.view({count, kColumns, inputs / values, values}).permute({0, 2, 1, 3}).contiguous();
}

at::Tensor panel_linear(
    const at::Tensor& input, const at::Tensor& panels, const std::optional<at::Tensor>& bias, int64_t outputs,
    Activation activation) {
  const int64_t inputs = panels.size(1) * panels.size(3);
  TORCH_CHECK(
      input.is_cpu() && input.dim() == 2 && input.size(1) == inputs && input.scalar_type() == panels.scalar_type(),
      "expected an input [rows, ", inputs, "] of ", panels.scalar_type(), ", got ", input.sizes(), " of ",
      input.scalar_type());
  TORCH_CHECK(
      (outputs + kColumns - 1) / kColumns == panels.size(0) &&
          (!bias || (bias->is_contiguous() && bias->numel() == outputs && bias->scalar_type() == panels.scalar_type())),
      "the bias or the number of outputs, ", outputs, ", does not go with the weight");
  const at::Tensor rows = input.stride(1) == 1 ? input : input.contiguous();
  at::Tensor out = at::empty({input.size(0), outputs}, input.options());
  const at::Tensor* added = bias ? &*bias : nullptr;
  if (panels.scalar_type() == at::kFloat)
    run<float>(rows, panels, added, out, activation);
  else
    run<c10::BFloat16>(rows, panels, added, out, activation);
  return out;
}

}  // namespace medkg
