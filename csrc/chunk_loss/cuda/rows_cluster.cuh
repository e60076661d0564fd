// chunk_loss, a row in the registers of one block, or of a cluster of blocks: loss, statistics and
// gradient, for rows of unit stride whose gradient is aligned as they are. The formulas are those of
// rows.cuh; label smoothing, softcap and float64 are left to it.
//
// Who: a cluster takes rows from the work list, each block a slice of the row, each thread every
// blockDim-th pack of 16 bytes of the slice. All loads of a slice are started at once; the packs
// stay where they arrive, and the gradient is made of them: no logit is read twice. Half of a
// multiprocessor's registers, 128 KiB, are packs in flight (three quarters in float32). The blocks
// of a cluster exchange (max, s, q, h) once a row: each warp stores its own into the shared memory
// of every block, and one barrier later all warps add up the same numbers in the same order.
//
// Which row is next comes from a counter, so that a slow multiprocessor takes fewer rows; its number
// is exchanged with the sums. No result depends on who works on a row.
//
// Bytes per row, b bytes a logit: b V read; b V written with the gradient.
#pragma once

#include "rows.cuh"

namespace cwt {

constexpr int kMaxCluster = 8;  // what every device with clusters can do

// How a row is divided among the blocks of a cluster.
struct ClusterShape {
  int cluster;  // blocks
  int packs;    // most packs of a slice

  // Two exchanges: the sums of each warp, the label's logit and the next row.
  size_t shared_bytes(int threads) const {
    return sizeof(float4) * 2 * (threads / kWarp * cluster + 2);
  }
};

// The packs of a block's slice of a row.
template <typename scalar_t, int kThreads>
struct Slice {
  static constexpr int kSize = Pack<scalar_t>::kSize;
  int head;        // logits of the row before its first whole pack
  unsigned first;  // pack of the slice; unsigned: a sign would take a register
  int packs;

  __device__ __forceinline__ Slice() : head(0), first(0), packs(0) {}
  __device__ __forceinline__ Slice(const ClusterShape& shape, const scalar_t* row, int vocab) {
    const int gap =
        static_cast<int>((0 - reinterpret_cast<uintptr_t>(row)) & 15) / sizeof(scalar_t);
    head = gap < vocab ? gap : vocab;
    first = shape.cluster == 1 ? 0u : static_cast<unsigned>(cluster_rank() * shape.packs);
    const int left = (vocab - head) / kSize - static_cast<int>(first);
    packs = left < 0 ? 0 : left < shape.packs ? left : shape.packs;
  }

  // The 14 logits at most that fill no pack belong to the first threads of the first block. Returns
  // the position of this thread's, -1 for none.
  __device__ __forceinline__ int single(int vocab) const {
    const int i = threadIdx.x;
    if (i >= 16 || first > 0) return -1;
    if (i < 8) return i < head ? i : -1;
    const int j = vocab - (vocab - head) % kSize + i - 8;
    return j < vocab ? j : -1;
  }
  // Which of this thread's packs holds a logit; -1 where none does.
  __device__ __forceinline__ int pack_of(int label) const {
    const int i = (label - head) / kSize - static_cast<int>(first);
    if (label < head || i < 0 || i >= packs || i % kThreads != static_cast<int>(threadIdx.x))
      return -1;
    return i / kThreads;
  }
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

// What is known of a row before its logits are. Whose turn it is of the two halves of the exchange's
// memory is kept in the same register as the row: there is none to spare.
struct RowAhead {
  int turn;  // 2 t, and 1 for every other row of a cluster; negative: there is none
  int label = 0;

