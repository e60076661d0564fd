// Launchers of chunk_loss: dtype, block shape, grid, order of the kernels. The kernels are in
// plan.cuh, rows.cuh and sums.cuh, each with its formulas and bytes. Nothing here waits for the
// device.
#include <algorithm>
#include <stdexcept>

#include "sums.cuh"

namespace cwt {
namespace {

constexpr int64_t kMaxGrid = 0x7fffffff;
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

int64_t mean_tiles(const ChunkLossArgs& a) {
  const int64_t size = a.type == LogitsType::kDouble ? 2 : a.type == LogitsType::kFloat ? 4 : 8;
  return a.options.mean_grad_norm ? ceil_div(a.layout.vocab, kMeanThreads * size) : 0;
}

// The shape of a row's block. Loss alone: enough threads for 16 packs each, at most 512, so that
// several rows share a multiprocessor and one's reduction hides behind the others' loads. With a
// gradient: 8 packs, and all 1024 threads where the row takes more than half of the shared memory.
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
void launch_rows(const ChunkLossArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const bool second_pass = kMode == RowMode::kGradient || (kMode == RowMode::kGeneral && a.grad);
  const RowShape shape =
      row_shape(a.layout.vocab, sizeof(scalar_t), second_pass, max_row_threads(kMode), device);
  auto* kernel = &chunk_loss_rows_kernel<scalar_t, kMode>;
  const int blocks = resident_blocks(kernel, shape.threads, shape.shared_bytes());
  const int64_t grid = std::min<int64_t>(a.layout.rows, int64_t(blocks) * device.multiprocessors);
  CWT_LAUNCH(kernel, dim3(grid_of(grid)), dim3(shape.threads), shape.shared_bytes(), stream, a,
             shape.cached);
}

template <typename scalar_t>
void launch_rows_of(const ChunkLossArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const ChunkLossOptions& o = a.options;
  const bool plain = o.label_smoothing == 0 && o.z_loss == 0 && o.softcap == 0;
  if constexpr (sizeof(scalar_t) == 8) {
    launch_rows<scalar_t, RowMode::kGeneral>(a, device, stream);  // speed is no aim of float64
  } else {
    if (!plain)
      launch_rows<scalar_t, RowMode::kGeneral>(a, device, stream);
    else if (a.grad)
      launch_rows<scalar_t, RowMode::kGradient>(a, device, stream);
    else
      launch_rows<scalar_t, RowMode::kLoss>(a, device, stream);
  }
}

template <typename scalar_t>
void launch_all(const ChunkLossArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const int64_t chunks = std::max<int64_t>(a.options.num_chunks, 1), tiles = mean_tiles(a);
  const bool mean = a.options.mean_grad_norm && a.options.num_chunks > 0;
  ChunkLossArgs rows = a;
  if (mean && a.grad == a.logits) {
    // The gradient is going to overwrite what the mean gradient is made from: that comes first.
    rows.grad = nullptr;
    launch_rows_of<scalar_t>(rows, device, stream);
    rows.grad = a.grad;
    rows.errors = nullptr;  // counted already
  } else {
    launch_rows_of<scalar_t>(rows, device, stream);
  }
  if (mean)
    CWT_LAUNCH(chunk_mean_grad_kernel<scalar_t>, dim3(grid_of(chunks * tiles)), dim3(kMeanThreads),
               0, stream, a, static_cast<int>(tiles));
  if (rows.errors == nullptr) launch_rows_of<scalar_t>(rows, device, stream);
  CWT_LAUNCH(chunk_loss_sum_kernel<typename AccOf<scalar_t>::type>, dim3(grid_of(chunks)),
             dim3(small_block(kSumThreads, device)), 0, stream, a, static_cast<int>(tiles));
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
  const int64_t n = a.layout.rows, chunks = a.options.num_chunks;
  const size_t acc = a.type == LogitsType::kDouble ? 8 : 4;
  Carver carver(workspace);
  carver.take(a.counters, kNumCounters);
  carver.take(a.first_row, chunks);
  carver.take(a.end_row, chunks);
  if (zeroed) *zeroed = carver.used();
  carver.take(a.rows, n);
  carver.take(a.chunk_weight_sum, chunks);
  carver.take(a.chunk_present, chunks);
  carver.take(a.chunk_factor, chunks);
  carver.take(a.denominator, 1);
  carver.take(a.chunk_loss, chunks);
  carver.take(a.tile_square, chunks * mean_tiles(a));
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
  zero_memory(args.errors, sizeof(int64_t) * (kNumErrorCounts + args.options.num_chunks), stream);
  const int threads = small_block(kPlanThreads, device);
  const dim3 rows(grid_of(ceil_div(args.layout.rows, threads)));
  const dim3 chunks(grid_of(args.options.num_chunks)), block(threads);
  CWT_LAUNCH(chunk_loss_plan_kernel, rows, block, 0, stream, args);
  CWT_LAUNCH(chunk_loss_weigh_kernel, chunks, block, 0, stream, args);
  CWT_LAUNCH(chunk_loss_row_weight_kernel, rows, block, 0, stream, args);
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
