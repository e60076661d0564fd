// Arithmetic on 16 bytes of a row: one instruction a number to widen it, half of one to compare it.
#pragma once

#include "platform.cuh"

namespace cwt {

template <typename scalar_t>
__device__ __forceinline__ Pack<scalar_t> unpack(const Bits128& bits) {
  Pack<scalar_t> pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}

template <typename scalar_t>
__device__ __forceinline__ Bits128 bits_of(const Pack<scalar_t>& pack) {
  Bits128 bits;
  memcpy(&bits, &pack, sizeof bits);
  return bits;
}

__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The pack's numbers as floats, or doubles.
template <typename scalar_t, typename acc_t, int kSize>
__device__ __forceinline__ void widen_pack(const Bits128& bits, acc_t (&x)[kSize]) {
  static_assert(kSize == Pack<scalar_t>::kSize);
  if constexpr (std::is_same<scalar_t, __nv_bfloat16>::value) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      x[2 * w] = float_of(bits.word[w] << 16);
      x[2 * w + 1] = float_of(bits.word[w] & 0xffff0000u);
    }
  } else {
    const Pack<scalar_t> pack = unpack<scalar_t>(bits);
#pragma unroll
    for (int k = 0; k < kSize; ++k) x[k] = widen(pack.value[k]);
  }
}

// The other way, rounded to nearest; two numbers with one instruction.
template <typename scalar_t, typename acc_t, int kSize>
__device__ __forceinline__ Bits128 narrow_pack(const acc_t (&x)[kSize]) {
  static_assert(kSize == Pack<scalar_t>::kSize);
  Bits128 bits;
  if constexpr (sizeof(scalar_t) == 2) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (std::is_same<scalar_t, __nv_bfloat16>::value) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * w], x[2 * w + 1]);
        memcpy(&bits.word[w], &pair, 4);
      } else {
        const __half2 pair = __floats2half2_rn(x[2 * w], x[2 * w + 1]);
        memcpy(&bits.word[w], &pair, 4);
      }
    }
  } else {
    Pack<scalar_t> pack;
#pragma unroll
    for (int k = 0; k < kSize; ++k) narrow(x[k], pack.value[k]);
    bits = bits_of(pack);
  }
  return bits;
}

// The largest number of some packs, ignoring NaN; -inf where there is no other.
template <typename scalar_t>
class LargestOf {
  using acc_t = typename AccOf<scalar_t>::type;
  static constexpr bool kPairs = sizeof(scalar_t) == 2;

 public:
  __device__ __forceinline__ void add(const Bits128& bits) {
    if constexpr (kPairs) {
#pragma unroll
      for (int w = 0; w < 4; ++w) pair_ = larger_pair<scalar_t>(pair_, bits.word[w]);
    } else {
      acc_t x[Pack<scalar_t>::kSize];
      widen_pack<scalar_t>(bits, x);
#pragma unroll
      for (int k = 0; k < Pack<scalar_t>::kSize; ++k) top_ = larger(top_, x[k]);
    }
  }
  __device__ __forceinline__ acc_t value() const {
    if constexpr (std::is_same<scalar_t, __nv_bfloat16>::value) {
      return larger(float_of(pair_ << 16), float_of(pair_ & 0xffff0000u));
    } else if constexpr (kPairs) {
      struct {
        scalar_t half[2];
      } x;
      memcpy(&x, &pair_, 4);
      return larger(widen(x.half[0]), widen(x.half[1]));
    } else {
      return top_;
    }
  }

 private:
  uint32_t pair_ =
      std::is_same<scalar_t, __nv_bfloat16>::value ? 0xff80ff80u : 0xfc00fc00u;  // -inf
  acc_t top_ = -INFINITY;
};

}  // namespace cwt
