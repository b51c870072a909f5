// What the encoder does between two matrix products on a CPU with AVX-512: attention over sequences that lie side by side
// without padding, and a residual sum with its layer norm in one pass. libtorch's own operators take one length at a time
// and reach half of the machine's rate at the head sizes and lengths of embedding models (docs/performance.md).
//
// Scores, softmax and sums are f32 whatever the tensors hold. A block of queries shares each key and value that is loaded.

#include "attention.h"

#include <ATen/Parallel.h>
#include <immintrin.h>

#include <algorithm>
#include <limits>
#include <vector>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx2")))

namespace medkg {
namespace {

constexpr int64_t kLanes = 16;
// Queries of a block: 6 rows of 4 vectors are 24 accumulators, which leaves registers for what they are made of.
constexpr int64_t kRows = 6;
constexpr int64_t kColumns = 4;

AVX512 inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
AVX512 inline __m512 load(const c10::BFloat16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
AVX512 inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
AVX512 inline void store(c10::BFloat16* to, __m512 value) {
  // Round to nearest, ties to even. NaN is made quiet, so that rounding cannot turn it into infinity.
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}

// e^x for x <= 0: 2^n times a polynomial in the rest (Cephes' coefficients for 2^f, relative error about 2e-7).
AVX512 inline __m512 exponential(__m512 x) {
  const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f));
  const __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(scaled, whole);
  __m512 sum = _mm512_set1_ps(1.535336188319500e-4f);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.339887440266574e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.618437357674640e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.550332471162809e-2f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.402264791363012e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.931472028550421e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, whole);
}

struct Sight {
  bool causal;
  int64_t window;
  int64_t from(int64_t query) const { return window < 0 ? 0 : std::max<int64_t>(0, query - window); }
  int64_t to(int64_t query, int64_t length) const {
    const int64_t end = causal ? query + 1 : window < 0 ? length : query + window + 1;
    return std::min(end, length);
  }
};

// Buffers of one thread: keys transposed [size, padded], values [length, size], queries [rows, size], scores [rows, padded].
struct Scratch {
  std::vector<float> keys, values, queries, scores;
};

// Scores of `rows` queries with every key. padded is a multiple of 64.
template <int64_t rows>
AVX512 void scores_of(const float* queries, const float* keys, float* scores, int64_t size, int64_t padded) {
  for (int64_t column = 0; column < padded; column += kColumns * kLanes) {
    __m512 sums[rows][kColumns];
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t part = 0; part < kColumns; ++part) sums[row][part] = _mm512_setzero_ps();
    for (int64_t at = 0; at < size; ++at) {
      const float* key = keys + at * padded + column;
      __m512 vectors[kColumns];
      for (int64_t part = 0; part < kColumns; ++part) vectors[part] = _mm512_loadu_ps(key + part * kLanes);
      for (int64_t row = 0; row < rows; ++row) {
        const __m512 query = _mm512_set1_ps(queries[row * size + at]);
        for (int64_t part = 0; part < kColumns; ++part)
          sums[row][part] = _mm512_fmadd_ps(query, vectors[part], sums[row][part]);
      }
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t part = 0; part < kColumns; ++part)
        _mm512_storeu_ps(scores + row * padded + column + part * kLanes, sums[row][part]);
  }
}

// Softmax over [from, to) of a row, zero elsewhere; not divided by its sum, which is returned.
AVX512 float softmax(float* row, int64_t from, int64_t to, int64_t padded) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const auto seen = [&](int64_t column) AVX512 {
    const int64_t low = std::clamp<int64_t>(from - column, 0, kLanes);
    const int64_t high = std::clamp<int64_t>(to - column, 0, kLanes);
    return static_cast<__mmask16>(((1u << high) - 1u) & ~((1u << low) - 1u));
  };
  __m512 largest = nothing;
  for (int64_t column = 0; column < padded; column += kLanes) {
    const __m512 values = _mm512_mask_mov_ps(nothing, seen(column), _mm512_loadu_ps(row + column));
    largest = _mm512_max_ps(values, largest);  // the second operand where either is NaN: a NaN score still shows below
  }
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  for (int64_t column = 0; column < padded; column += kLanes) {
    const __m512 values = exponential(_mm512_sub_ps(_mm512_loadu_ps(row + column), top));
    const __m512 kept = _mm512_maskz_mov_ps(seen(column), values);
    _mm512_storeu_ps(row + column, kept);
    total = _mm512_add_ps(total, kept);
  }
  return _mm512_reduce_add_ps(total);
}