  __device__ __forceinline__ RowAhead(const ChunkLossArgs& a, int turn) : turn(turn) {
    if (turn >= 0) label = static_cast<int>(a.labels[t()]);
  }
  __device__ __forceinline__ int t() const { return turn >> 1; }
  // The turn of row t, which the cluster takes next; t < 0: there is none.
  __device__ __forceinline__ int next(int t) const { return t < 0 ? -1 : 2 * t + (~turn & 1); }
};

// What the blocks of a cluster tell each other once a row. The two halves of the memory are used in
// turn: what a block stores for the next row but one, it stores after a barrier that all warps reach
// only when they have read this row's.
template <int kThreads>
class Exchange {
 public:
  // memory: shape.shared_bytes(kThreads)
  __device__ __forceinline__ Exchange(const ClusterShape& shape, float4* memory,
                                      const RowAhead& row)
      : shape_(shape), memory_(memory), row_(row) {}

  // Stores a warp's sums where all will read them; every lane has them.
  __device__ __forceinline__ void tell_sums(const float4& sums) {
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
    if (shape_.cluster == 1)
      __syncthreads();
    else
      cluster_sync();
  }

  // What has been told before the wait.
  __device__ __forceinline__ const float4* sums() const { return half(); }
  __device__ __forceinline__ int count() const { return kThreads / kWarp * shape_.cluster; }
  __device__ __forceinline__ float z_y() const { return sums()[count()].x; }
  __device__ __forceinline__ int next_turn() const { return __float_as_int(sums()[count() + 1].x); }

 private:
  __device__ __forceinline__ float4* half() const {
    return memory_ + (row_.turn & 1) * (count() + 2);
  }
  __device__ __forceinline__ void store(int place, int rank, const float4& v) {
    float4* to = half() + place;
    if (shape_.cluster == 1)
      *to = v;
    else
      store_to_rank(to, rank, v);
  }

  const ClusterShape& shape_;
  float4* const memory_;
  const RowAhead& row_;  // which is being worked on
};

// The row of the work list that a cluster takes next, by one thread, in two steps with time between.
// What it knows is in shared memory, so that the other threads have no registers for it.
class Queue {
 public:
  // memory: 2 places
  __device__ __forceinline__ Queue(const ChunkLossArgs& a, int* memory, int work)
      : a_(a), memory_(memory) {
    if (threadIdx.x == 0) memory_[0] = work;
  }
  __device__ __forceinline__ void take(const ClusterShape& shape) {
    memory_[1] = gridDim.x / shape.cluster + static_cast<int>(count(a_.next_row, 1));
  }
  __device__ __forceinline__ int row() const {
    return memory_[1] < memory_[0] ? static_cast<int>(a_.rows[memory_[1]]) : -1;
  }

 private:
  const ChunkLossArgs& a_;
  int* const memory_;
};

// A block's work on its slice of one row: kPacks packs of each thread.
template <typename scalar_t, int kThreads, int kPacks>
class SliceTask {
  static constexpr int kSize = Pack<scalar_t>::kSize;

 public:
  // Starts the loads of the slice. Those of the logits that fill no pack, and of the label's, are
  // waited for: they take no longer. singles: 16 places in the block's shared memory
  __device__ __forceinline__ SliceTask(const ChunkLossArgs& a, const ClusterShape& shape,
                                       Exchange<kThreads>& exchange, float* singles,
                                       const RowAhead& row)
      : a_(a), exchange_(exchange), singles_(singles), row_(row) {
    const scalar_t* logits = static_cast<const scalar_t*>(a.logits) + a.layout.row(row.t());
    slice_ = Slice<scalar_t, kThreads>(shape, logits, vocab());
    const Bits128* from =
        reinterpret_cast<const Bits128*>(logits + slice_.head) + slice_.first + threadIdx.x;
    for_packs([&](int k) { bits_[k] = load_stream(from + k * kThreads); });
    const int single = slice_.single(vocab());
    if (single >= 0) singles_[threadIdx.x] = widen(logits[single]);
    if (threadIdx.x == kThreads - 1 && slice_.first == 0)
      exchange_.tell_label(widen(logits[row_.label]));
  }

