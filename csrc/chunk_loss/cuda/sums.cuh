// chunk_loss, after the rows: what a chunk's rows add up to.
//
// chunk_mean_grad_kernel   ||sum_t g_t||^2 of a chunk, in parts: one block per (chunk, tile of
//                          columns). A thread owns the columns of one pack of 16 bytes and keeps
//                          their sums in registers while it walks through the chunk's rows in
//                          ascending order, so there is no (C, V) buffer and no atomic. Reads the
//                          logits of the chunk's rows once more: b V bytes a row.
// chunk_loss_sum_kernel    one block per chunk: the statistics and the loss of its rows, in double
//                          and in a fixed order; the last block to finish adds up the loss.
#pragma once

#include "rows.cuh"

namespace cwt {

constexpr int kMeanThreads = 256;
constexpr int kSumThreads = 256;

// Lists the rows of [begin, begin + blockDim.x) that belong to the chunk's statistics and were
// read, ascending. Returns how many. Ends with a barrier.
__device__ __forceinline__ int list_rows(const ChunkLossArgs& a, int64_t chunk, int64_t begin,
                                         int64_t end, int64_t* list, int* warp_counts) {
  const int64_t t = begin + threadIdx.x;
  const bool mine = t < end && (a.states[t] & kInStats) != 0 && is_read(state_at(a, t)) &&
                    chunk_at(a, t) == chunk;
  const unsigned lanes = __ballot_sync(kFullWarp, mine);
  if (lane_of_thread() == 0) warp_counts[warp_of_thread()] = __popc(lanes);
  __syncthreads();  // also: every thread has done with the list of the previous call
  int before = 0, total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (w < warp_of_thread()) before += warp_counts[w];
    total += warp_counts[w];
  }
  if (mine) list[before + __popc(lanes & ((1u << lane_of_thread()) - 1))] = t;
  __syncthreads();
  return total;
}

template <typename scalar_t>
__global__ void __launch_bounds__(kMeanThreads)
    chunk_mean_grad_kernel(const ChunkLossArgs a, const int tiles) {
  using acc_t = typename AccOf<scalar_t>::type;
  using Reduce = BlockReduce<double, 1>;
  constexpr int kSize = Pack<scalar_t>::kSize;
  CWT_SHARED(int64_t, list, kMeanThreads);
  CWT_SHARED(int, warp_counts, kMaxWarps);
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const int64_t chunk = blockIdx.x / tiles, rows = a.layout.rows, stride = a.layout.vocab_stride;
  const int vocab = static_cast<int>(a.layout.vocab);
  const int column = static_cast<int>(blockIdx.x % tiles * blockDim.x + threadIdx.x) * kSize;
  const acc_t* sums = static_cast<const acc_t*>(a.row_sums);                            // (3, N)
  const acc_t* logsumexp = static_cast<const acc_t*>(a.row_stats) + kLogsumexp * rows;  // (N)
  acc_t total[kSize] = {};
  const int64_t end = a.end_row[chunk];
  for (int64_t begin = rows - a.first_row[chunk]; begin < end; begin += blockDim.x) {
    const int count = list_rows(a, chunk, begin, end, list, warp_counts);
    for (int r = 0; r < count; ++r) {
      const int64_t t = list[r];
      const scalar_t* x = static_cast<const scalar_t*>(a.logits) + a.layout.row(t);
      GradientOf<acc_t> g{sums[t], sums[rows + t],       sums[2 * rows + t],           1,
                          0,       softcap_of<acc_t>(a), static_cast<int>(a.labels[t])};
      g.apply(a, logsumexp[t]);
      const bool whole = stride == 1 && column + kSize <= vocab &&
                         (reinterpret_cast<uintptr_t>(x + column) & 15) == 0;
      if (whole) {
        const Pack<scalar_t> pack =
            unpack<scalar_t>(load_stream(reinterpret_cast<const Bits128*>(x + column)));
#pragma unroll
        for (int k = 0; k < kSize; ++k) total[k] += g.general(widen(pack.value[k]), column + k);
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k)
          if (column + k < vocab)
            total[k] += g.general(widen(x[(column + k) * stride]), column + k);
      }
    }
  }
  double square[1] = {0};
