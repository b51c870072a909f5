// Inner products and distances of a few queries with many rows. Memory is what a search of few queries waits for: each row
// is read once for all queries, by all threads, and rows in half precision are widened in registers, so that they are read
// at half the width. Values widen exactly, and are multiplied and summed in f32. A matrix product of few queries is left to
// one thread by MKL on some processors.

#include "scores.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "avx512.h"

namespace medkg {
namespace {

// Sums of a row that go on side by side: they hide the latency of the additions.
constexpr int64_t kSums = 4;
// How far ahead memory is asked for. A hint past the last row does no harm.
constexpr int64_t kAheadBytes = 4096;
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

// One query with one row. Rows are read from the first to the last: several side by side are not foreseen by the processor.
template <typename T, bool distances>
AVX512 float compare(const float* query, const T* row, int64_t size) {
  __m512 sums[kSums];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  int64_t at = 0;
  for (; at + kSums * kLanes <= size; at += kSums * kLanes) {
    const char* ahead = reinterpret_cast<const char*>(row + at) + kAheadBytes;
    for (size_t line = 0; line < kSums * kLanes * sizeof(T); line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int64_t part = 0; part < kSums; ++part) {
      const int64_t from = at + part * kLanes;
      sums[part] = added<distances>(sums[part], load(query + from), load(row + from));
    }
  }
  for (; at < size; at += kLanes) {
    const __mmask16 wanted = static_cast<__mmask16>((1u << std::min(kLanes, size - at)) - 1);
    sums[0] = added<distances>(sums[0], load(query + at, wanted), load(row + at, wanted));
  }
  const __m512 pairs = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  const float sum = _mm512_reduce_add_ps(pairs);
  return distances ? std::sqrt(sum) : sum;
}

template <typename T, bool distances>
void compare_all(const at::Tensor& queries, const at::Tensor& rows, at::Tensor& scores) {
  const int64_t count = queries.size(0), points = rows.size(0), size = rows.size(1);
  const float* query = queries.const_data_ptr<float>();
  const T* row = rows.const_data_ptr<T>();
  float* score = scores.mutable_data_ptr<float>();
  const int64_t block = std::max<int64_t>(1, kBlockElements / std::max<int64_t>(size, 1));
  at::parallel_for(0, points, std::max<int64_t>(1, kGrain / std::max<int64_t>(size, 1)), [&](int64_t from, int64_t to) {
    for (int64_t start = from; start < to; start += block) {
      const int64_t end = std::min(to, start + block);
      for (int64_t q = 0; q < count; ++q) {
        const float* asked = query + q * size;
        for (int64_t at = start; at < end; ++at) {
          score[q * points + at] = compare<T, distances>(asked, row + at * size, size);
        }
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

std::optional<at::Tensor> few_scores(const at::Tensor& queries, const at::Tensor& rows, bool distances) {
  const at::ScalarType kind = rows.scalar_type();
  const bool known = kind == at::kFloat || kind == at::kHalf || kind == at::kBFloat16;
  const bool applies = has_avx512() && known && queries.scalar_type() == at::kFloat &&
                       queries.device().is_cpu() && rows.device().is_cpu() && queries.is_contiguous() &&
                       rows.is_contiguous();
  if (!applies) return std::nullopt;
  TORCH_CHECK(queries.dim() == 2 && rows.dim() == 2 && queries.size(1) == rows.size(1), "shapes do not match");
  at::Tensor scores = at::empty({queries.size(0), rows.size(0)}, queries.options());
  if (kind == at::kFloat) {
    compare_as<float>(queries, rows, distances, scores);
  } else if (kind == at::kHalf) {
    compare_as<c10::Half>(queries, rows, distances, scores);
  } else {
    compare_as<c10::BFloat16>(queries, rows, distances, scores);
  }
  return scores;
}

}  // namespace medkg
