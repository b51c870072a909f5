// What the AVX-512 kernels share: loads and stores that convert, and the functions that activations and softmax need.
// Arithmetic is f32 whatever the tensors hold.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <cstdint>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx2")))

namespace medkg {

constexpr int64_t kLanes = 16;

inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

AVX512 inline __m512 widened(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Round to nearest, ties to even. NaN is made quiet, so that rounding cannot turn it into infinity.
AVX512 inline __m256i narrowed(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

AVX512 inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
AVX512 inline __m512 load(const c10::BFloat16* from) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
AVX512 inline __m512 load(const float* from, __mmask16 wanted) { return _mm512_maskz_loadu_ps(wanted, from); }
AVX512 inline __m512 load(const c10::BFloat16* from, __mmask16 wanted) {
  return widened(_mm256_maskz_loadu_epi16(wanted, from));
}
AVX512 inline __m512 load(const c10::Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
AVX512 inline __m512 load(const c10::Half* from, __mmask16 wanted) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(wanted, from));
}
AVX512 inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
AVX512 inline void store(c10::BFloat16* to, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(value));
}
AVX512 inline void store(float* to, __m512 value, __mmask16 wanted) { _mm512_mask_storeu_ps(to, wanted, value); }
AVX512 inline void store(c10::BFloat16* to, __m512 value, __mmask16 wanted) {
  _mm256_mask_storeu_epi16(to, wanted, narrowed(value));
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

// 1 / (1 + e^-x), through e^-|x| so that nothing overflows.
AVX512 inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_div_ps(_mm512_mask_mov_ps(one, negative, small), _mm512_add_ps(one, small));
}

// The error function by a rational function of x (Eigen's coefficients, relative error 4e-8); it is 1 in
// f32 from 3.8325 on.
AVX512 inline __m512 error_function(__m512 x) {
  const __m512 bound = _mm512_set1_ps(3.832506856900711f);
  const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), bound);
  // The second operand where either is NaN, so that NaN stays.
  const __m512 at = _mm512_max_ps(least, _mm512_min_ps(bound, x));
  const __m512 square = _mm512_mul_ps(at, at);
  __m512 over = _mm512_set1_ps(2.2905065861350646e-4f);
  over = _mm512_fmadd_ps(over, square, _mm512_set1_ps(3.4082910107109506e-3f));
  over = _mm512_fmadd_ps(over, square, _mm512_set1_ps(5.0955695062380861e-2f));
  over = _mm512_fmadd_ps(over, square, _mm512_set1_ps(1.8520832239976145e-1f));
  over = _mm512_fmadd_ps(over, square, _mm512_set1_ps(1.128379143519084f));
  __m512 under = _mm512_set1_ps(-1.1791602954361697e-7f);
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(2.3547966471313185e-5f));
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(1.0179625278914885e-3f));
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(1.4070470171167667e-2f));
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(1.1098505178285362e-1f));
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(4.9746925110067538e-1f));
  under = _mm512_fmadd_ps(under, square, _mm512_set1_ps(1.0f));
  return _mm512_div_ps(_mm512_mul_ps(at, over), under);
}

}  // namespace medkg
