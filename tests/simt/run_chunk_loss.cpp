// Runs the kernels of csrc/chunk_loss/cuda/launch.cu on this CPU. Reads cases from standard input
// and writes their results to standard output; tests/simt/harness.py is the other side of the pipe.
//
// Every case runs under several schedules; memory that a kernel should write holds different
// rubbish each time, so a result that depends on the schedule, or is never written, shows as a
// difference.
#include "../../csrc/chunk_loss/cuda/launch.cu"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

using namespace cwt;

enum Operator : int64_t { kForward, kBackward, kPlan };
enum GradMode : int64_t { kNoGrad, kOwnBuffer, kInPlace };

// Field by field what harness.py sends, as int64.
struct Header {
  int64_t op, type, wide_chunk_ids, rows, vocab, inner;
  int64_t outer_stride, inner_stride, vocab_stride, offset, elements;  // of the logits
  int64_t grad_mode, grad_outer_stride, grad_inner_stride, grad_offset, grad_elements;
  int64_t num_chunks, reduction, ignore_index, stats, mean_grad_norm;
  int64_t active_type, weight_type, normalizer_type;
  int64_t block_threads, shared_bytes, multiprocessors, schedules, per_row, grad_row_gap;
  int64_t clusters;  // the device has clusters
};
struct Options {
  double label_smoothing, z_loss, softcap;
};

void read_bytes(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) {
    std::fprintf(stderr, "run_chunk_loss: the input ends too early\n");
    std::exit(3);
  }
}

// Memory of exactly this size, `offset` bytes past a 16-byte boundary.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t offset = 0) : bytes_(bytes), offset_(offset) {
    if (posix_memalign(&base_, 16, bytes + offset + (bytes + offset == 0))) throw std::bad_alloc();
  }
  ~Buffer() { std::free(base_); }
  Buffer(const Buffer&) = delete;
  template <typename value_t = void>
  value_t* at(size_t byte = 0) {
    return reinterpret_cast<value_t*>(static_cast<char*>(base_) + offset_ + byte);
  }
  size_t size() const { return bytes_; }
  void read() { read_bytes(at(), bytes_); }
  void write() { std::fwrite(at(), 1, bytes_, stdout); }
  void fill(int byte) { std::memset(at(), byte, bytes_); }
  void copy(Buffer& from) { std::memcpy(at(), from.at(), bytes_); }

 private:
  void* base_ = nullptr;
  size_t bytes_, offset_;
};

size_t element_size(int64_t type) { return type == 3 ? 8 : type == 2 ? 4 : 2; }
size_t real_size(int64_t type) { return type == 0 ? 0 : type == 1 ? 1 : type == 2 ? 4 : 8; }

// Rows that must not be read: AddressSanitizer objects to any access.
void forbid(const RowLayout& layout, const std::vector<uint8_t>& rows, char* logits,
            size_t element) {
#if defined(__SANITIZE_ADDRESS__)
  for (int64_t t = 0; t < layout.rows; ++t)
    if (rows[t])
      __asan_poison_memory_region(logits + layout.row(t) * element, layout.vocab * element);
#else
  (void)layout, (void)rows, (void)logits, (void)element;
#endif
}

void report(const std::string& error, std::vector<Buffer*> results) {
  const int64_t length = error.size();
  std::fwrite(&length, 8, 1, stdout);
  std::fwrite(error.data(), 1, error.size(), stdout);
  if (error.empty())
    for (Buffer* b : results) b->write();
  std::fflush(stdout);
}

constexpr int kRubbish = 0xA5;