// Weighted sums of values, two vectors of the head at a time.
template <int64_t rows, typename T>
AVX512 void weighted(
    const float* scores, const float* values, const float* totals, T* out, int64_t stride, int64_t size, int64_t first,
    int64_t last, int64_t padded) {
  for (int64_t column = 0; column < size; column += 2 * kLanes) {
    const bool both = column + kLanes < size;
    __m512 sums[rows][2];
    for (int64_t row = 0; row < rows; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    for (int64_t key = first; key < last; ++key) {
      const float* value = values + key * size + column;
      const __m512 left = _mm512_loadu_ps(value);
      const __m512 right = both ? _mm512_loadu_ps(value + kLanes) : _mm512_setzero_ps();
      for (int64_t row = 0; row < rows; ++row) {
        const __m512 weight = _mm512_set1_ps(scores[row * padded + key]);
        sums[row][0] = _mm512_fmadd_ps(weight, left, sums[row][0]);
        sums[row][1] = _mm512_fmadd_ps(weight, right, sums[row][1]);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      const __m512 total = _mm512_set1_ps(totals[row]);
      store(out + row * stride + column, _mm512_div_ps(sums[row][0], total));
      if (both) store(out + row * stride + column + kLanes, _mm512_div_ps(sums[row][1], total));
    }
  }
}

template <int64_t rows, typename T>
AVX512 void block(
    const T* query, int64_t stride, T* out, int64_t out_stride, Scratch& scratch, int64_t start, int64_t length,
    int64_t size, int64_t padded, Sight sight, float scale) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t at = 0; at < size; at += kLanes)
      _mm512_storeu_ps(
          &scratch.queries[row * size + at],
          _mm512_mul_ps(load(query + (start + row) * stride + at), _mm512_set1_ps(scale)));
  scores_of<rows>(scratch.queries.data(), scratch.keys.data(), scratch.scores.data(), size, padded);
  float totals[rows];
  for (int64_t row = 0; row < rows; ++row)
    totals[row] = softmax(
        &scratch.scores[row * padded], sight.from(start + row), sight.to(start + row, length), padded);
  weighted<rows>(
      scratch.scores.data(), scratch.values.data(), totals, out + start * out_stride, out_stride, size,
      sight.from(start), sight.to(start + rows - 1, length), padded);
}

// One head of one sequence.
template <typename T>
AVX512 void head(
    const T* query, const T* key, const T* value, T* out, int64_t query_stride, int64_t key_stride,
    int64_t value_stride, int64_t out_stride, int64_t length, int64_t size, Sight sight, float scale,
    Scratch& scratch) {
  const int64_t step = kColumns * kLanes;
  const int64_t padded = (length + step - 1) / step * step;
  scratch.keys.assign(size * padded, 0.0f);
  scratch.values.resize(length * size);
  scratch.queries.resize(kRows * size);
  scratch.scores.resize(kRows * padded);
  alignas(64) float row[kLanes];
  for (int64_t token = 0; token < length; ++token)
    for (int64_t at = 0; at < size; at += kLanes) {
      _mm512_store_ps(row, load(key + token * key_stride + at));
      for (int64_t lane = 0; lane < kLanes; ++lane) scratch.keys[(at + lane) * padded + token] = row[lane];
      _mm512_storeu_ps(&scratch.values[token * size + at], load(value + token * value_stride + at));
    }
  int64_t start = 0;
  for (; start + kRows <= length; start += kRows)
    block<kRows>(query, query_stride, out, out_stride, scratch, start, length, size, padded, sight, scale);
  for (; start < length; ++start)
    block<1>(query, query_stride, out, out_stride, scratch, start, length, size, padded, sight, scale);
}

