// What arrives in shared memory without a thread that waits, or registers, for it: copies of a row's
// logits, and what the blocks of a cluster tell each other. sm_90 and later: where CWT_HAS_CLUSTERS is
// not defined nothing of this may be used.
//
// An Arrival (mbarrier) is what threads of a block wait at. It is used again and again: each use ends
// when so many arrivals have been made as it was made for, and the announced bytes have come.
#pragma once

#include "platform.cuh"

namespace cwt {

using Arrival = uint64_t;

#if defined(CWT_SIMT) || __CUDA_ARCH__ >= 900
#define CWT_HAS_CLUSTERS
#endif

#if defined(CWT_SIMT)

inline int cluster_rank() { return simt::machine.cluster_rank(); }
inline void cluster_sync(simt::Where w = simt::Where::current()) {
  simt::machine.collective({simt::Op::kClusterBarrier, w});
}
inline void arrival_init(Arrival* at, int arrivals) { simt::machine.arrival_init(at, arrivals); }
inline void arrive_with_bytes(Arrival* at, int bytes) { simt::machine.arrive(at, bytes); }
inline void copy_async(Bits128* to, const Bits128* from, int packs, Arrival* at) {
  simt::machine.start_copy({to, from, size_t(packs) * sizeof(Bits128), false}, at);
}
inline void copy_shared_pack_async(Bits128* to, const Bits128* from, Arrival* at) {
  simt::machine.start_copy({to, from, sizeof(Bits128), true}, at);
}
template <typename value_t>
void copy_number_async(value_t* to, const value_t* from, Arrival* at) {
  simt::machine.start_copy({to, from, sizeof(value_t), false}, at);
}
inline void arrive_when_copied(Arrival* at) { simt::machine.arrive(at, 0); }
inline void fence_before_copy() {}
inline void tell_rank(float4* to, int rank, const float4& v, Arrival* at) {
  simt::machine.tell_rank(to, rank, v, at);
}
inline void wait_for(Arrival* at, int parity) { simt::machine.wait_for(at, parity); }
inline void wait_for_cluster(Arrival* at, int parity) { simt::machine.wait_for(at, parity); }

#else

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Clusters: blocks that run at the same time and reach each other's shared memory.
__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier of all threads of the cluster. It waits for every store to global memory before it, so it
// has no place in a loop that stores: there it took a sixth of the time on an H200.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// By one thread, before a barrier.
__device__ __forceinline__ void arrival_init(Arrival* at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and announces bytes.
__device__ __forceinline__ void arrive_with_bytes(Arrival* at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)),
               "r"(bytes)
               : "memory");
}

// Starts a copy of whole packs. What is asked of the L2 cache, to evict them last, is odd for data
// that is read once, but measured: where a gradient is written meanwhile, an H200 takes 3 % longer
// without the hint, and 10 % with the opposite one.
__device__ __forceinline__ void copy_async(Bits128* to, const Bits128* from, int packs,
                                           Arrival* at) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(packs * static_cast<int>(sizeof(Bits128))),
      "r"(shared_address(at)), "l"(policy)
      : "memory");
}

// The same of one pack that holds logits of another row too, which may be written meanwhile.
__device__ __forceinline__ void copy_shared_pack_async(Bits128* to, const Bits128* from,
                                                       Arrival* at) {
  copy_async(to, from, 1, at);
}

// Starts a copy of a number of 4 or 8 bytes; arrive_when_copied announces this thread's.
template <typename value_t>
__device__ __forceinline__ void copy_number_async(value_t* to, const value_t* from, Arrival*) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "n"(sizeof(value_t))
               : "memory");
}
// Arrives when the numbers are there.
__device__ __forceinline__ void arrive_when_copied(Arrival* at) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(at))
               : "memory");
}

// Between a thread's own stores to shared memory and a copy to the same place: by the thread, before
// the barrier that the copy follows.
__device__ __forceinline__ void fence_before_copy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Stores to the place in the shared memory of block `rank` of the cluster that `to` has in this
// block's; the bytes count at that block's `at`. Orders nothing else.
__device__ __forceinline__ void tell_rank(float4* to, int rank, const float4& v, Arrival* at) {
  uint32_t there, arrival;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(to)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(arrival)
               : "r"(shared_address(at)), "r"(rank));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
      "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(arrival)
      : "memory");
}

// Waits for the end of a use; parity: that of the number of uses before it. What other blocks told
// can be read after wait_for_cluster only.
#define CWT_WAIT(semantics)                                            \
  for (uint32_t done = 0; done == 0;)                                  \
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity" semantics    \
               ".shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" \
               : "=r"(done)                                            \
               : "r"(shared_address(at)), "r"(parity)                  \
               : "memory")
__device__ __forceinline__ void wait_for(Arrival* at, int parity) { CWT_WAIT(""); }
__device__ __forceinline__ void wait_for_cluster(Arrival* at, int parity) {
  CWT_WAIT(".acquire.cluster");
}
#undef CWT_WAIT

#endif

}  // namespace cwt
