// chunk_loss, a row in the registers of one block, or of a cluster of blocks: loss, statistics and
// gradient, for rows of unit stride whose gradient is aligned as they are. The formulas are those of
// rows.cuh; label smoothing, softcap and float64 are left to it. sm_90 and later.
//
// Who: a cluster takes rows from the work list, each block a slice of the row, each thread every
// blockDim-th pack of 16 bytes of the slice:
//
//   wait until the slice is in shared memory; take its packs into registers
//   sums of these packs; each warp tells them to every block of the cluster
//   wait for all sums; start the copy of the next row's slice to shared memory
//   results and gradient, from the registers
//
// So no logit is read twice, and while a row is worked on the next one is on its way: a multiprocessor
// works on 128 KiB in registers and has 128 KiB of shared memory to fill. All warps add up the same
// sums in the same order. Which row is next comes from a counter, so that a slow multiprocessor takes
// fewer rows; its number is told with the sums. No result depends on who works on a row.
//
// Bytes per row, b bytes a logit: b V read; b V written with the gradient. On an H200 the kernel moves
// them at 92 to 93 % of the rate of a copy where slices fill the registers (benchmarks/README.md).
#pragma once

#include "cluster_exchange.cuh"
#include "rows.cuh"

namespace cwt {

// The packs of a block's slice of a row.
template <typename scalar_t, int kThreads>
struct Slice {
  static constexpr int kSize = Pack<scalar_t>::kSize;
  int head;        // logits of the row before its first whole pack
  unsigned first;  // pack of the slice; unsigned: a sign would take a register
  int packs;

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

// Where a block finds its slice of a row, and what it must know of the row beforehand. There is one
// slice, so the copies of the next row's start when all threads have this row's in their registers.
template <typename scalar_t, int kThreads>
class Incoming {
  static constexpr int kSize = Pack<scalar_t>::kSize;

 public:
  struct Numbers {
    int64_t label[2];
    float weight[2];
    Arrival arrival;
  };

  // packs: 2 + shape.packs
  __device__ __forceinline__ Incoming(const ChunkLossArgs& a, const ClusterShape& shape,
                                      Bits128* packs, Numbers& numbers)
      : a_(a), shape_(shape), packs_(packs), numbers_(numbers) {
    if (threadIdx.x > 0) return;
    arrival_init(&numbers_.arrival, 2);
    fence_before_copy();
  }

  __device__ __forceinline__ const scalar_t* logits(const Turn& row) const {
    return static_cast<const scalar_t*>(a_.logits) + a_.layout.row(row.t());
  }

  // Starts the copies of a row, by one thread.
  __device__ __forceinline__ void start(const Turn& row) const {
    const scalar_t* x = logits(row);
    const int vocab = static_cast<int>(a_.layout.vocab);
    const Slice<scalar_t, kThreads> slice(shape_, x, vocab);
    const Bits128* whole = reinterpret_cast<const Bits128*>(x + slice.head);
    const bool first = slice.first == 0;
    const int packs = (vocab - slice.head) / kSize;
    const bool before = first && slice.head > 0,
               after = first && slice.head + packs * kSize < vocab;
    arrive_with_bytes(&numbers_.arrival, 16 * (slice.packs + before + after));
    Arrival* const at = &numbers_.arrival;
    if (before) copy_shared_pack_async(packs_, whole - 1, at);
    if (after) copy_shared_pack_async(packs_ + 1, whole + packs, at);
    if (slice.packs > 0) copy_async(packs_ + 2, whole + slice.first, slice.packs, at);
    copy_number_async(&numbers_.label[row.half()], a_.labels + row.t(), at);
    copy_number_async(&numbers_.weight[row.half()],
                      static_cast<const float*>(a_.row_weight) + row.t(), at);
    arrive_when_copied(at);
  }
  __device__ __forceinline__ void wait(const Turn& row) const {
    wait_for(&numbers_.arrival, row.half());
  }

  // After the wait.
  __device__ __forceinline__ int label(const Turn& row) const {
    return static_cast<int>(numbers_.label[row.half()]);
  }
  __device__ __forceinline__ float weight(const Turn& row) const {
    return numbers_.weight[row.half()];
  }
  __device__ __forceinline__ Bits128* slice() const { return packs_ + 2; }
  // The logit that belongs to thread i of the first 16, see Slice::single.
  __device__ __forceinline__ float single(int i, int head) const {
    const scalar_t* x = reinterpret_cast<const scalar_t*>(packs_);
    return widen(x[i < 8 ? kSize - head + i : kSize + i - 8]);
  }

 private:
  const ChunkLossArgs& a_;
  const ClusterShape& shape_;
  Bits128* const packs_;
  Numbers& numbers_;
};

// A block's work on its slice of one row: kPacks packs of each thread.
template <typename scalar_t, int kThreads, int kPacks>
class SliceTask {
  static constexpr int kSize = Pack<scalar_t>::kSize;

 public:
  // Waits for the slice. singles: 16 places in the block's shared memory
  __device__ __forceinline__ SliceTask(const ChunkLossArgs& a, const ClusterShape& shape,
                                       const Incoming<scalar_t, kThreads>& incoming,
                                       Exchange<kThreads>& exchange, float* singles,
                                       const Turn& row)
      : a_(a),
        exchange_(exchange),
        singles_(singles),
        row_(row),
        incoming_(incoming),
        slice_(shape, incoming.logits(row), vocab()) {
    incoming.wait(row);
  }

