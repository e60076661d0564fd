// Launchers of chunk_loss: dtype, block shape, grid, order of the kernels. The kernels are in
// plan.cuh, rows.cuh, rows_cluster.cuh and sums.cuh, each with its formulas and bytes. Nothing here
// waits for the device.
#include <algorithm>
#include <stdexcept>

#include "rows_cluster.cuh"
#include "sums.cuh"

namespace cwt {
namespace {

constexpr int64_t kMaxGrid = 0x7fffffff;
constexpr int kLossThreads = 64;
constexpr int kStaticShared = 4096;  // more than any row kernel keeps in shared memory by itself

template <typename run_t>
void for_logits_type(LogitsType type, const run_t& run) {
  switch (type) {
    case LogitsType::kHalf:
      return run(__half());
    case LogitsType::kBFloat16:
      return run(__nv_bfloat16());
    case LogitsType::kFloat:
      return run(float());
    case LogitsType::kDouble:
      return run(double());
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid_of(int64_t blocks) {
  if (blocks > kMaxGrid)
    throw std::invalid_argument("chunk_loss: more than 2^31 blocks are needed.");
  return static_cast<unsigned>(std::max<int64_t>(blocks, 1));
}

int small_block(int threads, const DeviceLimits& device) {
  return device.block_threads > 0 ? std::min(device.block_threads, threads) : threads;
}

int64_t pack_size(LogitsType type) {
  return type == LogitsType::kDouble ? 2 : type == LogitsType::kFloat ? 4 : 8;
}

// Blocks that share the rows of a chunk where rows are added up: parts of about 2048 rows, and no
// more blocks than a device is glad of. How sums are split depends on shapes only.
int64_t sum_parts(const ChunkLossArgs& a) {
  const int64_t most = 2048 / std::max<int64_t>(a.options.num_chunks, 1);
  return std::max<int64_t>(std::min(ceil_div(a.layout.rows, 2048), most), 1);
}

int64_t mean_tiles(const ChunkLossArgs& a) {
  if (!a.options.mean_grad_norm) return 0;
  return ceil_div(a.layout.vocab, kMeanThreads * pack_size(a.type));
}

int64_t mean_slabs(const ChunkLossArgs& a) {
  const int64_t tiles = std::max<int64_t>(a.options.num_chunks * mean_tiles(a), 1);
  return std::max<int64_t>(std::min(1024 / tiles, ceil_div(a.layout.rows, 64)), 1);
}

int64_t plan_blocks(const ChunkLossArgs& a, int threads) {
  return std::max<int64_t>(ceil_div(a.layout.rows, threads), 1);
}

// The shape of a row's block. Loss alone: two warps, so that many rows share a multiprocessor and
// one's reduction hides behind the others' loads. With a gradient: 8 packs a thread, at most 512
// threads, and all 1024 where the row takes more than half of the shared memory. Backward, and what
// reads a row under options: 16 packs, at most 512 threads.
struct RowShape {
  int threads;
  int cached;  // packs of each thread kept in shared memory
  size_t shared_bytes() const { return size_t(cached) * threads * sizeof(Bits128); }
};

RowShape row_shape(int64_t vocab, int64_t element, bool second_pass, int max_threads,
                   const DeviceLimits& device) {
  const int64_t packs = ceil_div(vocab * element, sizeof(Bits128));
  const int64_t shared = std::max(0, device.shared_bytes_per_block - kStaticShared);
  const bool alone = second_pass && packs * int64_t(sizeof(Bits128)) > shared / 2;
  int threads = 128;
  const int most = std::min(alone ? 1024 : 512, max_threads);
  while (threads < most && packs > threads * (second_pass ? 8 : 16)) threads *= 2;
  if (device.block_threads > 0) threads = device.block_threads;
  const int64_t fits = shared / (threads * int64_t(sizeof(Bits128)));
  return {threads, second_pass ? int(std::min(ceil_div(packs, threads), fits)) : 0};
}

template <typename scalar_t, RowMode kMode>
void launch_rows(const ChunkLossArgs& a, bool second_pass, const DeviceLimits& device,
                 cudaStream_t stream) {
  const RowShape shape = kMode == RowMode::kLoss
                             ? RowShape{small_block(kLossThreads, device), 0}
                             : row_shape(a.layout.vocab, sizeof(scalar_t), second_pass,
                                         max_row_threads(kMode), device);
  auto* kernel = &chunk_loss_rows_kernel<scalar_t, kMode>;
  const int blocks = resident_blocks(kernel, shape.threads, shape.shared_bytes());
  const int64_t grid = std::min<int64_t>(a.layout.rows, int64_t(blocks) * device.multiprocessors);
  CWT_LAUNCH(kernel, dim3(grid_of(grid)), dim3(shape.threads), shape.shared_bytes(), stream, a,
             shape.cached);
}

// Whether packs of a row of the logits and of its gradient begin at the same logits.
bool aligned_alike(const ChunkLossArgs& a, int64_t element) {
  const RowLayout &x = a.layout, &g = a.grad_layout;
  const auto same = [&](int64_t p, int64_t q) { return (p - q) * element % 16 == 0; };
  return (reinterpret_cast<uintptr_t>(a.logits) - reinterpret_cast<uintptr_t>(a.grad)) % 16 == 0 &&
         same(x.inner_stride, g.inner_stride) &&
         (x.rows <= x.inner || same(x.outer_stride, g.outer_stride));
}

// Evenly spaced rows as rows of a matrix: those of a matrix are found without a division.
RowLayout flat(RowLayout x) {
  if (x.outer_stride != x.inner * x.inner_stride) return x;
  x.inner = x.rows;
  x.outer_stride = 0;
  return x;
}

// Blocks that hold a slice of a row in their registers: 16 packs a thread, 512 threads of such blocks
// a multiprocessor.
#if defined(CWT_SIMT)
constexpr int kSliceThreads = 64, kSlicePacks = 8, kSliceOccupancy = 128;
#else
constexpr int kSliceThreads = 256, kSlicePacks = 16, kSliceOccupancy = 512;
#endif

struct SliceShape {
  int threads;  // kSliceThreads, or a half or a quarter
  ClusterShape cluster;
};

// How a row of so many packs is best cut; threads 0: it is too long. Registers that stay empty cost
// by their square, small blocks by what their exchanges take (points of a hundred, from measured
// shapes: benchmarks/README.md).
SliceShape slice_shape(int64_t packs) {
  constexpr struct {
    int threads, cost;
  } kBlocks[] = {{kSliceThreads, 0}, {kSliceThreads / 2, 150}, {kSliceThreads / 4, 600}};
  SliceShape best{0, {0, 0}};
  int64_t least = 0;
  for (const auto& block : kBlocks) {
    const int64_t most = block.threads * kSlicePacks,
                  cluster = std::max<int64_t>(ceil_div(packs, most), 1);
    if (cluster > (block.threads == kSliceThreads ? kMaxCluster : kPortableCluster)) continue;
    const int64_t empty = 100 - 100 * packs / (cluster * most);
    const int64_t cost = empty * empty / 2 + block.cost;
    if (best.threads != 0 && cost >= least) continue;
    least = cost;
    best = {block.threads, {static_cast<int>(cluster), static_cast<int>(ceil_div(packs, cluster))}};
  }
  return best;
}

// Returns whether this was built for clusters and the device can hold one; else nothing is launched.
template <typename scalar_t, int kThreads>
bool launch_slices(const ChunkLossArgs& a, const ClusterShape& shape, const DeviceLimits& device,
                   cudaStream_t stream) {
  auto* kernel =
      &chunk_loss_cluster_kernel<scalar_t, kThreads, kSliceOccupancy / kThreads, kSlicePacks>;
  if (!has_clusters(kernel)) return false;
  const size_t bytes = shape.shared_bytes(kThreads);
  const int64_t clusters =
      shape.cluster == 1
          ? int64_t(resident_blocks(kernel, kThreads, bytes)) * device.multiprocessors
          : resident_clusters(kernel, shape.cluster, kThreads, bytes);
  if (clusters == 0) return false;
  const int64_t grid = std::min<int64_t>(a.layout.rows, clusters);
  CWT_LAUNCH_CLUSTER(kernel, shape.cluster, dim3(grid_of(grid * shape.cluster)), dim3(kThreads),
                     bytes, stream, a, shape);
  return true;
}

// The gradient of rows that registers can hold. Returns whether these are such rows.
template <typename scalar_t>
bool launch_cluster_rows(const ChunkLossArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const int64_t packs = a.layout.vocab * int64_t(sizeof(scalar_t)) / int64_t(sizeof(Bits128));
  // A turn is 4 t + 3 at most. Shorter rows are as fast without.
  if (!device.clusters || a.layout.rows > kMaxGrid / 4 || packs < kSliceThreads) return false;
  const SliceShape shape = slice_shape(packs);
  switch (shape.threads) {
    case kSliceThreads:
      return launch_slices<scalar_t, kSliceThreads>(a, shape.cluster, device, stream);
    case kSliceThreads / 2:
      return launch_slices<scalar_t, kSliceThreads / 2>(a, shape.cluster, device, stream);
#if !defined(CWT_SIMT)
    case kSliceThreads / 4:
      return launch_slices<scalar_t, kSliceThreads / 4>(a, shape.cluster, device, stream);
#endif
    default:
      return false;
  }
}

// Which kernel works on the rows.
//
//   options                       task       rows                        kernel
//   softcap or label smoothing    any        any                         rows, kGeneral
//   float64                       any        any                         rows, kGeneral
//   none, or z-loss               gradient   unit stride, gradient       cluster, where the device
//                                            aligned like the logits     has them and holds the row
//   others, with z-loss           any        any                         rows, kGeneral
//   others                        any        any                         rows, kLoss or kGradient
//
// The loss alone gains nothing from registers: it looks at a logit once. `keep` leaves the logits as
// they are, where the gradient would take their place, and otherwise computes the same numbers in
// the same order.
template <typename scalar_t>
void launch_rows_of(ChunkLossArgs a, bool keep, const DeviceLimits& device, cudaStream_t stream) {
  const ChunkLossOptions& o = a.options;
  const bool gradient = a.grad != nullptr;
  const bool aligned = !gradient || aligned_alike(a, sizeof(scalar_t));
  a.layout = flat(a.layout);
  a.grad_layout = flat(a.grad_layout);
  if (keep) a.grad = nullptr;
  if constexpr (sizeof(scalar_t) == 8) {
    launch_rows<scalar_t, RowMode::kGeneral>(a, gradient, device,
                                             stream);  // speed is no aim of float64
  } else {
    const bool plain = o.label_smoothing == 0 && o.softcap == 0;
    if (plain && gradient && aligned && a.layout.vocab_stride == 1 &&
        launch_cluster_rows<scalar_t>(a, device, stream))
      return;
    if (!plain || o.z_loss > 0)
      launch_rows<scalar_t, RowMode::kGeneral>(a, gradient, device, stream);
    else if (gradient)
      launch_rows<scalar_t, RowMode::kGradient>(a, gradient, device, stream);
    else
      launch_rows<scalar_t, RowMode::kLoss>(a, gradient, device, stream);
  }
}

template <typename scalar_t>
void launch_all(const ChunkLossArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const int64_t chunks = std::max<int64_t>(a.options.num_chunks, 1), tiles = mean_tiles(a);
  const bool mean = a.options.mean_grad_norm && a.options.num_chunks > 0;
  // A gradient that takes the place of the logits has to wait until the mean gradient is made.
  const bool twice = mean && a.grad == a.logits;
  launch_rows_of<scalar_t>(a, twice, device, stream);
  if (mean) {
    const int64_t slabs = mean_slabs(a);
    CWT_LAUNCH(chunk_mean_grad_kernel<scalar_t>, dim3(grid_of(chunks * tiles * slabs)),
               dim3(kMeanThreads), 0, stream, a, static_cast<int>(tiles), static_cast<int>(slabs));
  }
  if (twice) {
    ChunkLossArgs again = a;
    again.next_row = a.counters + kNextRowAgain;
    again.error_counts = nullptr;  // counted already
    launch_rows_of<scalar_t>(again, false, device, stream);
  }
  const int64_t parts = sum_parts(a);
  CWT_LAUNCH(chunk_loss_sum_kernel<typename AccOf<scalar_t>::type>, dim3(grid_of(chunks * parts)),
             dim3(small_block(kSumThreads, device)), 0, stream, a, static_cast<int>(parts),
             static_cast<int>(tiles));
}

// Hands out parts of one piece of memory; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <typename value_t>
  void take(value_t*& pointer, int64_t count, size_t bytes = sizeof(value_t)) {
    pointer = base_ ? reinterpret_cast<value_t*>(base_ + used_) : nullptr;
    used_ += (size_t(count) * bytes + 15) / 16 * 16;
  }
  void take(void*& pointer, int64_t count, size_t bytes) {
    char* p = nullptr;
    take(p, count, bytes);
    pointer = p;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

size_t carve(ChunkLossArgs& a, void* workspace, size_t* zeroed = nullptr) {
  const int64_t n = a.layout.rows, chunks = a.options.num_chunks, parts = sum_parts(a);
  const int64_t tiles = mean_tiles(a), slabs = a.options.mean_grad_norm ? mean_slabs(a) : 0;
  const int64_t columns = kMeanThreads * pack_size(a.type);
  const size_t acc = a.type == LogitsType::kDouble ? 8 : 4;
  Carver carver(workspace);
  carver.take(a.counters, kNumCounters);
  a.next_row = a.counters + kNextRow;
  carver.take(a.first_row, chunks);
  carver.take(a.end_row, chunks);
  carver.take(a.error_counts, kNumErrorCounts + chunks);
  carver.take(a.chunk_parts, chunks);
  carver.take(a.tile_slabs, slabs > 1 ? chunks * tiles : 0);
  if (zeroed) *zeroed = carver.used();
  carver.take(a.rows, n);
  // A block of the plan has a warp at least.
  carver.take(a.weight_parts, std::max(2 * chunks * parts, plan_blocks(a, kWarp)));
  carver.take(a.chunk_factor, chunks);
  carver.take(a.denominator, 1);
  carver.take(a.sum_parts, chunks * parts * kNumChunkStats);
  carver.take(a.chunk_loss, chunks);
  carver.take(a.tile_square, chunks * tiles);
  carver.take(a.slab_sums, slabs > 1 ? chunks * tiles * slabs * columns : 0, acc);
  carver.take(a.row_loss, n, acc);
  carver.take(a.row_sums, a.options.mean_grad_norm ? 3 * n : 0, acc);
  carver.take(a.states, n);
  if (a.options.reduction == kNone) a.row_loss = a.loss;
  return carver.used();
}

}  // namespace

size_t chunk_loss_workspace_bytes(const ChunkLossArgs& args) {
  ChunkLossArgs copy = args;
  return carve(copy, nullptr);
}

void bind_chunk_loss_workspace(ChunkLossArgs& args, void* workspace) { carve(args, workspace); }

void launch_chunk_loss_plan(const ChunkLossArgs& args, const DeviceLimits& device,
                            cudaStream_t stream) {
  size_t zeroed = 0;
  ChunkLossArgs copy = args;
  carve(copy, args.counters, &zeroed);
  zero_memory(args.counters, zeroed, stream);
  const int threads = small_block(kPlanThreads, device);
  const dim3 rows(grid_of(plan_blocks(args, threads))), block(threads);
  CWT_LAUNCH(chunk_loss_plan_kernel, rows, block, 0, stream, args);
  const Denominator from = denominator_of(args);
  if (from == Denominator::kOfChunks) {
    const int64_t parts = sum_parts(args);
    CWT_LAUNCH(chunk_loss_weigh_kernel, dim3(grid_of(args.options.num_chunks * parts)), block, 0,
               stream, args, static_cast<int>(parts));
  }
  if (from != Denominator::kGiven)
    CWT_LAUNCH(chunk_loss_row_weight_kernel, rows, block, 0, stream, args,
               static_cast<int>(rows.x));
}

void launch_chunk_loss(const ChunkLossArgs& args, const DeviceLimits& device, cudaStream_t stream) {
  for_logits_type(args.type, [&](auto zero) { launch_all<decltype(zero)>(args, device, stream); });
}

void launch_chunk_loss_backward(const ChunkLossBackwardArgs& args, const DeviceLimits& device,
                                cudaStream_t stream) {
  for_logits_type(args.type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const RowShape shape =
        row_shape(args.from_layout.vocab, sizeof(scalar_t), false, kBackwardThreads, device);
    auto* kernel = &chunk_loss_backward_kernel<scalar_t>;
    const int blocks = resident_blocks(kernel, shape.threads, 0);
    const int64_t grid = int64_t(blocks) * device.multiprocessors;
    CWT_LAUNCH(kernel, dim3(grid_of(std::min(args.from_layout.rows, grid))), dim3(shape.threads), 0,
               stream, args);
  });
}

}  // namespace cwt
