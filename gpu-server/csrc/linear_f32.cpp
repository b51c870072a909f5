// Tiles of f32: one multiply-add per input.

#include "avx512.h"

#define MEDKG_TARGET AVX512

namespace medkg {
namespace {

template <typename T>
struct Step;

template <>
struct Step<float> {
  using Vector = __m512;
  static constexpr int64_t kValues = 1;
  AVX512 static inline Vector weights(const float* from) { return _mm512_loadu_ps(from); }
  AVX512 static inline Vector values(const float* from) { return _mm512_set1_ps(*from); }
  AVX512 static inline __m512 added(__m512 sum, Vector values, Vector weights) {
    return _mm512_fmadd_ps(values, weights, sum);
  }
};

}  // namespace
}  // namespace medkg

#include "linear_tile.h"

namespace medkg {

void multiply(const Tile<float>& tile) { all_rows(tile); }

}  // namespace medkg
