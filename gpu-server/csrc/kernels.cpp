// A C interface to the kernels of this folder and to ATen operators that tch's generated bindings leave out: oneDNN's linear
// over weights that were packed once, with an activation fused into it, and CUDA's attention over sequences of different
// lengths. Exceptions end here: a function that fails returns a null pointer and writes why into `problem`; one that does not
// apply returns a null pointer and writes nothing.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <tuple>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "scores.h"

namespace {

template <typename Work>
at::Tensor* caught(char* problem, size_t capacity, Work work) {
  try {
    return new at::Tensor(work());
  } catch (const c10::Error& error) {
    std::snprintf(problem, capacity, "%s", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::snprintf(problem, capacity, "%s", error.what());
  }
  return nullptr;
}

template <typename Work>
at::Tensor* caught_if(char* problem, size_t capacity, Work work) {
  bool applies = true;
  at::Tensor* result = caught(problem, capacity, [&] {
    std::optional<at::Tensor> made = work();
    applies = made.has_value();
    return applies ? *made : at::Tensor();
  });
  if (applies) return result;
  delete result;
  return nullptr;
}

using Pack = at::Tensor(const at::Tensor&, std::optional<c10::SymInt>);
using PackedLinear = at::Tensor(
    const at::Tensor&,
    const at::Tensor&,
    const std::optional<at::Tensor>&,
    std::string_view,
    c10::List<std::optional<at::Scalar>>,
    std::optional<std::string_view>);

template <typename Signature>
auto operator_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

std::optional<at::Tensor> given(const at::Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor);
}

}  // namespace

