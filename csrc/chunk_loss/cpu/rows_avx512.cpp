// Row functions for AVX-512 F/BW/DQ/VL.
#include <immintrin.h>

// GCC 12 warns about its own _mm512_undefined_ps in every unmasked intrinsic.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "write.h"

namespace cwt {
namespace {

struct Avx512 {
  using reg = __m512;
  static constexpr int kLanes = 16;

  static reg set1(float x) { return _mm512_set1_ps(x); }
  static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
  static reg sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
  static reg div(reg a, reg b) { return _mm512_div_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
  static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static reg copy_sign(reg magnitude, reg sign) {
    const reg mask = set1(-0.f);
    return _mm512_or_ps(_mm512_andnot_ps(mask, magnitude), _mm512_and_ps(mask, sign));
  }
  static reg select_below(reg x, float bound, reg below, reg otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, set1(bound), _CMP_LT_OQ), otherwise, below);
  }
  // p * 2^(n + bias - 127), n the integer in the low bits of t
  static reg scale_by_power(reg p, reg t, int bias) {
    const __m512i n = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(bias));
    return mul(p, _mm512_castsi512_ps(_mm512_slli_epi32(n, 23)));
  }

  static __m256i load_16_bits(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static reg load(const float* p) { return _mm512_loadu_ps(p); }
  static reg load(const BFloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16_bits(p)), 16));
  }
  static reg load(const Half* p) { return _mm512_cvtph_ps(load_16_bits(p)); }

  // Round to nearest even; a NaN is not rounded, and its quiet bit is set.
  static __m256i to_bfloat16(reg v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16));
  }
  static __m256i to_half(reg v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static void store(float* p, reg v) { _mm512_storeu_ps(p, v); }
  static void store(BFloat16* p, reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(v));
  }
  static void store(Half* p, reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_half(v));
  }
  static void stream(float* p, reg v) { _mm512_stream_ps(p, v); }
  static void stream(BFloat16* p, reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(v));
  }
  static void stream(Half* p, reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_half(v));
  }
};

}  // namespace

const RowKernelSet kRowKernelsAvx512 = row_kernel_set<Avx512>("avx512");

}  // namespace cwt