#pragma unroll
  for (int k = 0; k < kSize; ++k) square[0] += static_cast<double>(total[k]) * total[k];
  reduce.sum(square);
  if (threadIdx.x == 0) a.tile_square[blockIdx.x] = square[0];
}

template <typename acc_t>
__device__ __forceinline__ void write_chunk(const ChunkLossArgs& a, int64_t chunk,
                                            const double (&sums)[kNumChunkStats],
                                            double square_of_sum) {
  acc_t* out = static_cast<acc_t*>(a.chunk_stats) + chunk;  // (7, C)
  const double tokens = sums[kTokens];
  for (int s = 0; s < kMeanGradNorm; ++s)
    out[s * a.options.num_chunks] = static_cast<acc_t>(sums[s]);
  // A bad row has NaN statistics, and so has the mean that it should be part of.
  const bool spoilt = !(sums[kNllSum] == sums[kNllSum]);
  const double mean = tokens > 0 ? sqrt(square_of_sum) / tokens : 0;
  out[kMeanGradNorm * a.options.num_chunks] = static_cast<acc_t>(!a.options.mean_grad_norm ? 0
                                                                 : spoilt                  ? NAN
                                                                                           : mean);
}

template <typename acc_t>
__global__ void __launch_bounds__(kSumThreads)
    chunk_loss_sum_kernel(const ChunkLossArgs a, const int tiles) {
  using Reduce = BlockReduce<double, kNumChunkStats + 1>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const int64_t mine = blockIdx.x, chunks = a.options.num_chunks, rows = a.layout.rows;
  if (mine < chunks) {
    double sums[kNumChunkStats + 1] = {};  // the place of kMeanGradNorm holds the loss
    const acc_t* stats = static_cast<const acc_t*>(a.row_stats);
    const int64_t end = a.end_row[mine];
    for (int64_t t = rows - a.first_row[mine] + threadIdx.x; t < end; t += blockDim.x) {
      if (chunk_at(a, t) != mine) continue;
      if (state_at(a, t) == RowState::kCounts)
        sums[kMeanGradNorm] += static_cast<const acc_t*>(a.row_loss)[t];
      if ((a.states[t] & kInStats) == 0) continue;
      const double norm = stats[kGradNorm * rows + t];
      sums[kTokens] += 1;
      sums[kNllSum] += stats[kNll * rows + t];
      sums[kCorrectSum] += stats[kCorrect * rows + t];
      sums[kEntropySum] += stats[kEntropy * rows + t];
      sums[kGradNormSum] += norm;
      sums[kGradSqSum] += norm * norm;
    }
    for (int64_t i = threadIdx.x; i < tiles; i += blockDim.x)
      sums[kNumChunkStats] += a.tile_square[mine * tiles + i];
    reduce.sum(sums);
    if (threadIdx.x == 0) {
      double own[kNumChunkStats];
      for (int s = 0; s < kNumChunkStats; ++s) own[s] = sums[s];
      write_chunk<acc_t>(a, mine, own, sums[kNumChunkStats]);
      a.chunk_loss[mine] = sums[kMeanGradNorm];
    }
  }
  if (!is_last_block(&a.counters[kSumBlocks]) || a.options.reduction == kNone) return;
  double total[1] = {0};
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x) total[0] += a.chunk_loss[c];
  reduce.sum(total);
  const bool bad = a.errors[kBadLabels] + a.errors[kBadChunks] > 0;
  if (threadIdx.x == 0)
    static_cast<acc_t*>(a.loss)[0] = bad ? acc_t(NAN) : static_cast<acc_t>(total[0]);
}

}  // namespace cwt
