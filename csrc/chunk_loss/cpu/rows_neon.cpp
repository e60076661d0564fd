// Row functions for 64-bit Arm: four lanes, with the processor's own float16 conversions.
#include <arm_neon.h>

#include "write.h"

namespace cwt {
namespace {

struct Neon {
  using reg = float32x4_t;
  static constexpr int kLanes = 4;

  static reg set1(float x) { return vdupq_n_f32(x); }
  static reg add(reg a, reg b) { return vaddq_f32(a, b); }
  static reg sub(reg a, reg b) { return vsubq_f32(a, b); }
  static reg mul(reg a, reg b) { return vmulq_f32(a, b); }
  static reg div(reg a, reg b) { return vdivq_f32(a, b); }
  static reg fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
  static reg max(reg a, reg b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where one is NaN
  static reg copy_sign(reg magnitude, reg sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
  }
  static reg select_below(reg x, float bound, reg below, reg otherwise) {
    return vbslq_f32(vcltq_f32(x, set1(bound)), below, otherwise);
  }
  // p * 2^(n + bias - 127), n the integer in the low bits of t
  static reg scale_by_power(reg p, reg t, int bias) {
    const int32x4_t n = vaddq_s32(vreinterpretq_s32_f32(t), vdupq_n_s32(bias));
    return mul(p, vreinterpretq_f32_s32(vshlq_n_s32(n, 23)));
  }

  static uint16x4_t load_16_bits(const void* p) {
    return vld1_u16(static_cast<const uint16_t*>(p));
  }
  static reg load(const float* p) { return vld1q_f32(p); }
  static reg load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(load_16_bits(p)), 16));
  }
  static reg load(const Half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_16_bits(p))); }

  // Round to nearest even; a NaN is not rounded, and its quiet bit is set.
  static uint16x4_t to_bfloat16(reg v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000u));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
  }

  static void store(float* p, reg v) { vst1q_f32(p, v); }
  static void store(BFloat16* p, reg v) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), to_bfloat16(v));
  }
  static void store(Half* p, reg v) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  template <class scalar_t>
  static void stream(scalar_t* p, reg v) {
    store(p, v);  // there is no intrinsic for a store past the caches
  }
};

}  // namespace

const RowKernelSet kRowKernelsNeon = row_kernel_set<Neon>("neon");

}  // namespace cwt
