// chunk_loss, after the rows: what a chunk's rows add up to.
//
// chunk_mean_grad_kernel   ||sum_t g_t||^2 of a chunk, in parts: one block per (chunk, tile of
//                          columns, slab of rows). A thread owns the columns of one pack of 16 bytes
//                          and keeps their sums in registers while it walks through the slab in
//                          ascending order, kMeanRows rows in flight. The last block of a tile adds
//                          up its slabs in order, so there is no atomic addition. Reads the logits
//                          of the chunk's rows once more: b V bytes a row.
// chunk_loss_sum_kernel    one block per (chunk, part of its rows): their statistics and loss, in
//                          double and in a fixed order; the last block of a chunk adds up its parts,
//                          the last block of all the loss.
#pragma once

#include "rows.cuh"

namespace cwt {

constexpr int kMeanThreads = 256;
constexpr int kSumThreads = 256;
#if __CUDA_ARCH__ >= 1000
constexpr int kMeanRows = 4;  // ptxas needs more registers there
#else
constexpr int kMeanRows = 8;
#endif

// What the gradient of a row is made from, and where its logits are.
template <typename acc_t>
struct ListedRow {
  int64_t at;  // elements from the first logit
  acc_t shift, p_scale, g_y, p_factor;
  acc_t unit, c, scale;  // without softcap and smoothing g_j = scale base^(unit x_j - c) for j != y
  int label;
};

// Whether g_j is a multiple of p_j for j != y.
__device__ __forceinline__ bool is_multiple_of_p(const ChunkLossOptions& o) {
  return o.softcap == 0 && o.label_smoothing == 0;
}

// Lists the rows of [begin, begin + blockDim.x) that belong to the chunk's statistics and were
// read, ascending. Returns how many. Ends with a barrier.
template <typename acc_t>
__device__ __forceinline__ int list_rows(const ChunkLossArgs& a, int64_t chunk, int64_t begin,
                                         int64_t end, ListedRow<acc_t>* list, int* warp_counts) {
  const int64_t t = begin + threadIdx.x, rows = a.layout.rows;
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
  if (mine) {
    const acc_t* sums = static_cast<const acc_t*>(a.row_sums) + t;  // (3, N)
    GradientOf<acc_t> g{sums[0],
                        sums[rows],
                        sums[2 * rows],
                        1,
                        0,
                        softcap_of<acc_t>(a),
                        static_cast<int>(a.labels[t])};
    g.apply(a, static_cast<const acc_t*>(a.row_stats)[kLogsumexp * rows + t]);
    const Scale<acc_t> at(g.shift);
    const acc_t scale = g.p_factor * g.p_scale * Exponent<acc_t>::power(-at(g.shift));
    list[before + __popc(lanes & ((1u << lane_of_thread()) - 1))] = {
        a.layout.row(t), g.shift, g.p_scale, g.g_y, g.p_factor, at.unit, at.c, scale, g.label};
  }
  __syncthreads();
  return total;
}

// The pack of a row from `column` on, with -inf past the row's end: it adds nothing.
template <typename scalar_t>
__device__ __forceinline__ Bits128 pack_at(const scalar_t* x, int column, int vocab,
                                           int64_t stride) {
  constexpr int kSize = Pack<scalar_t>::kSize;
  if (stride == 1 && column + kSize <= vocab && (reinterpret_cast<uintptr_t>(x + column) & 15) == 0)
    return load_stream(reinterpret_cast<const Bits128*>(x + column));
  Pack<scalar_t> pack;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    narrow(-INFINITY, pack.value[k]);
    if (column + k < vocab) pack.value[k] = x[(column + k) * stride];
  }
  return bits_of(pack);
}

// Calls add(row, pack) for `count` listed rows, kRows loads at a time.
template <int kRows, typename scalar_t, typename acc_t, typename add_t>
__device__ __forceinline__ void for_listed(const ChunkLossArgs& a, const ListedRow<acc_t>* list,
                                           int count, int column, const add_t& add) {
  const scalar_t* logits = static_cast<const scalar_t*>(a.logits);
  for (int r = 0; r < count; r += kRows) {
    Bits128 bits[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u)
      if (r + u < count)
        bits[u] = pack_at(logits + list[r + u].at, column, static_cast<int>(a.layout.vocab),
                          a.layout.vocab_stride);
#pragma unroll
    for (int u = 0; u < kRows; ++u)
      if (r + u < count) add(list[r + u], bits[u]);
  }
}

// Adds the gradients of `count` listed rows to the sums of this thread's columns. Where they are
// multiples of p, a logit takes four instructions: widen, two multiply-adds, a power of two.
template <typename scalar_t, typename acc_t, int kSize>
__device__ __forceinline__ void add_gradients(const ChunkLossArgs& a, const ListedRow<acc_t>* list,
                                              int count, int column, acc_t (&total)[kSize]) {
  using Exp = Exponent<acc_t>;
  if (is_multiple_of_p(a.options)) {
    for_listed<kMeanRows, scalar_t>(
        a, list, count, column, [&](const ListedRow<acc_t>& row, const Bits128& bits) {
          acc_t x[kSize];
          widen_pack<scalar_t>(bits, x);
          const unsigned label = static_cast<unsigned>(row.label - column);
          if (label < kSize) {
#pragma unroll
            for (int k = 0; k < kSize; ++k)
              if (k == static_cast<int>(label)) {
                x[k] = -INFINITY;
                total[k] += row.g_y;
              }
          }
#pragma unroll
          for (int k = 0; k < kSize; ++k)
            total[k] += row.scale * Exp::power(Exp::fused(x[k], row.unit, -row.c));
        });
    return;
  }
  for_listed<4, scalar_t>(a, list, count, column,
                          [&](const ListedRow<acc_t>& row, const Bits128& bits) {
                            const GradientOf<acc_t> g{row.shift,
                                                      row.p_scale,
                                                      row.g_y,
                                                      row.p_factor,
                                                      static_cast<acc_t>(a.smoothing_per_logit),
                                                      softcap_of<acc_t>(a),
                                                      row.label};
                            acc_t x[kSize];
                            widen_pack<scalar_t>(bits, x);
#pragma unroll
                            for (int k = 0; k < kSize; ++k)
                              if (column + k < static_cast<int>(a.layout.vocab))
                                total[k] += g.general(x[k], column + k);
                          });
}