// Runs once per schedule; reports the first error, a difference between schedules, or the results.
template <typename run_t>
void all_schedules(int64_t schedules, std::vector<Buffer*> results, const run_t& run) {
  std::vector<std::unique_ptr<Buffer>> first;
  std::string error;
  for (int64_t s = 0; s < schedules && error.empty(); ++s) {
    for (Buffer* b : results) b->fill(kRubbish + 17 * int(s));
    simt::machine.seed = s;
    try {
      run();
    } catch (const std::exception& e) {
      error = "schedule " + std::to_string(s) + ": " + e.what();
    }
    for (size_t i = 0; i < results.size() && error.empty(); ++i) {
      if (s == 0) {
        first.push_back(std::make_unique<Buffer>(results[i]->size()));
        first[i]->copy(*results[i]);
      } else if (std::memcmp(first[i]->at(), results[i]->at(), results[i]->size()) != 0) {
        error =
            "result " + std::to_string(i) + " differs between schedules 0 and " + std::to_string(s);
      }
    }
  }
  report(error, results);
}

// Labels, ids and weights of a case, and what the kernels are told of them.
struct PlanBuffers {
  Buffer labels, ids, active, token_weight, normalizer;

  explicit PlanBuffers(const Header& h)
      : labels(h.rows * 8),
        ids(h.rows * (h.wide_chunk_ids ? 8 : 4)),
        active(h.num_chunks * real_size(h.active_type)),
        token_weight(h.rows * real_size(h.weight_type)),
        normalizer(real_size(h.normalizer_type)) {}

  void read() {
    for (Buffer* b : {&labels, &ids, &active, &token_weight, &normalizer}) b->read();
  }

  void describe(const Header& h, ChunkLossArgs& a) {
    a.wide_chunk_ids = h.wide_chunk_ids != 0;
    a.labels = labels.at<int64_t>();
    a.chunk_ids = ids.at();
    a.active = {active.at(), RealType(h.active_type)};
    a.token_weight = {token_weight.at(), RealType(h.weight_type)};
    a.normalizer = {normalizer.at(), RealType(h.normalizer_type)};
  }
};

// The kernels of the rows are launched under the name of a variable, `kernel`.
void check_grids(const Header& h, const DeviceLimits& device) {
  const int64_t least = std::min<int64_t>(h.rows, device.multiprocessors);
  for (const auto& [kernel, blocks] : simt::machine.launches)
    if (kernel == "kernel" && blocks < least)
      throw simt::Error("simt: " + std::to_string(blocks) + " blocks leave multiprocessors idle");
}

void run_forward(const Header& h, const DeviceLimits& device) {
  Options options;
  read_bytes(&options, sizeof options);
  const size_t element = element_size(h.type), acc = h.type == 3 ? 8 : 4;
  Buffer source(h.elements * element), logits(h.elements * element, h.offset * element);
  PlanBuffers plan(h);
  std::vector<uint8_t> forbidden(h.rows);
  source.read();
  plan.read();
  read_bytes(forbidden.data(), forbidden.size());

  Buffer loss((h.reduction == kNone ? h.rows : 1) * acc), row_stats(kNumRowStats * h.rows * acc);
  Buffer chunk_stats(kNumChunkStats * h.num_chunks * acc), errors((2 + h.num_chunks) * 8);
  Buffer row_weight(h.rows * acc), grad(h.grad_elements * element, h.grad_offset * element);
  ChunkLossArgs a{};
  a.options = {h.num_chunks,       Reduction(h.reduction),
               h.ignore_index,     options.label_smoothing,
               options.z_loss,     options.softcap,
               StatsMode(h.stats), h.mean_grad_norm != 0,
               h.grad_mode > 0,    false};
  a.inverse_softcap = options.softcap > 0 ? 1 / options.softcap : 0;
  a.smoothing_per_logit = options.label_smoothing / h.vocab;
  a.layout = {h.rows, h.vocab, h.inner, h.outer_stride, h.inner_stride, h.vocab_stride};
  a.grad_layout = {h.rows, h.vocab, h.inner, h.grad_outer_stride, h.grad_inner_stride, 1};
  a.type = LogitsType(h.type);
  plan.describe(h, a);
  a.logits = logits.at();
  a.loss = loss.at();
  a.row_stats = row_stats.at();
  a.chunk_stats = chunk_stats.at();
  a.errors = errors.at<int64_t>();
  a.row_weight = row_weight.at();
  if (h.grad_mode == kInPlace) a.grad_layout = a.layout;
  a.grad = h.grad_mode == kNoGrad ? nullptr : h.grad_mode == kInPlace ? logits.at() : grad.at();
  Buffer workspace(chunk_loss_workspace_bytes(a));
  bind_chunk_loss_workspace(a, workspace.at());
  forbid(a.layout, forbidden, logits.at<char>(), element);

  std::vector<Buffer*> results{&loss, &row_stats, &chunk_stats, &errors, &row_weight};
  if (h.grad_mode == kOwnBuffer) results.push_back(&grad);
  Buffer in_place(h.grad_mode == kInPlace ? logits.size() : 0);
  if (h.grad_mode == kInPlace) results.push_back(&in_place);
  all_schedules(h.schedules, results, [&] {
    workspace.fill(0x5A);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(logits.at(), logits.size());
#endif
    logits.copy(source);
    forbid(a.layout, forbidden, logits.at<char>(), element);
    if (h.grad_row_gap) grad.fill(kRubbish);  // nobody writes to the gaps
    launch_chunk_loss_plan(a, device, nullptr);
    simt::machine.launches.clear();
    launch_chunk_loss(a, device, nullptr);
    check_grids(h, device);
    if (h.grad_mode == kInPlace) in_place.copy(logits);
  });
}