  // Tells the others this warp's sums.
  __device__ __forceinline__ void tell_sums() {
    LargestOf<scalar_t> largest;
    for_packs([&](int k) { largest.add(bits_[k]); });
    float top = larger(largest.value(), Exponent<float>::kLowest);
    const int single = slice_.single(vocab());
    if (single >= 0) top = larger(top, singles_[threadIdx.x]);
    top = warp_max(top);
    OnlineSums<float> sums(top);
    if (single >= 0) {
      const float x[1] = {single == row_.label ? -INFINITY : singles_[threadIdx.x]};
      sums.add(x);
    }
    set_label_aside();
    for_packs([&](int k) {
      float x[kSize];
      widen_pack<scalar_t>(bits_[k], x);
      sums.add(x);
    });
    sums.s = warp_sum(sums.s);
    sums.q = warp_sum(sums.q);
    sums.h = warp_sum(sums.h);
    sums.settle(top);
    exchange_.tell_sums(make_float4(top, sums.s, sums.q, sums.h));
  }

  // After the exchange: the gradient of the slice, and the row's results.
  __device__ __forceinline__ void finish(float weight) {
    const Whole row = whole_row();
    if (a_.grad != nullptr)
      write_gradient(row.max, weight == 0, weight * row.p_factor, weight * row.g_y);
    // The last warp has the fewest packs. The packs are done with: here are registers to spare.
    if (warp_of_thread() == kThreads / kWarp - 1 && slice_.first == 0) write_results(weight);
  }

 private:
  __device__ __forceinline__ int vocab() const { return static_cast<int>(a_.layout.vocab); }

  // Calls use(k) for each of this thread's packs.
  template <typename use_t>
  __device__ __forceinline__ void for_packs(const use_t& use) const {
    const int left = slice_.packs - static_cast<int>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (left > k * kThreads) use(k);
  }

  // Puts -inf, which adds nothing, in the place of the label's logit.
  __device__ __forceinline__ void set_label_aside() {
    const int mine = slice_.pack_of(row_.label), place = (row_.label - slice_.head) % kSize;
    if (mine < 0) return;
    scalar_t none;
    narrow(-INFINITY, none);
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (k == mine) replace(bits_[k], place, none);
  }

  // The largest logit, S', and g_j = p_factor e_j for j != y; NaN where they are no numbers.
  struct Whole {
    float max, s, p_factor, g_y;
  };
  __device__ __forceinline__ Whole whole_row() const {
    const float2 all = add_partials(exchange_.sums(), exchange_.count());
    const float e_y = Exponent<float>::power(Exponent<float>::step(exchange_.z_y() - all.x));
    const float sum = all.y + e_y, scale = sum > 0 && sum < INFINITY ? 1 / sum : NAN;
    Whole row{all.x, all.y, scale, -all.y * scale};
    if (a_.options.z_loss > 0) {
      const float more = 2 * static_cast<float>(a_.options.z_loss) * (all.x + logf(sum));
      row.p_factor += more * scale;
      row.g_y += more * (1 + row.g_y);
    }
    return row;
  }

  // By one warp of the cluster.
  __device__ __forceinline__ void write_results(float weight) const {
    const Whole row = whole_row();
    const float2 rest = add_rest(exchange_.sums(), exchange_.count(), row.max);
    if (lane_of_thread() != 0) return;
    const float z_y = exchange_.z_y();
    const RowSums<float> sums{row.max, row.s, rest.x, rest.y * Exponent<float>::kLog,
                              0,       z_y,   row.max};
    RowResult<float> r = finish_row(sums, a_.layout.vocab, 0., a_.options.z_loss);
    if (a_.options.z_loss > 0)  // nothing cancels here: the label is no part of Q'
      r.grad_norm_sq = row.g_y * row.g_y + rest.x * row.p_factor * row.p_factor;
    const bool finite = spoil_unless_finite(r, sums.s + expf(sums.z_y - sums.shift));
    write_row(a_, row_.t(), r, sums.shift, weight, finite);
  }

