// What the encoder does between two matrix products on a CPU with AVX-512: attention over sequences that lie side by side
// without padding, and a residual sum with its layer norm in one pass. libtorch's own operators take one length at a time
// and reach half of the machine's rate at the head sizes and lengths of embedding models (docs/performance.md).
//
// Scores, softmax and sums are f32 whatever the tensors hold. A block of queries shares each key and value that is loaded.

#include "attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "avx512.h"

namespace medkg {
namespace {

// Queries of a block: 6 rows of 4 vectors are 24 accumulators, which leaves registers for what they are made of.
constexpr int64_t kRows = 6;
constexpr int64_t kColumns = 4;

struct Sight {
  bool causal;
  int64_t window;
  int64_t from(int64_t query) const { return window < 0 ? 0 : std::max<int64_t>(0, query - window); }
  int64_t to(int64_t query, int64_t length) const {
    const int64_t end = causal ? query + 1 : window < 0 ? length : query + window + 1;
    return std::min(end, length);
  }
};

// Buffers of one thread: keys (below), values [length, size], queries [rows, size], scores [rows, padded].
struct Scratch {
  std::vector<float> keys, values, queries, scores;
};

// A square of 16 x 16 f32, rows and columns exchanged.
AVX512 inline void transpose(__m512 (&rows)[kLanes]) {
  __m512 pairs[kLanes];
#pragma GCC unroll 8
  for (int64_t at = 0; at < kLanes; at += 2) {
    pairs[at] = _mm512_unpacklo_ps(rows[at], rows[at + 1]);
    pairs[at + 1] = _mm512_unpackhi_ps(rows[at], rows[at + 1]);
  }
#pragma GCC unroll 4
  for (int64_t at = 0; at < kLanes; at += 4) {
#pragma GCC unroll 2
    for (int64_t part = 0; part < 2; ++part) {
      const __m512d low = _mm512_castps_pd(pairs[at + part]), high = _mm512_castps_pd(pairs[at + 2 + part]);
      rows[at + 2 * part] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[at + 2 * part + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  // rows[4 * q + c] holds columns c, 4 + c, 8 + c, 12 + c of the rows 4 * q to 4 * q + 3, a quarter of a vector each.
#pragma GCC unroll 4
  for (int64_t column = 0; column < 4; ++column) {
    const __m512 a = _mm512_shuffle_f32x4(rows[column], rows[4 + column], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(rows[column], rows[4 + column], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(rows[8 + column], rows[12 + column], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(rows[8 + column], rows[12 + column], 0xdd);
    pairs[column] = _mm512_shuffle_f32x4(a, c, 0x88);
    pairs[8 + column] = _mm512_shuffle_f32x4(a, c, 0xdd);
    pairs[4 + column] = _mm512_shuffle_f32x4(b, d, 0x88);
    pairs[12 + column] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int64_t at = 0; at < kLanes; ++at) rows[at] = pairs[at];
}

// Tokens that lie side by side in the transposed keys: a block [size, width] each, the last one narrower, all filled with
// zeros to a multiple of kLanes.
int64_t width(int64_t column, int64_t padded) { return std::min(kColumns * kLanes, padded - column); }

template <typename T>
AVX512 void transpose_keys(const T* key, int64_t stride, float* keys, int64_t length, int64_t size, int64_t padded) {
  for (int64_t token = 0; token < padded; token += kLanes) {
    const int64_t column = token / (kColumns * kLanes) * (kColumns * kLanes), wide = width(column, padded);
    for (int64_t at = 0; at < size; at += kLanes) {
      __m512 square[kLanes];
      for (int64_t row = 0; row < kLanes; ++row)
        square[row] = token + row < length ? load(key + (token + row) * stride + at) : _mm512_setzero_ps();
      transpose(square);
      float* to = keys + column * size + at * wide + (token - column);
      for (int64_t row = 0; row < kLanes; ++row) _mm512_storeu_ps(to + row * wide, square[row]);
    }
  }
}

// Scores of `rows` queries with the keys of one block of `parts` vectors.
template <int64_t rows, int64_t parts>
AVX512 void scores_of(const float* queries, const float* keys, float* scores, int64_t size, int64_t padded) {
  __m512 sums[rows][parts];
#pragma GCC unroll 8
  for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) sums[row][part] = _mm512_setzero_ps();
  for (int64_t at = 0; at < size; ++at) {
    __m512 vectors[parts];
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) vectors[part] = _mm512_loadu_ps(keys + (at * parts + part) * kLanes);
#pragma GCC unroll 8
    for (int64_t row = 0; row < rows; ++row) {
      const __m512 query = _mm512_set1_ps(queries[row * size + at]);
#pragma GCC unroll 4
      for (int64_t part = 0; part < parts; ++part)
        sums[row][part] = _mm512_fmadd_ps(query, vectors[part], sums[row][part]);
    }
  }
#pragma GCC unroll 8
  for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part)
      _mm512_storeu_ps(scores + row * padded + part * kLanes, sums[row][part]);
}

// Scores of `rows` queries with every key.
template <int64_t rows>
AVX512 void all_scores(const float* queries, const float* keys, float* scores, int64_t size, int64_t padded) {
  for (int64_t column = 0; column < padded; column += kColumns * kLanes) {
    const float* from = keys + column * size;
    switch (width(column, padded) / kLanes) {
      case 1:
        scores_of<rows, 1>(queries, from, scores + column, size, padded);
        break;
      case 2:
        scores_of<rows, 2>(queries, from, scores + column, size, padded);
        break;
      case 3:
        scores_of<rows, 3>(queries, from, scores + column, size, padded);
        break;
      default:
        scores_of<rows, kColumns>(queries, from, scores + column, size, padded);
    }
  }
}

// Softmax over [from, to) of a row, zero elsewhere; not divided by its sum, which is returned.
AVX512 float softmax(float* row, int64_t from, int64_t to, int64_t padded) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const auto seen = [&](int64_t column) AVX512 {
    if (column >= from && column + kLanes <= to) return static_cast<__mmask16>(0xffff);
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
  all_scores<rows>(scratch.queries.data(), scratch.keys.data(), scratch.scores.data(), size, padded);
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
  const int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
  scratch.keys.resize(size * padded);
  scratch.values.resize(length * size);
  scratch.queries.resize(kRows * size);
  scratch.scores.resize(kRows * padded);
  transpose_keys(key, key_stride, scratch.keys.data(), length, size, padded);
  for (int64_t token = 0; token < length; ++token)
    for (int64_t at = 0; at < size; at += kLanes)
      _mm512_storeu_ps(&scratch.values[token * size + at], load(value + token * value_stride + at));
  int64_t start = 0;
  for (; start + kRows <= length; start += kRows)
    block<kRows>(query, query_stride, out, out_stride, scratch, start, length, size, padded, sight, scale);
  const auto rest = [&]<int64_t rows>() AVX512 {
    block<rows>(query, query_stride, out, out_stride, scratch, start, length, size, padded, sight, scale);
  };
  switch (length - start) {
    case 5:
      return rest.template operator()<5>();
    case 4:
      return rest.template operator()<4>();
    case 3:
      return rest.template operator()<3>();
    case 2:
      return rest.template operator()<2>();
    case 1:
      return rest.template operator()<1>();
    default:
      return;
  }
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
