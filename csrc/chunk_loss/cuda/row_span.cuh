// A row of logits as one block walks through it: 16 bytes at a time where the row allows it.
#pragma once

#include "packs.cuh"

namespace cwt {

// A row cut at 16-byte boundaries: elements [0, head) one by one, then packs, then the tail one by
// one. Where logits and gradient are not aligned alike, or have a stride, all of it is head.
// Positions within a row are 32-bit: the entry refuses V >= 2^31.
template <typename scalar_t>
struct RowSpan {
  const scalar_t* x;
  scalar_t* grad;  // null: none
  int64_t x_stride, grad_stride;
  int vocab, head, packs;

  __device__ __forceinline__ RowSpan(const scalar_t* x, int64_t x_stride, scalar_t* grad,
                                     int64_t grad_stride, int64_t vocab)
      : x(x),
        grad(grad),
        x_stride(x_stride),
        grad_stride(grad_stride),
        vocab(static_cast<int>(vocab)) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(x), to = reinterpret_cast<uintptr_t>(grad);
    const bool apart = grad != nullptr && (((at ^ to) & 15) != 0 || grad_stride != 1);
    const int gap = static_cast<int>(((0 - at) & 15) / sizeof(scalar_t));
    head = x_stride != 1 || apart || gap > this->vocab ? this->vocab : gap;
    packs = (this->vocab - head) / Pack<scalar_t>::kSize;
  }

  __device__ __forceinline__ int tail() const { return head + packs * Pack<scalar_t>::kSize; }
  __device__ __forceinline__ const Bits128* x_packs() const {
    return reinterpret_cast<const Bits128*>(x + head);
  }
  __device__ __forceinline__ Bits128* grad_packs() const {
    return reinterpret_cast<Bits128*>(grad + head);
  }

  // Calls use(j) for each of this thread's elements outside the packs.
  template <typename use_t>
  __device__ __forceinline__ void for_single_elements(const use_t& use) const {
    for (int j = threadIdx.x; j < head; j += blockDim.x) use(j);
    for (int j = tail() + threadIdx.x; j < vocab; j += blockDim.x) use(j);
  }

  // Calls use(pack, slot, load(pack, slot)) for each of this thread's packs; slot counts them.
  template <int kInFlight, typename load_t, typename use_t>
  __device__ __forceinline__ void for_packs(const load_t& load, const use_t& use) const {
    const int step = blockDim.x;
    int slot = 0;
    for (int i = threadIdx.x; i < packs; i += kInFlight * step, slot += kInFlight) {
      Bits128 bits[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u)
        if (i + u * step < packs) bits[u] = load(i + u * step, slot + u);
#pragma unroll
      for (int u = 0; u < kInFlight; ++u)
        if (i + u * step < packs) use(i + u * step, slot + u, bits[u]);
    }
  }
};

template <typename scalar_t>
__device__ __forceinline__ void zero_row(const RowSpan<scalar_t>& row) {
  scalar_t zero;
  narrow(0.f, zero);
  row.for_single_elements([&](int j) { row.grad[j * row.grad_stride] = zero; });
  for (int i = threadIdx.x; i < row.packs; i += blockDim.x)
    store_stream(row.grad_packs() + i, Bits128{{0, 0, 0, 0}});
}

}  // namespace cwt