  // Takes the slice into registers; tells the others this warp's sums.
  __device__ __forceinline__ void tell_sums() {
    float top = larger(set_label_aside(), Exponent<float>::kLowest);
    const Bits128* from = incoming_.slice() + threadIdx.x;
    LargestOf<scalar_t> largest;
    for_packs([&](int k) {
      bits_[k] = from[k * kThreads];
      largest.add(bits_[k]);
    });
    top = larger(top, largest.value());
    const int single = slice_.single(vocab());
    if (single >= 0) {
      singles_[threadIdx.x] = incoming_.single(threadIdx.x, slice_.head);
      top = larger(top, singles_[threadIdx.x]);
    }
    top = warp_max(top);
    OnlineSums<float> sums(top);
    if (single >= 0) {
      const float x[1] = {single == label() ? -INFINITY : singles_[threadIdx.x]};
      sums.add(x);
      if (single == label()) exchange_.tell_label(singles_[threadIdx.x]);
    }
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
  __device__ __forceinline__ void finish() {
    const float weight = incoming_.weight(row_);
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

  __device__ __forceinline__ int label() const { return incoming_.label(row_); }

  // Tells the label's logit, puts -inf, which adds nothing, in its place, and returns it; -inf where
  // it is in no pack of this thread.
  __device__ __forceinline__ float set_label_aside() {
    if (slice_.pack_of(label()) < 0) return -INFINITY;
    scalar_t* const packs = reinterpret_cast<scalar_t*>(incoming_.slice());
    scalar_t& place = packs[label() - slice_.head - static_cast<int>(slice_.first) * kSize];
    const float z_y = widen(place);
    exchange_.tell_label(z_y);
    narrow(-INFINITY, place);
    fence_before_copy();
    return z_y;
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
      for_packs([&](int k) { store_pack(to + k * kThreads, Bits128{{0, 0, 0, 0}}); });
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
      store_pack(to + k * kThreads, narrow_pack<scalar_t>(x));
    });
    if (single >= 0) narrow(factor * Exp::power(t(singles_[threadIdx.x])), out[single]);
    if (single == label() || slice_.pack_of(label()) >= 0)
      narrow(at_label, out[label()]);  // over what this thread has just stored
  }

  const ChunkLossArgs& a_;
  Exchange<kThreads>& exchange_;
  float* const singles_;
  const Turn& row_;
  const Incoming<scalar_t, kThreads>& incoming_;
  const Slice<scalar_t, kThreads> slice_;
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
    store_pack(to + i, Bits128{{0, 0, 0, 0}});
}

// kBlocks: what a multiprocessor is to hold. Without a gradient only the results are written.
template <typename scalar_t, int kThreads, int kBlocks, int kPacks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    chunk_loss_cluster_kernel(const ChunkLossArgs a, const ClusterShape shape) {
#if defined(CWT_HAS_CLUSTERS)
  using Coming = Incoming<scalar_t, kThreads>;
  CWT_SHARED_DYNAMIC(Bits128, memory);
  CWT_SHARED(typename Coming::Numbers, numbers, 1);
  CWT_SHARED(float, singles, 16);
  CWT_SHARED(int, queued, 2);
  const int work = static_cast<int>(a.counters[kWorkRows]);
  const int first = blockIdx.x / shape.cluster;
  Turn row = Turn::first(first < work ? static_cast<int>(a.rows[first]) : -1);
  Queue queue(a, shape, queued, work);
  const Coming incoming(a, shape, memory, numbers[0]);
  const auto leads = [&] {
    return warp_of_thread() == 0 && (shape.cluster == 1 || cluster_rank() == 0);
  };
  Exchange<kThreads> exchange(shape, reinterpret_cast<float4*>(memory + 2 + shape.packs), row);
  if (shape.cluster > 1)
    cluster_sync();  // before a block stores to another's shared memory, that one must be there
  else
    __syncthreads();
  if (threadIdx.x == 0 && row.exists()) incoming.start(row);
  while (row.exists()) {
    if (threadIdx.x == 0) exchange.expect();
    if (leads() && lane_of_thread() == 0) queue.ask();
    SliceTask<scalar_t, kThreads, kPacks> task(a, shape, incoming, exchange, singles, row);
    task.tell_sums();
    if (leads())
      exchange.tell_turn(
          row.next(__shfl_sync(kFullWarp, lane_of_thread() == 0 ? queue.answer() : 0, 0)));
    exchange.wait();
    const Turn next{exchange.next_turn()};
    if (threadIdx.x == 0 && next.exists()) incoming.start(next);
    task.finish();
    row = next;
  }
  if (a.grad == nullptr) return;
  const int mine = formed_again(blockIdx.x) / shape.cluster, clusters = gridDim.x / shape.cluster;
  for (int64_t i = a.counters[kWorkRows] + mine; i < a.layout.rows; i += clusters)
    zero_slice<scalar_t, kThreads>(a, shape, a.rows[i]);
#endif
}

}  // namespace cwt
