// What chunk_loss_cuda.cpp hands to the kernels: pointers, shapes and options; no torch, no CUDA
// syntax. The launchers are in launch.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "../contract.h"

namespace cwt {

enum class LogitsType : int8_t { kHalf, kBFloat16, kFloat, kDouble };
enum class RealType : int8_t { kNone, kBool, kFloat, kDouble };

// An optional array of numbers on the device; kNone stands for ones.
struct RealArray {
  const void* data;
  RealType type;
};

// What the launcher must know of the device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;  // the opt-in maximum
  int block_threads;           // threads of most blocks; 0 lets the launcher choose
  bool clusters;               // blocks can be launched in clusters: sm_90 and later
};

// Words of zeroed memory that the kernels count in.
enum Counter {
  kWorkRows,      // rows with something to read: the front of `rows`
  kIdleRows,      // the others: the back of `rows`, from the end
  kFirstBadRow,   // N - t of the first bad row t; 0: none
  kWeighBlocks,   // blocks of chunk_loss_weigh_kernel that are done
  kSumBlocks,     // blocks of chunk_loss_sum_kernel that are done
  kNextRow,       // rows of the work list taken by chunk_loss_cluster_kernel beyond one a cluster
  kNextRowAgain,  // the same, where the kernel runs twice
  kNumCounters
};

struct ChunkLossArgs {
  ChunkLossOptions options;
  double inverse_softcap;      // 1 / softcap, 0 for none
  double smoothing_per_logit;  // label_smoothing / V
  RowLayout layout;            // of the logits
  RowLayout grad_layout;       // vocab_stride 1
  LogitsType type;
  bool wide_chunk_ids;     // int64, else int32
  const void* logits;      // null in chunk_loss_plan, like loss, row_stats, chunk_stats and grad
  const int64_t* labels;   // (N)
  const void* chunk_ids;   // (N)
  RealArray active;        // (C)
  RealArray token_weight;  // (N)
  RealArray normalizer;    // ()
  void* loss;              // () or (N)        acc
  void* row_stats;         // (5, N)           acc
  void* chunk_stats;       // (7, C)           acc
  int64_t* errors;         // (2 + C); null in chunk_loss_plan
  void* row_weight;        // (N)              acc
  int8_t* row_state;       // (N) RowState, or null: chunk_loss_plan only
  void* grad;              // logits' shape and dtype, or null; may be `logits`

  // Workspace; the launcher zeroes what lies before `rows`.
  int64_t* counters;      // (kNumCounters)
  int64_t* first_row;     // (C) N - t of the chunk's first row in use, 0: none
  int64_t* end_row;       // (C) 1 + the chunk's last row in use
  int64_t* error_counts;  // (2 + C) `errors`; null: they have been counted
  int64_t* chunk_parts;   // (C) parts of the chunk that are added up
  int64_t* tile_slabs;    // (C, tiles) slabs of the tile that are added up
  int64_t* next_row;      // () kNextRow or kNextRowAgain of `counters`
  int64_t* rows;          // (N) work list, see Counter
  double* weight_parts;   // token_mean: (plan's blocks); chunk_mean: (C, parts, 2)
  double* chunk_factor;   // (C) see row_weight in contract.h; chunk_mean only
  double* denominator;    // (); chunk_mean only
  double* sum_parts;      // (C, parts, kNumChunkStats)
  double* chunk_loss;     // (C) sum of row_loss
  double* tile_square;    // (C, tiles) mean_grad_norm only
  void* slab_sums;        // (C, tiles, slabs, columns of a tile) mean_grad_norm only, acc
  void* row_loss;         // (N) row_weight * l, acc
  void* row_sums;         // (3, N) shift, p_scale, g_y; mean_grad_norm only, acc
  uint8_t* states;        // (N) RowState, plus kInStats
};

constexpr uint8_t kInStats = 16;  // the row is part of its chunk's statistics

// Bytes of workspace that a call needs, and its division among the pointers above.
size_t chunk_loss_workspace_bytes(const ChunkLossArgs& args);
void bind_chunk_loss_workspace(ChunkLossArgs& args, void* workspace);

// Looks at labels, ids and weights only: states, work list, row_weight, errors[0..1], and the
// results of rows that are not read.
void launch_chunk_loss_plan(const ChunkLossArgs& args, const DeviceLimits& device,
                            cudaStream_t stream);

// Everything else. Must follow launch_chunk_loss_plan on the same stream.
void launch_chunk_loss(const ChunkLossArgs& args, const DeviceLimits& device, cudaStream_t stream);

struct ChunkLossBackwardArgs {
  LogitsType type;
  RowLayout from_layout, to_layout;  // vocab_stride 1 (to), any (from)
  const void* from;                  // (N, V)
  void* to;                          // (N, V); `from` itself for the in-place operator
  const void* row_weight;            // (N)         acc
  const void* grad_output;           // () or (N)   acc
  bool per_row;                      // grad_output is (N)
};

void launch_chunk_loss_backward(const ChunkLossBackwardArgs& args, const DeviceLimits& device,
                                cudaStream_t stream);

}  // namespace cwt
