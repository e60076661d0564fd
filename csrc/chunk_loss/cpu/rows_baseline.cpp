// Row functions for any processor: four lanes in the compiler's vector extension (SSE2, NEON).
#include "write.h"

namespace cwt {
namespace {

struct Baseline {
  typedef float reg __attribute__((vector_size(16)));
  typedef int32_t ints __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;

  static reg set1(float x) { return reg{x, x, x, x}; }
  static reg add(reg a, reg b) { return a + b; }
  static reg sub(reg a, reg b) { return a - b; }
  static reg mul(reg a, reg b) { return a * b; }
  static reg div(reg a, reg b) { return a / b; }
  static reg fma(reg a, reg b, reg c) { return a * b + c; }
  static reg max(reg a, reg b) { return a > b ? a : b; }  // b where either is NaN
  static reg copy_sign(reg magnitude, reg sign) {
    const ints mask = (ints)set1(-0.f);
    return (reg)(((ints)magnitude & ~mask) | ((ints)sign & mask));
  }
  static reg select_below(reg x, float bound, reg below, reg otherwise) {
    return x < set1(bound) ? below : otherwise;
  }
  // p * 2^(n + bias - 127), n the integer in the low bits of t
  static reg scale_by_power(reg p, reg t, int bias) { return p * (reg)(((ints)t + bias) << 23); }

  static float to_float(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  static float to_float(Half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    // 2^112 moves the exponent from half's bias to float's; subnormals come out normal.
    uint32_t bits = rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : rest << 13;
    float out;
    std::memcpy(&out, &bits, 4);
    if (rest < 0x7c00) out *= 0x1p112f;
    std::memcpy(&bits, &out, 4);
    bits |= sign;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  static uint16_t to_bits(float v, BFloat16) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if (v != v) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // round to nearest even
  }
  static uint16_t to_bits(float v, Half) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (v != v) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
    if (bits < 0x38800000) {                       // below 2^-14: subnormal, the adder rounds
      float magnitude;
      std::memcpy(&magnitude, &bits, 4);
      magnitude += 0.5f;
      std::memcpy(&bits, &magnitude, 4);
      return sign | uint16_t(bits - 0x3f000000);
    }
    return sign | uint16_t((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
  }

  static reg load(const float* p) {
    reg v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, reg v) { std::memcpy(p, &v, sizeof v); }
  template <class half_t>
  static reg load(const half_t* p) {
    return reg{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  template <class half_t>
  static void store(half_t* p, reg v) {
    for (int k = 0; k < kLanes; ++k) p[k].bits = to_bits(v[k], half_t{});
  }
  template <class scalar_t>
  static void stream(scalar_t* p, reg v) {
    store(p, v);  // no portable way past the caches
  }
};

}  // namespace

const RowKernelSet kRowKernelsBaseline = row_kernel_set<Baseline>("baseline");

}  // namespace cwt
