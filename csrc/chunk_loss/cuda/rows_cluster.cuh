// chunk_loss, a row on its way through the shared memory of one block, or of a cluster of blocks:
// loss, statistics and gradient, for rows of unit stride whose gradient is aligned as they are. The
// formulas are those of rows.cuh; label smoothing, softcap and float64 are left to it.
//
// Who: a cluster takes rows from the work list, one after another. Each of its blocks has a slice of
// the row, in packs of 16 bytes, and each thread every blockDim-th pack of the slice. A thread has a
// ring of packs in shared memory that nobody else touches: it starts copies into it (cp.async),
// waits for its own, and reads them, so rings need no barrier. With a gradient the ring holds the
// slice until the sums are known; as the second pass frees a place, the copy of the next row's
// packs into it begins. So reading never pauses while a row is reduced or written, and no logit is
// read twice from anywhere but the ring. Without a gradient the first pass frees the places.
//
// The blocks of a cluster exchange (max, s, q, h) once a row: each warp stores its own into the
// shared memory of every block, and one cluster barrier later all warps add up the same numbers in
// the same order.
//
// What a row needs beside its logits (its number, label, weight, the label's logit, the up to 7
// logits at either end that fill no pack) is loaded while the row before it is being worked on.
//
// Bytes per row, b bytes a logit: b V read; b V written with the gradient.
#pragma once

#include "rows.cuh"

namespace cwt {

constexpr int kClusterThreads = 512;
constexpr int kClusterBlocks = 2;     // a multiprocessor holds two: 64 registers a thread
constexpr int kMaxCluster = 8;        // what every device with clusters can do

// How the kernel is launched, and how its blocks divide a row.
struct ClusterShape {
  int threads;       // a power of two
  int log2_threads;  // of that
  int cluster;       // blocks that share a row
  int packs;         // most packs of a slice
  int turns;         // most packs of a thread: packs / threads, rounded up
  int places;        // packs of each thread's ring