template <typename scalar_t>
__global__ void __launch_bounds__(kMeanThreads, 2)
    chunk_mean_grad_kernel(const ChunkLossArgs a, const int tiles, const int slabs) {
  using acc_t = typename AccOf<scalar_t>::type;
  using Reduce = BlockReduce<double, 1>;
  constexpr int kSize = Pack<scalar_t>::kSize;
  CWT_SHARED(ListedRow<acc_t>, list, kMeanThreads);
  CWT_SHARED(int, warp_counts, kMaxWarps);
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  Reduce reduce(shared);
  const int64_t chunk_tile = blockIdx.x / slabs, chunk = chunk_tile / tiles;
  const int slab = static_cast<int>(blockIdx.x % slabs);
  const int column = static_cast<int>(chunk_tile % tiles * blockDim.x + threadIdx.x) * kSize;
  const RowRange range = rows_of_part(a, chunk, slab, slabs);
  acc_t total[kSize] = {};
  for (int64_t begin = range.begin; begin < range.end; begin += blockDim.x) {
    const int count = list_rows(a, chunk, begin, range.end, list, warp_counts);
    add_gradients<scalar_t>(a, list, count, column, total);
  }
  if (slabs > 1) {
    acc_t* sums = static_cast<acc_t*>(a.slab_sums) + threadIdx.x * kSize;
    const int64_t size = blockDim.x * kSize, first = chunk_tile * slabs;
#pragma unroll
    for (int k = 0; k < kSize; ++k) sums[(first + slab) * size + k] = total[k];
    if (!is_last_block(&a.tile_slabs[chunk_tile], slabs)) return;
#pragma unroll
    for (int k = 0; k < kSize; ++k) total[k] = 0;
    for (int s = 0; s < slabs; ++s) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) total[k] += sums[(first + s) * size + k];
    }
  }
  double square[1] = {0};
#pragma unroll
  for (int k = 0; k < kSize; ++k) square[0] += static_cast<double>(total[k]) * total[k];
  reduce.sum(square);
  if (threadIdx.x == 0) a.tile_square[chunk_tile] = square[0];
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
    chunk_loss_sum_kernel(const ChunkLossArgs a, const int parts, const int tiles) {
  using Reduce = BlockReduce<double, kNumChunkStats>;
  CWT_SHARED(double, shared, 2 * Reduce::kBuffer);
  CWT_SHARED(double, whole, kNumChunkStats);
  Reduce reduce(shared);
  const int64_t mine = blockIdx.x / parts, chunks = a.options.num_chunks, rows = a.layout.rows;
  if (mine < chunks) {
    double sums[kNumChunkStats] = {};  // the place of kMeanGradNorm holds the loss
    const acc_t* stats = static_cast<const acc_t*>(a.row_stats);
    const RowRange range = rows_of_part(a, mine, static_cast<int>(blockIdx.x % parts), parts);
#pragma unroll 2
    for (int64_t t = range.begin + threadIdx.x; t < range.end; t += blockDim.x) {
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
    reduce.sum(sums);
    double* own = a.sum_parts + int64_t(blockIdx.x) * kNumChunkStats;
    if (threadIdx.x == 0)
      for (int s = 0; s < kNumChunkStats; ++s) own[s] = sums[s];
    if (is_last_block(&a.chunk_parts[mine], parts)) {
      if (threadIdx.x < kNumChunkStats) {
        double total = 0;
        for (int p = 0; p < parts; ++p)
          total += a.sum_parts[(mine * parts + p) * kNumChunkStats + threadIdx.x];
        whole[threadIdx.x] = total;
      }
      double square[1] = {0};
      for (int i = threadIdx.x; i < tiles; i += blockDim.x)
        square[0] += a.tile_square[mine * tiles + i];
      reduce.sum(square);  // with a barrier: `whole` is written
      if (threadIdx.x == 0) {
        write_chunk<acc_t>(a, mine, whole, square[0]);
        a.chunk_loss[mine] = whole[kMeanGradNorm];
        a.errors[kNumErrorCounts + mine] = a.error_counts[kNumErrorCounts + mine];
      }
    }
  }
  if (!is_last_block(&a.counters[kSumBlocks], gridDim.x)) return;
  const bool bad = a.error_counts[kBadLabels] + a.error_counts[kBadChunks] > 0;
  if (threadIdx.x < kNumErrorCounts) a.errors[threadIdx.x] = a.error_counts[threadIdx.x];
  if (a.options.reduction == kNone) return;
  double total[1] = {0};
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x) total[0] += a.chunk_loss[c];
  reduce.sum(total);
  if (threadIdx.x == 0)
    static_cast<acc_t*>(a.loss)[0] = bad ? acc_t(NAN) : static_cast<acc_t>(total[0]);
}

}  // namespace cwt
