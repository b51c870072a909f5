// Inner products and distances of a few queries with many rows in half precision. Rows are widened in registers: memory,
// which is what a search of few queries waits for, is read at half the width, and each row once for all queries. Values
// widen exactly, and are multiplied and summed in f32.

#include "scores.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "avx512.h"

namespace medkg {
namespace {

// Rows that share each part of a query that is loaded.
constexpr int64_t kRows = 4;
// Rows that all queries are compared with before the next ones are read: they stay in the nearest cache.
constexpr int64_t kBlockElements = 8 * 1024;
// Elements of a thread's share, at least.
constexpr int64_t kGrain = 64 * 1024;

template <bool distances>
AVX512 inline __m512 added(__m512 sum, __m512 query, __m512 row) {
  if constexpr (distances) {
    const __m512 apart = _mm512_sub_ps(query, row);
    return _mm512_fmadd_ps(apart, apart, sum);
  } else {
    return _mm512_fmadd_ps(query, row, sum);
  }
}

// One query with `count` rows that follow each other. Two sums for each row hide the latency of the additions.
template <typename T, bool distances, int64_t count>
AVX512 void compare(const float* query, const T* rows, int64_t size, float* scores) {
  __m512 sums[count][2];
  for (auto& sum : sums) sum[0] = sum[1] = _mm512_setzero_ps();
  int64_t at = 0;
  for (; at + 2 * kLanes <= size; at += 2 * kLanes) {
    const __m512 first = load(query + at), second = load(query + at + kLanes);
#pragma GCC unroll 4
    for (int64_t row = 0; row < count; ++row) {
      sums[row][0] = added<distances>(sums[row][0], first, load(rows + row * size + at));
      sums[row][1] = added<distances>(sums[row][1], second, load(rows + row * size + at + kLanes));
    }
  }
  for (; at < size; at += kLanes) {
    const int64_t left = std::min(kLanes, size - at);
    const __mmask16 wanted = static_cast<__mmask16>((1u << left) - 1);
    const __m512 values = load(query + at, wanted);
    for (int64_t row = 0; row < count; ++row) {
      sums[row][0] = added<distances>(sums[row][0], values, load(rows + row * size + at, wanted));
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[row][0], sums[row][1]));
    scores[row] = distances ? std::sqrt(sum) : sum;
  }
}

template <typename T, bool distances>
void compare_all(const at::Tensor& queries, const at::Tensor& rows, at::Tensor& scores) {
  const int64_t count = queries.size(0), points = rows.size(0), size = rows.size(1);
  const float* query = queries.const_data_ptr<float>();
  const T* row = rows.const_data_ptr<T>();
  float* score = scores.mutable_data_ptr<float>();
  const int64_t block = std::max(kRows, kBlockElements / std::max<int64_t>(size, 1) / kRows * kRows);
  at::parallel_for(0, points, std::max<int64_t>(1, kGrain / std::max<int64_t>(size, 1)), [&](int64_t from, int64_t to) {
    for (int64_t start = from; start < to; start += block) {
      const int64_t end = std::min(to, start + block);
      for (int64_t q = 0; q < count; ++q) {
        const float* asked = query + q * size;
        float* out = score + q * points;
        int64_t at = start;
        for (; at + kRows <= end; at += kRows) compare<T, distances, kRows>(asked, row + at * size, size, out + at);
        for (; at < end; ++at) compare<T, distances, 1>(asked, row + at * size, size, out + at);
      }
    }
  });
}

template <typename T>
void compare_as(const at::Tensor& queries, const at::Tensor& rows, bool distances, at::Tensor& scores) {
  if (distances) {
    compare_all<T, true>(queries, rows, scores);
  } else {
    compare_all<T, false>(queries, rows, scores);
  }
}

}  // namespace

std::optional<at::Tensor> half_scores(const at::Tensor& queries, const at::Tensor& rows, bool distances) {
  const bool half = rows.scalar_type() == at::kHalf, brain = rows.scalar_type() == at::kBFloat16;
  const bool applies = has_avx512() && (half || brain) && queries.scalar_type() == at::kFloat &&
                       queries.device().is_cpu() && rows.device().is_cpu() && queries.is_contiguous() &&
                       rows.is_contiguous();
  if (!applies) return std::nullopt;
  TORCH_CHECK(queries.dim() == 2 && rows.dim() == 2 && queries.size(1) == rows.size(1), "shapes do not match");
  at::Tensor scores = at::empty({queries.size(0), rows.size(0)}, queries.options());
  if (half) {
    compare_as<c10::Half>(queries, rows, distances, scores);
  } else {
    compare_as<c10::BFloat16>(queries, rows, distances, scores);
  }
  return scores;
}

}  // namespace medkg
