// Sums and maxima over a block, the same on every thread, in one fixed order.
//
// A warp reduces with shuffles, its first lane writes the result to shared memory, and after one
// barrier every warp reduces those results again for itself. There is one barrier only, so the next
// use of the same buffer must be separated from this one by another barrier: BlockReduce has two
// buffers and uses them in turn.
#pragma once

#include "platform.cuh"

namespace cwt {

__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }

template <typename value_t>
__device__ __forceinline__ value_t warp_sum(value_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

template <typename value_t>
__device__ __forceinline__ value_t warp_max(value_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = larger(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

// Reduces up to kWidth values at a time. Every thread of the block must call every function; blocks
// are whole warps.
template <typename value_t, int kWidth>
class BlockReduce {
 public:
  static constexpr int kBuffer = kWidth * kMaxWarps;  // values of one of the two buffers

  // shared: 2 * kBuffer values
  __device__ explicit BlockReduce(value_t* shared) : shared_(shared) {}

  template <int kCount>
  __device__ __forceinline__ void sum(value_t (&x)[kCount]) {
    static_assert(kCount <= kWidth);
    value_t* buffer = next_buffer();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      x[k] = warp_sum(x[k]);
      if (lane_of_thread() == 0) buffer[k * kMaxWarps + warp_of_thread()] = x[k];
    }
    __syncthreads();
    const bool has_warp = lane_of_thread() < warps();
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      x[k] = warp_sum(has_warp ? buffer[k * kMaxWarps + lane_of_thread()] : value_t(0));
  }

  __device__ __forceinline__ value_t max(value_t x) {
    value_t* buffer = next_buffer();
    x = warp_max(x);
    if (lane_of_thread() == 0) buffer[warp_of_thread()] = x;
    __syncthreads();
    return warp_max(buffer[lane_of_thread() < warps() ? lane_of_thread() : 0]);
  }

 private:
  static __device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x) / kWarp; }

  __device__ __forceinline__ value_t* next_buffer() {
    turn_ ^= 1;
    return shared_ + turn_ * kBuffer;
  }

  value_t* shared_;
  int turn_ = 0;
};

}  // namespace cwt
