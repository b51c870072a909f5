// The product of a few rows with one panel, kept in registers; included once per element type by a file that defines
// MEDKG_TARGET (what the CPU must have) and `Step<T>` (how an input's values meet a vector of the panel).

#include <algorithm>

#include "avx512.h"
#include "linear.h"

namespace medkg {
namespace {

constexpr int64_t kVectors = kColumns / kLanes;
// 6 rows of 4 vectors are 24 sums, which leaves registers for what they are made of.
constexpr int64_t kRows = 6;

AVX512 inline __m512 activated(__m512 x, Activation activation) {
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::gelu:
      return _mm512_fmadd_ps(half, error_function(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678118654752f))), half);
    case Activation::gelu_tanh: {
      // (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3).
      const __m512 cubic = _mm512_fmadd_ps(
          _mm512_mul_ps(x, x), _mm512_set1_ps(2.0f * 0.79788456080286536f * 0.044715f),
          _mm512_set1_ps(2.0f * 0.79788456080286536f));
      return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(x, cubic)));
    }
    case Activation::silu:
      return _mm512_mul_ps(x, sigmoid(x));
    case Activation::relu:
      return _mm512_max_ps(_mm512_setzero_ps(), x);  // the second operand where either is NaN
  }
  return x;
}

template <int64_t rows, typename T>
MEDKG_TARGET void some_rows(const Tile<T>& tile, int64_t row) {
  const T* input = tile.input + row * tile.input_stride;
  __m512 sums[rows][kVectors];
#pragma GCC unroll 8
  for (int64_t at = 0; at < rows; ++at)
#pragma GCC unroll 4
    for (int64_t part = 0; part < kVectors; ++part) sums[at][part] = _mm512_setzero_ps();
  const T* panel = tile.panel;
  for (int64_t from = 0; from < tile.inputs; from += Step<T>::kValues, panel += kColumns * Step<T>::kValues) {
    typename Step<T>::Vector weights[kVectors];
#pragma GCC unroll 4
    for (int64_t part = 0; part < kVectors; ++part)
      weights[part] = Step<T>::weights(panel + part * kLanes * Step<T>::kValues);
#pragma GCC unroll 8
    for (int64_t at = 0; at < rows; ++at) {
      const typename Step<T>::Vector values = Step<T>::values(input + at * tile.input_stride + from);
#pragma GCC unroll 4
      for (int64_t part = 0; part < kVectors; ++part)
        sums[at][part] = Step<T>::added(sums[at][part], values, weights[part]);
    }
  }
#pragma GCC unroll 4
  for (int64_t part = 0; part < kVectors; ++part) {
    const int64_t wanted = std::clamp<int64_t>(tile.columns - part * kLanes, 0, kLanes);
    const __mmask16 mask = static_cast<__mmask16>((1u << wanted) - 1u);
    const __m512 bias = tile.bias == nullptr ? _mm512_setzero_ps() : load(tile.bias + part * kLanes, mask);
#pragma GCC unroll 8
    for (int64_t at = 0; at < rows; ++at)
      store(
          tile.out + (row + at) * tile.out_stride + part * kLanes,
          activated(_mm512_add_ps(sums[at][part], bias), tile.activation), mask);
  }
}

template <typename T>
void all_rows(const Tile<T>& tile) {
  int64_t row = tile.row;
  for (; row + kRows <= tile.row_end; row += kRows) some_rows<kRows>(tile, row);
  switch (tile.row_end - row) {
    case 5:
      return some_rows<5>(tile, row);
    case 4:
      return some_rows<4>(tile, row);
    case 3:
      return some_rows<3>(tile, row);
    case 2:
      return some_rows<2>(tile, row);
    case 1:
      return some_rows<1>(tile, row);
    default:
      return;
  }
}

}  // namespace
}  // namespace medkg