  CWT_HOST_DEVICE int partials() const { return threads / kWarp * cluster; }
  CWT_HOST_DEVICE int place_bytes() const { return threads * static_cast<int>(sizeof(Bits128)); }
  size_t shared_bytes() const {
    return sizeof(Bits128) * (2 * partials() + size_t(places) * threads);
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

// The packs of a block's slice of a row.
template <typename scalar_t>
struct Slice {
  static constexpr int kSize = Pack<scalar_t>::kSize;
  int head;   // logits of the row before its first whole pack
  int packs;  // of the slice, from pack `first` of the row on

  // The slice of block `rank` begins with this pack of the row.
  static __device__ __forceinline__ int first(const ClusterShape& shape) {
    return cluster_rank() * shape.packs;
  }
  __device__ __forceinline__ Slice() : head(0), packs(0) {}
  __device__ __forceinline__ Slice(const ClusterShape& shape, const scalar_t* row, int vocab) {
    const int gap = static_cast<int>((0 - reinterpret_cast<uintptr_t>(row)) & 15) / sizeof(scalar_t);
    head = gap < vocab ? gap : vocab;
    const int left = (vocab - head) / kSize - first(shape);
    packs = left < 0 ? 0 : left < shape.packs ? left : shape.packs;
  }
};

// The copies into a thread's ring, ahead of the passes that read it.
template <typename scalar_t>
class Feed {
 public:
  // ring: this thread's first place
  __device__ __forceinline__ Feed(const ChunkLossArgs& a, const ClusterShape& shape,
                                  SharedAddress ring, int first, int end, int step)
      : a_(a), shape_(shape), next_(first), end_(end), step_(step) {
    if (next_ < end_) next_row_ = static_cast<int>(a_.rows[next_]);
    begin_row();
#pragma unroll 1
    for (int k = 0; k < shape_.places; ++k) copy_to(ring + k * shape_.place_bytes());
  }

  // Starts the copy of this thread's next pack, of this row or a later one, to a place of the ring.
  __device__ __forceinline__ void copy_to(SharedAddress place) {
    if (left_ > 0) copy_async(place, from_);
    close_copies();
    left_ -= shape_.threads;
    from_ += shape_.threads;
    if (--turns_ == 0) begin_row();
  }

 private:
  __device__ __forceinline__ void begin_row() {
    turns_ = shape_.turns;
    left_ = 0;
    if (next_ >= end_) return;
    const scalar_t* row = static_cast<const scalar_t*>(a_.logits) + a_.layout.row(next_row_);
    next_ += step_;
    if (next_ < end_) next_row_ = static_cast<int>(a_.rows[next_]);  // here already when this row's copies are started
    const Slice<scalar_t> slice(shape_, row, static_cast<int>(a_.layout.vocab));
    from_ = reinterpret_cast<const Bits128*>(row + slice.head) + slice.first(shape_) + threadIdx.x;
    left_ = slice.packs - static_cast<int>(threadIdx.x);
  }

  const ChunkLossArgs& a_;
  const ClusterShape& shape_;
  int next_, end_, step_;  // in the work list
  int next_row_ = 0;
  const Bits128* from_ = nullptr;
  int left_ = 0;   // packs of the slice from this thread's next one on; 0 or less: none for it
  int turns_ = 0;  // of this thread in the row being copied
};

// The 14 logits at most that fill no pack belong to the first threads of the first block. Returns
// the position of this thread's, -1 for none.
template <typename scalar_t>
__device__ __forceinline__ int single_at(const Slice<scalar_t>& slice, int vocab) {
  const int i = threadIdx.x;
  if (i >= 16 || cluster_rank() > 0) return -1;
  if (i < 8) return i < slice.head ? i : -1;
  const int j = vocab - (vocab - slice.head) % Slice<scalar_t>::kSize + i - 8;
  return j < vocab ? j : -1;
}

// What a thread must know of a row, apart from its packs.
template <typename scalar_t>
struct RowAhead {
  int t, label;
  scalar_t z_y, single;  // single: this thread's logit outside the packs, if it has one
  float weight;
  Slice<scalar_t> slice;

  __device__ __forceinline__ void load(const ChunkLossArgs& a, const ClusterShape& shape) {
    const scalar_t* row = static_cast<const scalar_t*>(a.logits) + a.layout.row(t);
    const int vocab = static_cast<int>(a.layout.vocab);
    z_y = row[label];
    weight = static_cast<const float*>(a.row_weight)[t];
    slice = Slice<scalar_t>(shape, row, vocab);
    const int j = single_at(slice, vocab);
    if (j >= 0) single = row[j];
  }
};

// A block's work on its slice of one row.
template <typename scalar_t, RowMode kMode>
class SliceTask {
  static constexpr int kSize = Pack<scalar_t>::kSize;
  static constexpr bool kGradient = kMode == RowMode::kGradient;
  using Row = RowAhead<scalar_t>;

 public:
  // partials: (2, shape.partials()); ring: this thread's first place
  __device__ __forceinline__ SliceTask(const ChunkLossArgs& a, const ClusterShape& shape,
                                       float4* partials, SharedAddress ring, Feed<scalar_t>& feed)
      : a_(a), shape_(shape), partials_(partials), ring_(ring), place_(ring), feed_(feed) {}

  // Calls loaded() between the first pass and the exchange.
  template <typename loaded_t>
  __device__ __forceinline__ void run(const Row& row, const loaded_t& loaded) {
    const int label = label_turn(row);
    const float4 partial = first_pass(row, label);
    loaded();
    const float4* partials = exchange(partial);
    const float2 all = add_partials(partials, shape_.partials());
    const float e_y = Exponent<float>::power(Exponent<float>::step(widen(row.z_y) - all.x));
    const float sum = all.y + e_y, scale = 1 / sum;
    float factor = 1, g_y = -all.y * scale;
    if (a_.options.z_loss > 0) {
      factor += 2 * static_cast<float>(a_.options.z_loss) * (all.x + logf(sum));
      g_y += (factor - 1) * (1 + g_y);
    }
    if (warp_of_thread() == 0 && cluster_rank() == 0) finish(row, partials, all, g_y, factor * scale);
    if (!kGradient) return;
    const bool finite = sum > 0 && sum < INFINITY;
    second_pass(row, label, all.x, finite ? row.weight * factor * scale : NAN,
                finite ? row.weight * g_y : NAN);
  }

 private:
  // The turn at which this thread meets the label's pack; -1 where it does not.
  __device__ __forceinline__ int label_turn(const Row& row) const {
    const int i = (row.label - row.slice.head) / kSize - row.slice.first(shape_);
    const bool here = row.label >= row.slice.head && i >= 0 && i < row.slice.packs &&
                      (i & (shape_.threads - 1)) == static_cast<int>(threadIdx.x);
    return here ? i >> shape_.log2_threads : -1;
  }
  // Replaces the label's logit in its pack, if that is among those of the turns `turn` and on.
  template <int kCount>
  __device__ __forceinline__ void replace_label(Bits128 (&bits)[kCount], const Row& row, int turn,
                                                int label, float by) const {
    if (static_cast<unsigned>(label ^ turn) >= 2u) return;  // turns are counted in twos
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (turn + k != label) continue;
      scalar_t value;
      narrow(by, value);
      replace(bits[k], (row.label - row.slice.head) % kSize, value);
    }
  }

  // Calls use(turn, i, packs) for the packs of this thread, two at a time where it has two more, pack
  // i of the slice being the first of them. Frees their places if kFree, and waits for them if kWait.
  template <bool kFree, bool kWait, typename use_t>
  __device__ __forceinline__ void for_turns(const Row& row, const use_t& use) {
    const int turns = shape_.turns, bytes = shape_.place_bytes();
    const SharedAddress end = ring_ + shape_.places * bytes;
    const auto after = [&](SharedAddress p) { return p + bytes == end ? ring_ : p + bytes; };
    SharedAddress place = place_;
    int i = threadIdx.x;
#pragma unroll 1
    for (int turn = 0; turn < turns; turn += 2) {
      const int count = turn + 1 < turns ? 2 : 1;
      // Copies under way may be those after this pair: of a whole ring, or, where the passes before
      // have freed nothing since the row began, of what is left of it.
      if (kWait) wait_for_copies(shape_.places - (kFree ? 0 : turn) - count);
      const SharedAddress next = after(place);
      if (i + shape_.threads < row.slice.packs) {
        Bits128 pair[2] = {load_shared(place), load_shared(next)};
        use(turn, i, pair);
      } else if (i < row.slice.packs) {
        Bits128 single[1] = {load_shared(place)};
        use(turn, i, single);
      }
      if (kFree) {
#pragma unroll 1
        for (int k = 0; k < count; ++k) feed_.copy_to(k == 0 ? place : next);
      }
      place = count == 2 ? after(next) : next;
      i += 2 * shape_.threads;
    }
    if (kFree) place_ = place;
  }

  __device__ __forceinline__ float4 first_pass(const Row& row, int label) {
    OnlineSums<float> sums(widen(row.z_y));
    const int single = single_at(row.slice, static_cast<int>(a_.layout.vocab));
    if (single >= 0) {
      const float z = widen(row.single), x[1] = {single == row.label ? -INFINITY : z};
      sums.add(x, z);
    }
    for_turns<!kGradient, true>(row, [&](int turn, int, auto& bits) {
      constexpr int kCount = sizeof(bits) / sizeof(Bits128);
      replace_label(bits, row, turn, label, -INFINITY);
      float x[kCount * kSize];
      widen_packs<scalar_t>(bits, x);
      sums.add(x, largest_of<scalar_t>(bits));
    });
    const float max = warp_max(sums.top);
    sums.settle(max);
    return make_float4(max, warp_sum(sums.s), warp_sum(sums.q), warp_sum(sums.h));
  }

  // Returns what every warp of the cluster has brought. The two halves of partials_ are used in
  // turn: what a block writes for the next row but one, it writes after a barrier that all warps
  // reach only when they have read this row's.
  __device__ __forceinline__ const float4* exchange(const float4& mine) {
    const int count = shape_.partials();
    float4* half = partials_ + odd_ * count;
    odd_ ^= 1;
    if (shape_.cluster == 1) {
      if (lane_of_thread() == 0) half[warp_of_thread()] = mine;
      __syncthreads();
    } else {
      float4* place = half + cluster_rank() * (shape_.threads / kWarp) + warp_of_thread();
      if (lane_of_thread() < shape_.cluster) store_to_rank(place, lane_of_thread(), mine);
      cluster_sync();
    }
    return half;
  }

  // The row's results, by one warp.
  __device__ __forceinline__ void finish(const Row& row, const float4* partials, const float2& all,
                                         float g_y, float p_factor) {
    const float2 rest = add_rest(partials, shape_.partials(), all.x);
    if (threadIdx.x != 0) return;
    const RowSums<float> sums{all.x, all.y, rest.x, rest.y * Exponent<float>::kLog,
                              0,     widen(row.z_y), all.x};
    RowResult<float> r = finish_row(sums, a_.layout.vocab, 0., a_.options.z_loss);
    // g_j = p_factor e_j for j != y: nothing cancels here.
    if (a_.options.z_loss > 0) r.grad_norm_sq = g_y * g_y + rest.x * p_factor * p_factor;
    const bool finite = spoil_unless_finite(r, sums.s + expf(sums.z_y - sums.shift));
    write_row(a_, row.t, r, sums.shift, row.weight, finite);
  }

  __device__ __forceinline__ void second_pass(const Row& row, int label, float max, float factor,
                                              float at_label) {
    using Exp = Exponent<float>;
    scalar_t* const out = a_.grad == nullptr ? nullptr
                                             : static_cast<scalar_t*>(a_.grad) +
                                                   a_.grad_layout.row(row.t);
    const Scale<float> t(max);
    factor *= Exp::power(-t(max));
    const bool empty = row.weight == 0;
    const int single = single_at(row.slice, static_cast<int>(a_.layout.vocab));
    if (single >= 0 && out != nullptr) {
      const float g = single == row.label ? at_label : factor * Exp::power(t(widen(row.single)));
      narrow(empty ? 0.f : g, out[single]);
    }
    Bits128* const to = reinterpret_cast<Bits128*>(out + row.slice.head) + row.slice.first(shape_);
    for_turns<true, false>(row, [&](int turn, int i, auto& bits) {
      constexpr int kCount = sizeof(bits) / sizeof(Bits128);
      if (out == nullptr) return;
      float x[kCount * kSize];
      widen_packs<scalar_t>(bits, x);
#pragma unroll
      for (int k = 0; k < kCount * kSize; ++k) x[k] = factor * Exp::power(t(x[k]));
      narrow_packs<scalar_t>(x, bits);
      replace_label(bits, row, turn, label, at_label);
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        store_stream(to + i + k * shape_.threads, empty ? Bits128{{0, 0, 0, 0}} : bits[k]);
    });
  }

  const ChunkLossArgs& a_;
  const ClusterShape& shape_;
  float4* partials_;
  const SharedAddress ring_;
  SharedAddress place_;  // of the next row's first pack
  Feed<scalar_t>& feed_;
  int odd_ = 0;
};

template <typename scalar_t>
__device__ __forceinline__ void zero_slice(const ChunkLossArgs& a, const ClusterShape& shape,
                                           int64_t t) {
  scalar_t* row = static_cast<scalar_t*>(a.grad) + a.grad_layout.row(t);
  const int vocab = static_cast<int>(a.layout.vocab);
  const Slice<scalar_t> slice(shape, row, vocab);
  const int single = single_at(slice, vocab);
  if (single >= 0) narrow(0.f, row[single]);
  Bits128* const to = reinterpret_cast<Bits128*>(row + slice.head) + slice.first(shape);
  for (int i = threadIdx.x; i < slice.packs; i += shape.threads)
    store_stream(to + i, Bits128{{0, 0, 0, 0}});
}

// A cluster's work on all its rows.
template <typename scalar_t, RowMode kMode>
__device__ __forceinline__ void cluster_rows(const ChunkLossArgs& a, const ClusterShape& shape) {
  CWT_SHARED_DYNAMIC(Bits128, memory);
  float4* const partials = reinterpret_cast<float4*>(memory);
  const SharedAddress ring = shared_address(memory + 2 * shape.partials() + threadIdx.x);
  const int work = static_cast<int>(a.counters[kWorkRows]), step = gridDim.x / shape.cluster;
  int i = blockIdx.x / shape.cluster;
  // Before a block writes to another's shared memory, that one must be there.
  if (shape.cluster > 1) cluster_sync();
  Feed<scalar_t> feed(a, shape, ring, i, work, step);
  SliceTask<scalar_t, kMode> task(a, shape, partials, ring, feed);
  RowAhead<scalar_t> row{}, next{}, after{};
  if (i < work) {
    row.t = static_cast<int>(a.rows[i]);
    row.label = static_cast<int>(a.labels[row.t]);
    row.load(a, shape);
  }
  if (i + step < work) {
    next.t = static_cast<int>(a.rows[i + step]);
    next.label = static_cast<int>(a.labels[next.t]);
  }
  for (; i < work; i += step) {
    if (i + step < work) next.load(a, shape);
    if (i + 2 * step < work) after.t = static_cast<int>(a.rows[i + 2 * step]);
    task.run(row, [&] {
      if (i + 2 * step < work) after.label = static_cast<int>(a.labels[after.t]);
    });
    row = next;
    next.t = after.t;
    next.label = after.label;
  }
  if (kMode == RowMode::kGradient && a.grad != nullptr)
    for (; i < a.layout.rows; i += step) zero_slice<scalar_t>(a, shape, a.rows[i]);
}

template <typename scalar_t, RowMode kMode>
__global__ void __launch_bounds__(kClusterThreads, kClusterBlocks)
    chunk_loss_cluster_kernel(const ChunkLossArgs a, const ClusterShape shape) {
  cluster_rows<scalar_t, kMode>(a, shape);
}

}  // namespace cwt