template <typename T>
void attend(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& out,
    const std::vector<int64_t>& starts, Sight sight, double scale) {
  const int64_t heads = query.size(1), size = query.size(2), group = heads / key.size(1);
  const int64_t sequences = static_cast<int64_t>(starts.size()) - 1;
  const T* queries = query.const_data_ptr<T>();
  const T* keys = key.const_data_ptr<T>();
  const T* values = value.const_data_ptr<T>();
  T* outs = out.mutable_data_ptr<T>();
  at::parallel_for(0, sequences * heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t first = starts[at / heads], length = starts[at / heads + 1] - first, number = at % heads;
      const int64_t shared = number / group;
      medkg::head<T>(
          queries + first * query.stride(0) + number * query.stride(1),
          keys + first * key.stride(0) + shared * key.stride(1),
          values + first * value.stride(0) + shared * value.stride(1), outs + (first * heads + number) * size,
          query.stride(0), key.stride(0), value.stride(0), heads * size, length, size, sight,
          static_cast<float>(scale), scratch);
    }
  });
}

template <typename T>
AVX512 void add_norm_row(
    const T* input, const T* residual, const T* weight, const T* bias, T* out, int64_t size, float eps, float* sums) {
  __m512 total = _mm512_setzero_ps();
  for (int64_t at = 0; at < size; at += kLanes) {
    const __m512 value = _mm512_add_ps(load(input + at), load(residual + at));
    _mm512_storeu_ps(sums + at, value);
    total = _mm512_add_ps(total, value);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / static_cast<float>(size));
  __m512 squares = _mm512_setzero_ps();
  for (int64_t at = 0; at < size; at += kLanes) {
    const __m512 value = _mm512_sub_ps(_mm512_loadu_ps(sums + at), mean);
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(variance + eps));
  for (int64_t at = 0; at < size; at += kLanes) {
    const __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(sums + at), mean), factor);
    store(out + at, _mm512_fmadd_ps(value, load(weight + at), load(bias + at)));
  }
}

template <typename T>
void add_norm(
    const at::Tensor& input, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& bias,
    at::Tensor& out, double eps) {
  const int64_t rows = input.size(0), size = input.size(1);
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(size);
    for (int64_t row = begin; row < end; ++row)
      add_norm_row<T>(
          input.const_data_ptr<T>() + row * size, residual.const_data_ptr<T>() + row * size,
          weight.const_data_ptr<T>(), bias.const_data_ptr<T>(), out.mutable_data_ptr<T>() + row * size, size,
          static_cast<float>(eps), sums.data());
  });
}

bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

bool is_taken(const at::Tensor& tensor) {
  return tensor.is_cpu() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

}  // namespace

std::optional<at::Tensor> sequence_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::vector<int64_t>& starts,
    bool causal, int64_t window, double scale) {
  const auto fits = [&](const at::Tensor& tensor) {
    return tensor.dim() == 3 && tensor.stride(2) == 1 && tensor.scalar_type() == query.scalar_type() &&
           tensor.size(0) == query.size(0) && tensor.size(2) == query.size(2);
  };
  if (!has_avx512() || !is_taken(query) || query.size(2) % kLanes != 0 || !fits(query) || !fits(key) || !fits(value) ||
      key.size(1) != value.size(1) || query.size(1) % key.size(1) != 0 || starts.back() != query.size(0))
    return std::nullopt;
  at::Tensor out = at::empty({query.size(0), query.size(1) * query.size(2)}, query.options());
  const Sight sight{causal, window};
  if (query.scalar_type() == at::kFloat)
    attend<float>(query, key, value, out, starts, sight, scale);
  else
    attend<c10::BFloat16>(query, key, value, out, starts, sight, scale);
  return out;
}

std::optional<at::Tensor> add_layer_norm(
    const at::Tensor& input, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const auto fits = [&](const at::Tensor& tensor) {
    return tensor.is_contiguous() && tensor.scalar_type() == input.scalar_type();
  };
  if (!has_avx512() || !is_taken(input) || input.dim() != 2 || input.size(1) % kLanes != 0 || !fits(input) ||
      !fits(residual) || residual.sizes() != input.sizes() || !fits(weight) || weight.numel() != input.size(1) ||
      !fits(bias) || bias.numel() != input.size(1))
    return std::nullopt;
  at::Tensor out = at::empty_like(input);
  if (input.scalar_type() == at::kFloat)
    add_norm<float>(input, residual, weight, bias, out, eps);
  else
    add_norm<c10::BFloat16>(input, residual, weight, bias, out, eps);
  return out;
}

}  // namespace medkg
