// chunk_loss, before any logit is read: which rows count, in which order, with what weight.
//
// chunk_loss_plan_kernel         one thread per row: the row's state; every row goes to one end of
//                                the work list (rows to read in front, the others behind); first
//                                and last row in use of each chunk. 16 bytes per row and more where
//                                there are weights. Positions come from integer atomics, so the
//                                list's order may differ between runs; no result depends on it.
//                                Where no sum decides the weights, row_weight as well; for
//                                token_mean, each block's part of the denominator.
// chunk_loss_weigh_kernel        chunk_mean only: W_c, one block per (chunk, part of its rows), in a
//                                fixed order; the last block to finish makes of the sums a factor
//                                per chunk and the denominator.
// chunk_loss_row_weight_kernel   one thread per row: row_weight of contract.h from those sums.
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

// Rows [begin, end), a part of the rows of a chunk: the same for any launch.
struct RowRange {
  int64_t begin, end;
};

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

// Part `part` of `parts` of the rows from a chunk's first to its last in use.
__device__ __forceinline__ RowRange rows_of_part(const ChunkLossArgs& a, int64_t chunk, int part,
                                                 int parts) {
  const int64_t begin = a.layout.rows - a.first_row[chunk], end = a.end_row[chunk];
  if (begin >= end) return {0, 0};
  return {begin + (end - begin) * part / parts, begin + (end - begin) * (part + 1) / parts};
}

// True on every thread of the last of `blocks` blocks to get here; what the other blocks have
// written before is then visible.
__device__ __forceinline__ bool is_last_block(int64_t* counter, int64_t blocks) {
  CWT_SHARED(int, last, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // this block's results before its count
    last[0] = count(counter, 1) == blocks - 1;
  }
  __syncthreads();
  if (last[0] == 0) return false;
  __threadfence();  // the other blocks' counts before their results
  return true;
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

// What the weights of the rows are made from.
enum class Denominator { kGiven, kTotal, kOfChunks };

CWT_HOST_DEVICE inline Denominator denominator_of(const ChunkLossArgs& a) {
  if (a.options.reduction == kChunkMean) return Denominator::kOfChunks;
  const bool own = a.options.reduction == kTokenMean && a.normalizer.type == RealType::kNone;
  return own ? Denominator::kTotal : Denominator::kGiven;
}

__device__ __forceinline__ void write_row_weight(const ChunkLossArgs& a, int64_t row,
                                                 RowState state, double factor,
                                                 double denominator) {
  double weight = is_bad(state) ? NAN : 0.0;
  if (state == RowState::kCounts)
    weight = row_weight(real_at(a.token_weight, row), factor, denominator);
  store_acc(a, a.row_weight, row, weight);
  if (a.row_state != nullptr) a.row_state[row] = static_cast<int8_t>(state);
}

__global__ void __launch_bounds__(kPlanThreads) chunk_loss_plan_kernel(const ChunkLossArgs a) {
  using Reduce = BlockReduce<double, 1>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const Denominator from = denominator_of(a);
  double counted[1] = {0};  // a_c w_t of this row
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
    const double factor = state == RowState::kCounts ? chunk_weight(chunk) : 0;
    if (from == Denominator::kGiven)
      write_row_weight(a, row, state, factor, real_at(a.normalizer, 0));
    counted[0] = factor * weight;
    if (is_bad(state)) {
      count(&a.error_counts[state == RowState::kBadLabel ? kBadLabels : kBadChunks], 1);
      raise_to(&a.counters[kFirstBadRow], rows - row);
    }
  }
  const int64_t front = append(&a.counters[kWorkRows], exists && is_read(state));
  if (front >= 0) a.rows[front] = row;
  const int64_t back = append(&a.counters[kIdleRows], exists && !is_read(state));
  if (back >= 0) a.rows[rows - 1 - back] = row;

  if (from == Denominator::kTotal) {
    reduce.sum(counted);
    if (threadIdx.x == 0) a.weight_parts[blockIdx.x] = counted[0];
  }

  // Rows ascend with the lanes: the first and last lane of each chunk speak for the others.
  const bool in_use = exists && (state == RowState::kCounts || in_stats);
  const unsigned same =
      __match_any_sync(kFullWarp, static_cast<unsigned long long>(in_use ? chunk : -1));
  if (!in_use) return;
  if (__ffs(static_cast<int>(same)) - 1 == lane_of_thread())
    raise_to(&a.first_row[chunk], rows - row);
  if (31 - __clz(static_cast<int>(same)) == lane_of_thread()) raise_to(&a.end_row[chunk], row + 1);
}

__global__ void __launch_bounds__(kPlanThreads)
    chunk_loss_weigh_kernel(const ChunkLossArgs a, const int parts) {
  using Reduce = BlockReduce<double, 2>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const int64_t mine = blockIdx.x / parts, chunks = a.options.num_chunks;
  if (mine < chunks) {
    double sums[2] = {0, 0};  // weights, rows
    const RowRange range = rows_of_part(a, mine, static_cast<int>(blockIdx.x % parts), parts);
#pragma unroll 4
    for (int64_t t = range.begin + threadIdx.x; t < range.end; t += blockDim.x) {
      const bool counts = state_at(a, t) == RowState::kCounts && chunk_at(a, t) == mine;
      sums[0] += counts ? real_at(a.token_weight, t) : 0;
      sums[1] += counts;
    }
    reduce.sum(sums);
    if (threadIdx.x == 0) {
      a.weight_parts[2 * int64_t(blockIdx.x)] = sums[0];
      a.weight_parts[2 * int64_t(blockIdx.x) + 1] = sums[1];
    }
  }
  if (!is_last_block(&a.counters[kWeighBlocks], gridDim.x)) return;
  double total[1] = {0};
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x) {
    double weights = 0, rows = 0;
    for (int64_t p = c * parts; p < (c + 1) * parts; ++p) {
      weights += a.weight_parts[2 * p];
      rows += a.weight_parts[2 * p + 1];
    }
    const double chunk_weight = real_at(a.active, c);
    if (rows > 0) total[0] += chunk_weight;
    a.chunk_factor[c] = chunk_factor(kChunkMean, chunk_weight, weights);
  }
  reduce.sum(total);
  const bool own = a.normalizer.type == RealType::kNone;
  if (threadIdx.x == 0) *a.denominator = own ? total[0] : real_at(a.normalizer, 0);
}

// plan_blocks: of chunk_loss_plan_kernel
__global__ void __launch_bounds__(kPlanThreads)
    chunk_loss_row_weight_kernel(const ChunkLossArgs a, const int plan_blocks) {
  using Reduce = BlockReduce<double, 1>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const bool of_chunks = denominator_of(a) == Denominator::kOfChunks;
  double total[1] = {0};
  if (!of_chunks) {
    for (int i = threadIdx.x; i < plan_blocks; i += blockDim.x) total[0] += a.weight_parts[i];
    reduce.sum(total);
  }
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= a.layout.rows) return;
  const RowState state = state_at(a, row);
  double factor = 0;
  if (state == RowState::kCounts) {
    const int64_t chunk = chunk_at(a, row);
    factor = of_chunks ? a.chunk_factor[chunk] : real_at(a.active, chunk);
  }
  write_row_weight(a, row, state, factor, of_chunks ? *a.denominator : total[0]);
}

}  // namespace cwt