  __device__ __forceinline__ void write_gradient(float max, bool empty, float factor,
                                                 float at_label) {
    using Exp = Exponent<float>;
    scalar_t* const out = static_cast<scalar_t*>(a_.grad) + a_.grad_layout.row(row_.t());
    Bits128* to = reinterpret_cast<Bits128*>(out + slice_.head) + slice_.first + threadIdx.x;
    keep_in_register(to);
    const int single = slice_.single(vocab());
    if (empty) {
      for_packs([&](int k) { store_stream(to + k * kThreads, Bits128{{0, 0, 0, 0}}); });
      if (single >= 0) narrow(0.f, out[single]);
      return;
    }
    const Scale<float> t(max);
    factor *= Exp::power(-t(max));
    for_packs([&](int k) {
      float x[kSize];
      widen_pack<scalar_t>(bits_[k], x);
#pragma unroll
      for (int j = 0; j < kSize; ++j) x[j] = factor * Exp::power(t(x[j]));
      store_stream(to + k * kThreads, narrow_pack<scalar_t>(x));
    });
    if (single >= 0) narrow(factor * Exp::power(t(singles_[threadIdx.x])), out[single]);
    if (single == row_.label || slice_.pack_of(row_.label) >= 0)
      narrow(at_label, out[row_.label]);  // over what this thread has just stored
  }

  const ChunkLossArgs& a_;
  Exchange<kThreads>& exchange_;
  float* const singles_;
  const RowAhead& row_;
  Slice<scalar_t, kThreads> slice_;
  Bits128 bits_[kPacks];
};

template <typename scalar_t, int kThreads>
__device__ __forceinline__ void zero_slice(const ChunkLossArgs& a, const ClusterShape& shape,
                                           int64_t t) {
  scalar_t* row = static_cast<scalar_t*>(a.grad) + a.grad_layout.row(t);
  const int vocab = static_cast<int>(a.layout.vocab);
  const Slice<scalar_t, kThreads> slice(shape, row, vocab);
  const int single = slice.single(vocab);
  if (single >= 0) narrow(0.f, row[single]);
  Bits128* const to = reinterpret_cast<Bits128*>(row + slice.head) + slice.first;
  for (int i = threadIdx.x; i < slice.packs; i += kThreads)
    store_stream(to + i, Bits128{{0, 0, 0, 0}});
}

// kBlocks: what a multiprocessor is to hold. Without a gradient only the results are written.
template <typename scalar_t, int kThreads, int kBlocks, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    chunk_loss_cluster_kernel(const ChunkLossArgs a, const ClusterShape shape) {
  CWT_SHARED_DYNAMIC(Bits128, memory);
  CWT_SHARED(float, singles, 16);
  CWT_SHARED(int, queued, 2);
  const int work = static_cast<int>(a.counters[kWorkRows]);
  const int first = blockIdx.x / shape.cluster;
  // Before a block stores to another's shared memory, that one must be there.
  if (shape.cluster > 1) cluster_sync();
  Queue queue(a, queued, work);
  const auto leads = [&] {
    return warp_of_thread() == 0 && (shape.cluster == 1 || cluster_rank() == 0);
  };
  RowAhead row(a, first < work ? 2 * static_cast<int>(a.rows[first]) : -1);
  Exchange<kThreads> exchange(shape, reinterpret_cast<float4*>(memory), row);
  while (row.turn >= 0) {
    SliceTask<scalar_t, kThreads, kPacks> task(a, shape, exchange, singles, row);
    if (leads() && lane_of_thread() == 0) queue.take(shape);
    task.tell_sums();
    if (leads())
      exchange.tell_turn(
          row.next(__shfl_sync(kFullWarp, lane_of_thread() == 0 ? queue.row() : 0, 0)));
    const float weight = static_cast<const float*>(a.row_weight)[row.t()];
    exchange.wait();
    task.finish(weight);
    row = RowAhead(a, exchange.next_turn());
  }
  if (a.grad == nullptr) return;
  const int mine = formed_again(blockIdx.x) / shape.cluster, clusters = gridDim.x / shape.cluster;
  for (int64_t i = a.counters[kWorkRows] + mine; i < a.layout.rows; i += clusters)
    zero_slice<scalar_t, kThreads>(a, shape, a.rows[i]);
}

}  // namespace cwt