extern "C" {

int medkg_cpu_has_fast_bf16() { return medkg::has_fast_bf16() ? 1 : 0; }

// Gives this thread a stream of its own on a GPU, before others in priority. There is never a result, only a problem.
at::Tensor* medkg_take_stream(int index, char* problem, size_t capacity) {
  return caught_if(problem, capacity, [&]() -> std::optional<at::Tensor> {
    c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    cuda.setDevice(device);
    cuda.exchangeStream(cuda.getStreamFromGlobalPool(device, /*isHighPriority=*/true));
    return std::nullopt;
  });
}

// weight [outputs, inputs] on a CPU; the result is for medkg_panel_linear.
at::Tensor* medkg_pack_panels(const at::Tensor* weight, char* problem, size_t capacity) {
  return caught_if(problem, capacity, [&] { return medkg::pack_panels(*weight); });
}

// input [rows, inputs], panels by medkg_pack_panels, bias [outputs] or null; activation as in medkg::Activation.
at::Tensor* medkg_panel_linear(
    const at::Tensor* input,
    const at::Tensor* panels,
    const at::Tensor* bias,
    int64_t outputs,
    int activation,
    char* problem,
    size_t capacity) {
  return caught(problem, capacity, [&] {
    return medkg::panel_linear(
        *input, *panels, given(bias), outputs, static_cast<medkg::Activation>(activation));
  });
}

// weight [outputs, inputs], f32 or bf16, on a CPU; the result is opaque and for medkg_onednn_linear.
at::Tensor* medkg_pack_onednn(const at::Tensor* weight, char* problem, size_t capacity) {
  return caught(problem, capacity, [&] {
    static auto pack = operator_of<Pack>("mkldnn::_reorder_linear_weight");
    return pack.call(*weight, std::nullopt);
  });
}

// As medkg_panel_linear, but without ReLU, of which oneDNN makes 0 where the input is not a number. oneDNN compiles and keeps
// code for every number of rows that it meets, up to 1,024 of them, at a megabyte each; so it meets few: rows go in pieces of
// a multiple of kStep, and what is left is filled up.
at::Tensor* medkg_onednn_linear(
    const at::Tensor* input,
    const at::Tensor* packed,
    const at::Tensor* bias,
    int activation,
    char* problem,
    size_t capacity) {
  return caught(problem, capacity, [&] {
    static auto linear = operator_of<PackedLinear>("mkldnn::_linear_pointwise");
    static constexpr std::string_view names[] = {"none", "gelu", "gelu", "swish"};
    static constexpr int64_t kPiece = 256, kStep = 16;
    const std::optional<std::string_view> algorithm = activation == 2 ? "tanh" : "none";
    const auto computed = [&](const at::Tensor& rows) {
      return linear.call(
          rows, *packed, given(bias), names[activation], c10::List<std::optional<at::Scalar>>(), algorithm);
    };
    std::vector<at::Tensor> pieces;
    for (int64_t row = 0; row < input->size(0); row += kPiece) {
      const int64_t count = std::min(kPiece, input->size(0) - row), left = count % kStep;
      if (count > left) pieces.push_back(computed(input->narrow(0, row, count - left)));
      if (left > 0) {
        at::Tensor filled = at::zeros({kStep, input->size(1)}, input->options());
        filled.narrow(0, 0, left).copy_(input->narrow(0, row + count - left, left));
        pieces.push_back(computed(filled).narrow(0, 0, left));
      }
    }
    return pieces.size() == 1 ? pieces.front() : at::cat(pieces);
  });
}

// query, key, value [tokens, heads, size] on a GPU, starts i32 [sequences + 1]; window < 0: none, else how many tokens each
// side is seen. Returns [tokens, heads, size].
at::Tensor* medkg_packed_attention(
    const at::Tensor* query,
    const at::Tensor* key,
    const at::Tensor* value,
    const at::Tensor* starts,
    int64_t longest,
    int causal,
    int64_t window,
    double scale,
    char* problem,
    size_t capacity) {
  return caught(problem, capacity, [&] {
    if (query->scalar_type() != at::kFloat) {
      // FlashAttention-2 (Dao 2023) takes half precision only.
      const std::optional<int64_t> side = window < 0 ? std::nullopt : std::optional<int64_t>(window);
      return std::get<0>(at::_flash_attention_forward(
          *query, *key, *value, *starts, *starts, longest, longest, 0.0, causal != 0, false, scale, side,
          causal != 0 ? std::optional<int64_t>(0) : side));
    }
    // Its window counts the tokens before, the token itself and, since mask 0 has no causality, none after; so a window
    // that looks both ways is refused rather than computed wrong.
    TORCH_CHECK(window < 0, "a sliding window is computed in half precision only");
    const auto batched = [](const at::Tensor& tensor) { return tensor.unsqueeze(0); };
    return std::get<0>(at::_efficient_attention_forward(
                           batched(*query), batched(*key), batched(*value), std::nullopt, *starts, *starts, longest,
                           longest, 0.0, causal != 0 ? 1 : 0, false, scale))
        .squeeze(0);
  });
}

// As attention.h's; starts has sequences + 1 values.
at::Tensor* medkg_sequence_attention(
    const at::Tensor* query,
    const at::Tensor* key,
    const at::Tensor* value,
    const int64_t* starts,
    size_t count,
    int causal,
    int64_t window,
    double scale,
    char* problem,
    size_t capacity) {
  return caught_if(problem, capacity, [&] {
    return medkg::sequence_attention(
        *query, *key, *value, std::vector<int64_t>(starts, starts + count), causal != 0, window, scale);
  });
}

at::Tensor* medkg_add_layer_norm(
    const at::Tensor* input,
    const at::Tensor* residual,
    const at::Tensor* weight,
    const at::Tensor* bias,
    double eps,
    char* problem,
    size_t capacity) {
  return caught_if(problem, capacity, [&] { return medkg::add_layer_norm(*input, *residual, *weight, *bias, eps); });
}

// As scores.h's.
at::Tensor* medkg_few_scores(
    const at::Tensor* queries, const at::Tensor* rows, int distances, char* problem, size_t capacity) {
  return caught_if(problem, capacity, [&] { return medkg::few_scores(*queries, *rows, distances != 0); });
}

}  // extern "C"
