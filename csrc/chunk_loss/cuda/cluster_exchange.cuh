// What the blocks of a cluster must agree on for every row: its sums, the logit of its label, and
// which row is next.
#pragma once

#include "arrival.cuh"
#include "online_sums.cuh"
#include "plan.cuh"

namespace cwt {

// How a row is divided among the blocks of a cluster.
struct ClusterShape {
  int cluster;  // blocks
  int packs;    // most packs of a slice

  // Of an Exchange: twice the sums of each warp, the label's logit and the next row; two arrivals.
  size_t exchange_bytes(int threads) const {
    return sizeof(float4) * 2 * (threads / kWarp * cluster + 2) + 2 * sizeof(Arrival);
  }
  // Of the slice, and of the two packs that hold the logits before and after whole packs.
  size_t slice_bytes() const { return sizeof(Bits128) * (2 + packs); }
  size_t shared_bytes(int threads) const { return slice_bytes() + exchange_bytes(threads); }
};

// (max, S') over the warps' (max, s, q, h), on every thread.
__device__ __forceinline__ float2 add_partials(const float4* partials, int count) {
  using Exp = Exponent<float>;
  float max = Exp::kLowest, s = 0;
#pragma unroll 1
  for (int i = lane_of_thread(); i < count; i += kWarp) max = larger(max, partials[i].x);
  max = warp_max(max);
#pragma unroll 1
  for (int i = lane_of_thread(); i < count; i += kWarp)
    s += partials[i].y * Exp::power(larger(Exp::step(partials[i].x - max), Exp::kFloor));
  return make_float2(max, warp_sum(s));
}

// (Q', H') over them, H' in units of Exp::kLog.
__device__ __forceinline__ float2 add_rest(const float4* partials, int count, float max) {
  using Exp = Exponent<float>;
  float q = 0, h = 0;
#pragma unroll 1
  for (int i = lane_of_thread(); i < count; i += kWarp) {
    const float4 p = partials[i];
    const float d = larger(Exp::step(p.x - max), Exp::kFloor), f = Exp::power(d);
    q += f * f * p.z;
    h += f * (p.w + d * p.y);
  }
  return make_float2(warp_sum(q), warp_sum(h));
}

// The row that a cluster works on, in one register with the count of its rows so far: 4 t + count % 4;
// negative: there is none.
struct Turn {
  int value;

  // That of the first row of a cluster; t < 0: there is none.
  static __device__ __forceinline__ Turn first(int t) { return {t < 0 ? -1 : 4 * t}; }
  __device__ __forceinline__ bool exists() const { return value >= 0; }
  __device__ __forceinline__ int t() const { return value >> 2; }
  // Whose turn it is of what is there twice, and how often that was used before, modulo 2.
  __device__ __forceinline__ int half() const { return value & 1; }
  __device__ __forceinline__ int half_uses() const { return value >> 1 & 1; }
  // The turn of row t, which the cluster takes next; t < 0: there is none.
  __device__ __forceinline__ int next(int t) const {
    return t < 0 ? -1 : 4 * t + ((value + 1) & 3);
  }
};

// What the blocks of a cluster tell each other once a row. The two halves of the memory are used in
// turn: what a block tells of the next row but one, it tells when all warps have told of the next,
// and so have read this row's.
template <int kThreads>
class Exchange {
 public:
  // memory: shared, shape.exchange_bytes(kThreads)
  __device__ __forceinline__ Exchange(const ClusterShape& shape, float4* memory, const Turn& row)
      : shape_(shape), memory_(memory), row_(row) {
    if (shape.cluster == 1 || threadIdx.x > 0) return;
    for (int half = 0; half < 2; ++half) arrival_init(arrivals() + half, 1);
  }

  // By one thread: announces what this row brings.
  __device__ __forceinline__ void expect() {
    if (shape_.cluster > 1) arrive_with_bytes(arrivals() + row_.half(), 16 * (count() + 2));
  }
  // Stores a warp's sums where all will read them; every lane has them.
  __device__ __forceinline__ void tell_sums(const float4& sums) {
    __syncwarp();  // who is told may overwrite what the lanes have read of the row before
    const int place = shape_.cluster == 1 ? 0 : cluster_rank() * kThreads / kWarp;
    if (lane_of_thread() < shape_.cluster) store(place + warp_of_thread(), lane_of_thread(), sums);
  }
  // By all lanes of one warp of the cluster.
  __device__ __forceinline__ void tell_turn(int turn) {
    if (lane_of_thread() < shape_.cluster)
      store(count() + 1, lane_of_thread(), make_float4(__int_as_float(turn), 0, 0, 0));
  }
  // By the thread that has it.
  __device__ __forceinline__ void tell_label(float z_y) {
    for (int rank = 0; rank < shape_.cluster; ++rank)
      store(count(), rank, make_float4(z_y, 0, 0, 0));
  }
  __device__ __forceinline__ void wait() {
    // One warp looks: every word that arrives wakes those that wait for the last.
    if (shape_.cluster > 1 && warp_of_thread() == 0)
      wait_for_cluster(arrivals() + row_.half(), row_.half_uses());
    __syncthreads();
  }

  // What has been told before the wait.
  __device__ __forceinline__ const float4* sums() const { return half(); }
  __device__ __forceinline__ int count() const { return kThreads / kWarp * shape_.cluster; }
  __device__ __forceinline__ float z_y() const { return sums()[count()].x; }
  __device__ __forceinline__ int next_turn() const { return __float_as_int(sums()[count() + 1].x); }

 private:
  __device__ __forceinline__ Arrival* arrivals() const {
    return reinterpret_cast<Arrival*>(memory_ + 2 * (count() + 2));
  }
  __device__ __forceinline__ float4* half() const { return memory_ + row_.half() * (count() + 2); }
  __device__ __forceinline__ void store(int place, int rank, const float4& v) {
    float4* to = half() + place;
    if (shape_.cluster == 1)
      *to = v;
    else
      tell_rank(to, rank, v, arrivals() + row_.half());
  }

  const ClusterShape& shape_;
  float4* const memory_;
  const Turn& row_;  // which is being worked on
};

// The rows that a cluster works on, by one thread. Two are told by the grid, the others by a
// counter. What this thread knows is in shared memory, so that the others have no registers for it.
class Queue {
 public:
  // memory: 2 places
  __device__ __forceinline__ Queue(const ChunkLossArgs& a, const ClusterShape& shape, int* memory,
                                   int work)
      : a_(a), clusters_(gridDim.x / shape.cluster), memory_(memory) {
    if (threadIdx.x > 0) return;
    memory_[0] = work;
    memory_[1] = blockIdx.x / shape.cluster + clusters_;
  }
  // Starts to ask for the next row, and for the place in the list of the one after it.
  __device__ __forceinline__ void ask() {
    const int place = memory_[1];
    next_ = place < memory_[0] ? static_cast<int>(a_.rows[place]) : -1;
    after_ = 2 * clusters_ + static_cast<int>(count(a_.next_row, 1));
  }
  // The next row; negative: there is none.
  __device__ __forceinline__ int answer() {
    memory_[1] = after_;
    return next_;
  }

 private:
  const ChunkLossArgs& a_;
  const int clusters_;
  int* const memory_;
  int next_ = -1, after_ = 0;
};

}  // namespace cwt
