// Row functions for AVX2 + FMA + F16C.
#include <immintrin.h>

#include "write.h"

namespace cwt {
namespace {

struct Avx2 {
  using reg = __m256;
  static constexpr int kLanes = 8;

  static reg set1(float x) { return _mm256_set1_ps(x); }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg sub(reg a, reg b) { return _mm256_sub_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
  static reg div(reg a, reg b) { return _mm256_div_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
  static reg max(reg a, reg b) { return _mm256_max_ps(a, b); }  // b where either is NaN
  static reg copy_sign(reg magnitude, reg sign) {
    const reg mask = set1(-0.f);
    return _mm256_or_ps(_mm256_andnot_ps(mask, magnitude), _mm256_and_ps(mask, sign));
  }
  static reg select_below(reg x, float bound, reg below, reg otherwise) {
    return _mm256_blendv_ps(otherwise, below, _mm256_cmp_ps(x, set1(bound), _CMP_LT_OQ));
  }
  // p * 2^(n + bias - 127), n the integer in the low bits of t
  static reg scale_by_power(reg p, reg t, int bias) {
    const __m256i n = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(bias));
    return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(n, 23)));
  }

  static reg load(const float* p) { return _mm256_loadu_ps(p); }
  static reg load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static reg load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  // Round to nearest even; a NaN stays a NaN because its quiet bit is set first.
  static __m128i to_bfloat16(reg v) {
    const __m256i quiet = _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)),
                                           _mm256_set1_epi32(0x00400000));
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_andnot_si256(is_nan, carry));
    const __m256i high = _mm256_srli_epi32(_mm256_or_si256(rounded, quiet), 16);
    const __m256i packed = _mm256_packus_epi32(high, high);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  static __m128i to_half(reg v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static void store(float* p, reg v) { _mm256_storeu_ps(p, v); }
  static void store(BFloat16* p, reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(v));
  }
  static void store(Half* p, reg v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_half(v)); }
  static void stream(float* p, reg v) { _mm256_stream_ps(p, v); }
  static void stream(BFloat16* p, reg v) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(v));
  }
  static void stream(Half* p, reg v) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_half(v));
  }
};

}  // namespace

const RowKernelSet kRowKernelsAvx2 = row_kernel_set<Avx2>("avx2");

}  // namespace cwt
