// Tiles of bf16: vdpbf16ps multiplies two inputs at a time and adds in f32.

#include <cstring>

#include "avx512.h"

#define MEDKG_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,avx2")))

namespace medkg {
namespace {

template <typename T>
struct Step;

template <>
struct Step<c10::BFloat16> {
  using Vector = __m512i;
  static constexpr int64_t kValues = 2;
  AVX512 static inline Vector weights(const c10::BFloat16* from) { return _mm512_loadu_si512(from); }
  AVX512 static inline Vector values(const c10::BFloat16* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  MEDKG_TARGET static inline __m512 added(__m512 sum, Vector values, Vector weights) {
    return _mm512_dpbf16_ps(sum, (__m512bh)values, (__m512bh)weights);
  }
};

}  // namespace
}  // namespace medkg

#include "linear_tile.h"

namespace medkg {

void multiply(const Tile<c10::BFloat16>& tile) { all_rows(tile); }

}  // namespace medkg
