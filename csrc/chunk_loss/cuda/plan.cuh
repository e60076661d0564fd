// chunk_loss, before any logit is read: which rows count, in which order, with what weight.
//
// chunk_loss_plan_kernel         one thread per row: the row's state; every row goes to one end of
//                                the work list (rows to read in front, the others behind); first
//                                and last row in use of each chunk. 16 bytes per row and more where
//                                there are weights. Positions come from integer atomics, so the
//                                list's order may differ between runs; no result depends on it.
// chunk_loss_weigh_kernel        one block per chunk: W_c over its rows, in a fixed order; the last
//                                block to finish makes of the sums a factor per chunk and the
//                                denominator.
// chunk_loss_row_weight_kernel   one thread per row: row_weight of contract.h from those.
#pragma once

#include "block_reduce.cuh"
#include "launch.h"

namespace cwt {

constexpr int kPlanThreads = 256;

CWT_HOST_DEVICE inline double real_at(const RealArray& x, int64_t i) {
  switch (x.type) {
    case RealType::kBool:
      return static_cast<const uint8_t*>(x.data)[i] ? 1 : 0;
    case RealType::kFloat:
      return static_cast<const float*>(x.data)[i];
    case RealType::kDouble:
      return static_cast<const double*>(x.data)[i];
    default:
      return 1;
  }
}

struct ChunkWeightAt {
  RealArray active;
  CWT_HOST_DEVICE double operator()(int64_t chunk) const { return real_at(active, chunk); }
};

__device__ __forceinline__ int64_t chunk_at(const ChunkLossArgs& a, int64_t row) {
  return a.wide_chunk_ids ? static_cast<const int64_t*>(a.chunk_ids)[row]
                          : static_cast<const int32_t*>(a.chunk_ids)[row];
}

__device__ __forceinline__ RowState state_at(const ChunkLossArgs& a, int64_t row) {
  return static_cast<RowState>(a.states[row] & (kInStats - 1));
}

__device__ __forceinline__ bool is_read(RowState s) {
  return s == RowState::kCounts || s == RowState::kStatsOnly;
}

__device__ __forceinline__ bool is_bad(RowState s) {
  return s == RowState::kBadLabel || s == RowState::kBadChunk;
}

// Stores to one of the acc arrays where the kernel is not a template of acc.
__device__ __forceinline__ void store_acc(const ChunkLossArgs& a, void* to, int64_t i, double x) {
  if (a.type == LogitsType::kDouble)
    static_cast<double*>(to)[i] = x;
  else
    static_cast<float*>(to)[i] = static_cast<float>(x);
}

// Adds to a counter; CUDA's 64-bit atomics are unsigned.
__device__ __forceinline__ int64_t count(int64_t* counter, int64_t n) {
  return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(counter),
                                        static_cast<unsigned long long>(n)));
}

__device__ __forceinline__ void raise_to(int64_t* p, int64_t x) {
  atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}

// True on every thread of the last block of the launch to get here; what the first thread of the
// other blocks has written before is then visible.
__device__ __forceinline__ bool is_last_block(int64_t* counter) {
  CWT_SHARED(int, last, 1);
  if (threadIdx.x == 0) {
    __threadfence();  // this block's results before its count
    last[0] = count(counter, 1) == static_cast<int64_t>(gridDim.x) - 1;
  }
  __syncthreads();
  __threadfence();  // the other blocks' counts before their results
  return last[0] != 0;
}

// Returns this thread's place in a list that its warp appends to; -1 for threads not taking part.
__device__ __forceinline__ int64_t append(int64_t* counter, bool takes_part) {
  const unsigned lanes = __ballot_sync(kFullWarp, takes_part);
  int64_t base = 0;
  if (lane_of_thread() == 0 && lanes != 0) base = count(counter, __popc(lanes));
  base = __shfl_sync(kFullWarp, base, 0);
  return takes_part ? base + __popc(lanes & ((1u << lane_of_thread()) - 1)) : -1;
}

// A row that is not read gets its results here: zeros, or NaN for a bad row.
__device__ __forceinline__ void finish_idle_row(const ChunkLossArgs& a, int64_t row, bool bad) {
  const double value = bad ? NAN : 0.0;
  for (int s = 0; s < kNumRowStats; ++s) store_acc(a, a.row_stats, s * a.layout.rows + row, value);
  store_acc(a, a.row_loss, row, value);
}