void run_plan(const Header& h, const DeviceLimits& device) {
  PlanBuffers plan(h);
  plan.read();
  Buffer row_weight(h.rows * 8), state(h.rows);
  ChunkLossArgs a{};
  plan.describe(h, a);
  a.options.num_chunks = h.num_chunks;
  a.options.reduction = Reduction(h.reduction);
  a.options.ignore_index = h.ignore_index;
  a.options.stats = StatsMode(h.stats);
  a.layout.rows = h.rows;
  a.layout.vocab = h.vocab;
  a.type = LogitsType::kDouble;
  a.row_weight = row_weight.at();
  a.row_state = state.at<int8_t>();
  Buffer workspace(chunk_loss_workspace_bytes(a));
  bind_chunk_loss_workspace(a, workspace.at());
  all_schedules(h.schedules, {&row_weight, &state}, [&] {
    workspace.fill(0x5A);
    launch_chunk_loss_plan(a, device, nullptr);
  });
}

void run_backward(const Header& h, const DeviceLimits& device) {
  const size_t element = element_size(h.type), acc = h.type == 3 ? 8 : 4;
  Buffer source(h.elements * element), from(h.elements * element, h.offset * element);
  Buffer row_weight(h.rows * acc), grad_output((h.per_row ? h.rows : 1) * acc);
  for (Buffer* b : {&source, &row_weight, &grad_output}) b->read();
  Buffer to(h.elements * element, h.grad_offset * element);
  const RowLayout layout{h.rows, h.vocab, h.inner, h.outer_stride, h.inner_stride, 1};
  const bool in_place = h.grad_mode == kInPlace;
  const ChunkLossBackwardArgs a{LogitsType(h.type),
                                layout,
                                layout,
                                from.at(),
                                in_place ? from.at() : to.at(),
                                row_weight.at(),
                                grad_output.at(),
                                h.per_row != 0};
  all_schedules(h.schedules, {&to}, [&] {
    from.copy(source);
    launch_chunk_loss_backward(a, device, nullptr);
    if (in_place) to.copy(from);
  });
}

}  // namespace

int main() {
  Header h;
  while (std::fread(&h, sizeof h, 1, stdin) == 1) {
    const DeviceLimits device{int(h.multiprocessors), int(h.shared_bytes), int(h.block_threads),
                              h.clusters != 0};
    if (h.op == kForward)
      run_forward(h, device);
    else if (h.op == kBackward)
      run_backward(h, device);
    else
      run_plan(h, device);
  }
}
