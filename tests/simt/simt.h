// Executes CUDA C++ kernels on a CPU, for proofs on machines without a GPU. Included by
// csrc/chunk_loss/cuda/platform.cuh in place of the CUDA runtime when CWT_SIMT is defined.
//
// Every CUDA thread is a fiber. Fibers switch at barriers, warp collectives, atomics and fences, in
// an order drawn from a seed; several clusters are alive at once. What is checked in every build:
// divergent barriers, of blocks and of clusters; warp collectives whose lanes differ in operation,
// place or mask, lanes that have exited or that the mask leaves out; shared memory of a block of the
// cluster that may not have started, or has exited; deadlocks, block shapes and shared memory beyond
// the device's limits. Shared memory starts out as NaN. A sanitizer adds:
//
//   -fsanitize=address,undefined   accesses out of bounds (global and shared), misaligned 16-byte
//                                  accesses
//   -fsanitize=thread              races in global and shared memory; only barriers, __syncwarp and
//                                  fences order accesses, as on the device: shuffles, votes and
//                                  atomics do not
//
// What cannot be seen here: time, register pressure, rounding of the special functions, caches.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "machine.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "use CWT_SHARED(type, name, count)");
#define CWT_SHARED(type, name, count) type(&name)[count] = simt::shared<type, count>()
#define CWT_SHARED_DYNAMIC(type, name) \
  type* name = static_cast<type*>(simt::machine.dynamic_shared())
#define CWT_LAUNCH(kernel, grid, block, bytes, stream, ...) \
  CWT_LAUNCH_CLUSTER(kernel, 1, grid, block, bytes, stream, __VA_ARGS__)
#define CWT_LAUNCH_CLUSTER(kernel, cluster, grid, block, bytes, stream, ...)                     \
  do {                                                                                           \
    simt::machine.launches.push_back({#kernel, dim3(grid).x});                                   \
    simt::machine.launch(grid, block, bytes, [=] { (kernel)(__VA_ARGS__); }, unsigned(cluster)); \
  } while (false)

namespace simt {

template <typename value_t, int kCount>
value_t (&shared(Where w = Where::current())) [kCount] {
  return *static_cast<value_t(*)[kCount]>(machine.static_shared(w, sizeof(value_t) * kCount));
}

template <typename value_t>
uint64_t bits(value_t v) {
  static_assert(sizeof(value_t) <= 8 && std::is_trivially_copyable_v<value_t>);
  uint64_t out = 0;
  std::memcpy(&out, &v, sizeof v);
  return out;
}

template <typename value_t>
value_t shuffle(unsigned mask, value_t v, unsigned source, Where w) {
  const uint64_t raw = machine.collective({Op::kShuffle, w, mask, bits(v), int(source)});
  std::memcpy(&v, &raw, sizeof v);
  return v;
}

template <typename value_t, typename change_t>
value_t atomic(value_t* p, const change_t& change) {
  machine.yield();
  value_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, change(old), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace simt

#define SIMT_HERE simt::Where w = simt::Where::current()
inline void __syncthreads(SIMT_HERE) { simt::machine.collective({simt::Op::kBarrier, w}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::machine.collective({simt::Op::kWarpBarrier, w, mask});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return unsigned(simt::machine.collective({simt::Op::kBallot, w, mask, predicate != 0}));
}
template <typename value_t>
unsigned __match_any_sync(unsigned mask, value_t v, SIMT_HERE) {
  return unsigned(simt::machine.collective({simt::Op::kMatch, w, mask, simt::bits(v)}));
}
template <typename value_t>
value_t __shfl_sync(unsigned mask, value_t v, int source, SIMT_HERE) {
  return simt::shuffle(mask, v, unsigned(source) % 32, w);
}
template <typename value_t>
value_t __shfl_xor_sync(unsigned mask, value_t v, int lanes, SIMT_HERE) {
  return simt::shuffle(mask, v, simt::machine.lane() ^ unsigned(lanes), w);
}
#undef SIMT_HERE

template <typename value_t>
value_t atomicAdd(value_t* p, std::type_identity_t<value_t> v) {
  return simt::atomic(p, [v](value_t old) { return value_t(old + v); });
}
template <typename value_t>
value_t atomicMax(value_t* p, std::type_identity_t<value_t> v) {
  return simt::atomic(p, [v](value_t old) { return old < v ? v : old; });
}
inline void __threadfence() {
  SIMT_TSAN(static char token; __tsan_release(&token));
  simt::machine.yield();
  SIMT_TSAN(__tsan_acquire(&token));
}

inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

namespace cwt {
using std::exp;
using std::fabs;
using std::fma;
using std::fmax;
using std::sqrt;
using std::tanh;

template <typename kernel_t>
int resident_blocks(kernel_t*, int, size_t) {
  return 1;
}
template <typename kernel_t>
bool has_clusters(kernel_t*) {
  return true;
}
// Like CUDA's answer, of no use for launches without clusters.
template <typename kernel_t>
int resident_clusters(kernel_t*, int cluster, int, size_t) {
  return cluster > 1 ? 2 : 0;
}
}  // namespace cwt