__global__ void __launch_bounds__(kPlanThreads) chunk_loss_plan_kernel(const ChunkLossArgs a) {
  const int64_t rows = a.layout.rows;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool exists = row < rows;
  RowState state = RowState::kSkipped;
  int64_t chunk = -1;
  bool in_stats = false;
  if (exists) {
    const ChunkLossOptions& o = a.options;
    const double weight = real_at(a.token_weight, row);
    const ChunkWeightAt chunk_weight{a.active};
    chunk = chunk_at(a, row);
    state = row_state(a.labels[row], chunk, weight, a.layout.vocab, o, chunk_weight);
    // A bad label leaves its mark on the statistics of a chunk that is being evaluated.
    if (state == RowState::kBadLabel && chunk >= 0)
      in_stats = o.stats == kStatsAll || (weight != 0 && chunk_weight(chunk) != 0);
    in_stats = o.stats != kStatsOff && (in_stats || is_read(state));
    a.states[row] = static_cast<uint8_t>(state) | (in_stats ? kInStats : 0);
    if (!is_read(state) && a.row_stats != nullptr) finish_idle_row(a, row, is_bad(state));
    if (is_bad(state)) {
      count(&a.errors[state == RowState::kBadLabel ? kBadLabels : kBadChunks], 1);
      raise_to(&a.counters[kFirstBadRow], rows - row);
    }
  }
  const int64_t front = append(&a.counters[kWorkRows], exists && is_read(state));
  if (front >= 0) a.rows[front] = row;
  const int64_t back = append(&a.counters[kIdleRows], exists && !is_read(state));
  if (back >= 0) a.rows[rows - 1 - back] = row;

  // Rows ascend with the lanes: the first and last lane of each chunk speak for the others.
  const bool in_use = exists && (state == RowState::kCounts || in_stats);
  const unsigned same =
      __match_any_sync(kFullWarp, static_cast<unsigned long long>(in_use ? chunk : -1));
  if (!in_use) return;
  if (__ffs(static_cast<int>(same)) - 1 == lane_of_thread())
    raise_to(&a.first_row[chunk], rows - row);
  if (31 - __clz(static_cast<int>(same)) == lane_of_thread()) raise_to(&a.end_row[chunk], row + 1);
}

__global__ void __launch_bounds__(kPlanThreads) chunk_loss_weigh_kernel(const ChunkLossArgs a) {
  using Reduce = BlockReduce<double, 2>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const ChunkLossOptions& o = a.options;
  const int64_t mine = blockIdx.x, chunks = o.num_chunks;
  if (mine < chunks) {
    double sums[2] = {0, 0};  // weights, rows
    const int64_t end = a.end_row[mine];
    for (int64_t t = a.layout.rows - a.first_row[mine] + threadIdx.x; t < end; t += blockDim.x) {
      if (state_at(a, t) != RowState::kCounts || chunk_at(a, t) != mine) continue;
      sums[0] += real_at(a.token_weight, t);
      sums[1] += 1;
    }
    reduce.sum(sums);
    if (threadIdx.x == 0) {
      a.chunk_weight_sum[mine] = sums[0];
      a.chunk_present[mine] = sums[1] > 0 ? real_at(a.active, mine) : 0;
    }
  }
  if (!is_last_block(&a.counters[kWeighBlocks])) return;
  double total[1] = {0};
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x)
    total[0] += a.chunk_present[c] * (o.reduction == kTokenMean ? a.chunk_weight_sum[c] : 1);
  reduce.sum(total);
  const bool own = has_own_denominator(o.reduction) && a.normalizer.type == RealType::kNone;
  if (threadIdx.x == 0) *a.denominator = own ? total[0] : real_at(a.normalizer, 0);
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x)
    a.chunk_factor[c] = chunk_factor(o.reduction, real_at(a.active, c), a.chunk_weight_sum[c]);
}

__global__ void __launch_bounds__(kPlanThreads)
    chunk_loss_row_weight_kernel(const ChunkLossArgs a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= a.layout.rows) return;
  const RowState state = state_at(a, row);
  double weight = is_bad(state) ? NAN : 0.0;
  if (state == RowState::kCounts)
    weight =
        row_weight(real_at(a.token_weight, row), a.chunk_factor[chunk_at(a, row)], *a.denominator);
  store_acc(a, a.row_weight, row, weight);
  if (a.row_state != nullptr) a.row_state[row] = static_cast<int8_t>(state);
}

}  // namespace cwt
