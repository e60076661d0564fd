// chunk_loss on the CPU: checks, allocation, which rows run on which thread, and the sums per
// chunk.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "chunk_loss_kernels.h"
#include "chunk_loss_plan.h"
#include "memory.h"

namespace cwt {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kStreamBytes = size_t(8)
                                << 20;  // gradients above this do not stay in a cache anyway
constexpr int64_t kTileRows = 32;       // rows whose gradients are added up in one vector

const RowKernelSet& choose_kernels() {
  const char* wanted = std::getenv("CWT_CPU_CAPABILITY");
  const std::string want = wanted ? wanted : "";
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (want.empty() || want == "avx512")) return kRowKernelsAvx512;
  if (avx2 && (want.empty() || want == "avx2")) return kRowKernelsAvx2;
#endif
  check_value(want.empty() || want == "baseline",
              "CWT_CPU_CAPABILITY must be baseline, avx2 or avx512, and one that "
              "this processor has, got '",
              want, "'.");
  return kRowKernelsBaseline;
}

const RowKernelSet& kernel_set() {
  static const RowKernelSet& chosen = choose_kernels();
  return chosen;
}

const RowKernels& kernels_for(ScalarType type) {
  if (type == ScalarType::Half) return kernel_set().float16;
  if (type == ScalarType::BFloat16) return kernel_set().bfloat16;
  return type == ScalarType::Float ? kernel_set().float32 : kRowKernelsFloat64;
}

int64_t size_of(ScalarType type) {
  if (type == ScalarType::Double) return 8;
  return type == ScalarType::Float ? 4 : 2;
}

// Grow-only workspace of one thread: a fresh one would cost its page faults at every call.
RowScratch thread_scratch(int64_t vocab) {
  thread_local std::vector<double> values;
  thread_local std::vector<int32_t> exponents;
  if (values.size() < size_t(3 * vocab)) values.resize(3 * vocab);
  if (exponents.size() < size_t(vocab / kRowBlock + 1)) exponents.resize(vocab / kRowBlock + 1);
  double* start = values.data();
  return {start, start + vocab, start + 2 * vocab, exponents.data(), 0};
}

struct RowNumbers {
  double loss = 0;
  double stat[kNumRowStats] = {};
  double grad_sq = 0;
  bool finite = true;
};

// One call: what every row needs, and what the rows found.
class Run {
 public:
  Run(const Tensor& logits, const int64_t* labels, const Plan& plan, const ChunkLossOptions& o,
      const Tensor* grad)
      : layout_(row_layout(logits)),
        kernels_(kernels_for(logits.scalar_type())),
        element_(size_of(logits.scalar_type())),
        wide_(logits.scalar_type() == ScalarType::Double),
        x_(static_cast<const char*>(logits.const_data_ptr())),
        labels_(labels),
        plan_(plan),
        o_(o),
        rows(layout_.rows) {
    if (!grad) return;
    grad_ = static_cast<char*>(grad->mutable_data_ptr());
    grad_layout_ = row_layout(*grad);
    stream_ = grad_ != x_ && size_t(layout_.rows * layout_.vocab * element_) >= kStreamBytes;
  }

  // Evaluates every row that counts or has statistics; then zeroes the gradient of all others,
  // except in `zero`.
  void all_rows(const ZeroRange& zero, std::vector<double>& mean_norm) {
    std::vector<int64_t> order, silent;
    for (int64_t t = 0; t < layout_.rows; ++t) {
      const RowState state = plan_.state[t];
      if (state == RowState::kCounts || state == RowState::kStatsOnly) order.push_back(t);
      if (state != RowState::kCounts) silent.push_back(t);
    }
    if (o_.mean_grad_norm) {
      by_chunk(order, mean_norm);
    } else {
      torch::stable::parallel_for(0, order.size(), 1, [&](int64_t begin, int64_t end) {
        RowScratch scratch = thread_scratch(layout_.vocab);
        for (int64_t i = begin; i < end; ++i) one_row(order[i], scratch, nullptr);
      });
    }
    if (!grad_) return;
    // A parallel region costs a wake-up of every thread: only for memory that has to be written.
    std::vector<int64_t> dirty;
    for (const int64_t t : silent)
      if (!zero.covers(grad_row(t), row_bytes())) dirty.push_back(t);
    torch::stable::parallel_for(0, dirty.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::memset(grad_row(dirty[i]), 0, row_bytes());
    });
  }

 private:
  void one_row(int64_t t, RowScratch& scratch, void* mean) {
    const bool counts = plan_.state[t] == RowState::kCounts;
    const bool plain = o_.label_smoothing == 0 && o_.z_loss == 0 && o_.softcap == 0;
    const bool stats = o_.stats != kStatsOff;
    void* grad = grad_ && counts ? grad_row(t) : nullptr;
    const bool second_pass = grad || mean || (stats && !plain);
    const RowInput in{x_ + layout_.row(t) * element_,
                      layout_.vocab_stride,
                      layout_.vocab,
                      labels_[t],
                      o_.softcap,
                      stats,
                      o_.label_smoothing > 0,
                      second_pass};
    RowSums<double> sums{};
    RowNumbers& out = rows[t];
    out.finite = kernels_.sums(in, scratch, sums);
    RowResult<double> r = finish_row(sums, layout_.vocab, o_.label_smoothing, o_.z_loss);
    if (!out.finite) {
      r.p_scale = r.g_y = r.nll = r.logsumexp = r.entropy = r.grad_norm_sq = r.row_loss = kNan;
      r.correct = false;
    }
    if (second_pass) {
      const double square =
          kernels_.write(in, scratch,
                         {r.p_scale, 1 + (o_.z_loss > 0 ? 2 * o_.z_loss * r.logsumexp : 0),
                          o_.label_smoothing / double(layout_.vocab), r.g_y, plan_.weight[t], grad,
                          mean, plain, stream_});
      if (!plain) r.grad_norm_sq = square;
    }
    out.loss = r.row_loss;
    out.stat[kNll] = r.nll;
    out.stat[kLogsumexp] = r.logsumexp;
    out.stat[kCorrect] = out.finite ? double(r.correct) : kNan;
    if (!stats) return;
    out.grad_sq = r.grad_norm_sq;
    out.stat[kGradNorm] = std::sqrt(r.grad_norm_sq);
    out.stat[kEntropy] = r.entropy;
  }

  char* grad_row(int64_t t) const { return grad_ + grad_layout_.row(t) * element_; }
  size_t row_bytes() const { return size_t(layout_.vocab * element_); }

  struct Tile {
    int64_t begin, end, chunk;
    bool last;  // of its chunk
  };

  std::vector<Tile> tiles_of(std::vector<int64_t>& order) const {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return plan_.chunk[a] < plan_.chunk[b]; });
    std::vector<Tile> tiles;
    for (int64_t i = 0, n = order.size(); i < n;) {
      const int64_t chunk = plan_.chunk[order[i]];
      int64_t end = i;
      while (end < n && end < i + kTileRows && plan_.chunk[order[end]] == chunk) ++end;
      tiles.push_back({i, end, chunk, end == n || plan_.chunk[order[end]] != chunk});
      i = end;
    }
    return tiles;
  }

  // Rows of one chunk after another, in tiles of a fixed size; each tile adds up its rows'
  // gradients in one vector, and the vectors of a chunk are added in tile order. Memory: one vector
  // per tile at work, and one more.
  void by_chunk(std::vector<int64_t>& order, std::vector<double>& mean_norm) {
    const std::vector<Tile> tiles = tiles_of(order);
    const int64_t wave = std::max<int64_t>(8, 2 * torch::stable::get_num_threads());
    const int64_t count = tiles.size(), vocab = layout_.vocab, acc = wide_ ? 8 : 4;
    std::vector<double> carry(vocab);
    std::vector<char> vectors(std::min(wave, count) * vocab * acc);
    for (int64_t first = 0; first < count; first += wave) {
      const int64_t size = std::min(wave, count - first);
      torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
        RowScratch scratch = thread_scratch(vocab);
        for (int64_t k = begin; k < end; ++k) {
          char* vector = vectors.data() + k * vocab * acc;
          std::memset(vector, 0, size_t(vocab * acc));
          const Tile& tile = tiles[first + k];
          for (int64_t i = tile.begin; i < tile.end; ++i) one_row(order[i], scratch, vector);
        }
      });
      if (wide_)
        add_tiles(&tiles[first], size, reinterpret_cast<double*>(vectors.data()), carry, mean_norm);
      else
        add_tiles(&tiles[first], size, reinterpret_cast<float*>(vectors.data()), carry, mean_norm);
    }
  }

  // Adds the tiles' vectors to carry; where a chunk ends, adds carry's square to mean_norm[chunk]
  // and clears it.
  template <typename acc_t>
  void add_tiles(const Tile* tiles, int64_t size, const acc_t* vectors, std::vector<double>& carry,
                 std::vector<double>& mean_norm) const {
    const int64_t vocab = layout_.vocab, blocks = (vocab + kRowBlock - 1) / kRowBlock;
    std::vector<double> squares(size * blocks);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kRowBlock, end = std::min(begin + kRowBlock, vocab);
        for (int64_t k = 0; k < size; ++k) {
          for (int64_t j = begin; j < end; ++j) carry[j] += double(vectors[k * vocab + j]);
          if (!tiles[k].last) continue;
          double square = 0;
          for (int64_t j = begin; j < end; ++j) square += carry[j] * carry[j];
          squares[k * blocks + b] = square;
          std::fill(carry.begin() + begin, carry.begin() + end, 0.0);
        }
      }
    });
    for (int64_t k = 0; k < size; ++k)
      for (int64_t b = 0; b < blocks; ++b) mean_norm[tiles[k].chunk] += squares[k * blocks + b];
  }

  const RowLayout layout_;
  const RowKernels& kernels_;
  const int64_t element_;
  const bool wide_;
  const char* x_;
  const int64_t* labels_;
  const Plan& plan_;
  const ChunkLossOptions& o_;
  char* grad_ = nullptr;
  RowLayout grad_layout_{};
  bool stream_ = false;

 public:
  std::vector<RowNumbers> rows;
};

template <typename acc_t>
void write_loss(const Plan& plan, const Run& run, const ChunkLossOptions& o, acc_t* loss) {
  double total = 0;
  for (size_t t = 0; t < run.rows.size(); ++t) {
    // A skipped row contributes nothing, whatever its statistics say; a bad one its NaN weight.
    const double part = plan.weight[t] == 0 ? 0 : plan.weight[t] * run.rows[t].loss;
    if (o.reduction == kNone) loss[t] = acc_t(part);
    total += part;
  }
  if (o.reduction != kNone) loss[0] = acc_t(total);
}

template <typename acc_t>
void write_rows(const Plan& plan, const Run& run, acc_t* row_stats, acc_t* row_weight) {
  const int64_t n = run.rows.size();
  for (int64_t t = 0; t < n; ++t) {
    const bool bad = plan.state[t] == RowState::kBadLabel || plan.state[t] == RowState::kBadChunk;
    row_weight[t] = acc_t(plan.weight[t]);
    for (int s = 0; s < kNumRowStats; ++s)
      row_stats[s * n + t] = acc_t(bad ? kNan : run.rows[t].stat[s]);
  }
}

template <typename acc_t>
void write_chunks(const Plan& plan, const Run& run, const std::vector<double>& mean_norm,
                  const ChunkLossOptions& o, acc_t* chunk_stats) {
  const int64_t chunks = o.num_chunks;
  std::vector<double> sum(kNumChunkStats * chunks);
  for (size_t t = 0; o.stats != kStatsOff && t < run.rows.size(); ++t) {
    const RowState state = plan.state[t];
    const bool read = state == RowState::kCounts || state == RowState::kStatsOnly;
    if (!read && !plan.in_stats[t]) continue;
    const RowNumbers& row = run.rows[t];
    double* at = sum.data() + plan.chunk[t];
    at[kTokens * chunks] += 1;
    at[kNllSum * chunks] += read ? row.stat[kNll] : kNan;
    at[kCorrectSum * chunks] += read ? row.stat[kCorrect] : kNan;
    at[kEntropySum * chunks] += read ? row.stat[kEntropy] : kNan;
    at[kGradNormSum * chunks] += read ? row.stat[kGradNorm] : kNan;
    at[kGradSqSum * chunks] += read ? row.grad_sq : kNan;
    if (!read && o.mean_grad_norm) at[kMeanGradNorm * chunks] = kNan;
  }
  for (int64_t c = 0; o.mean_grad_norm && c < chunks; ++c)
    if (sum[kTokens * chunks + c] > 0)
      sum[kMeanGradNorm * chunks + c] += std::sqrt(mean_norm[c]) / sum[kTokens * chunks + c];
  for (size_t i = 0; i < sum.size(); ++i) chunk_stats[i] = acc_t(sum[i]);
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Results run(const Tensor& logits, const Tensor& labels, const Plan& plan, const ChunkLossOptions& o,
            const Tensor* grad, const ZeroRange& zero) {
  std::vector<double> mean_norm(o.num_chunks);
  Run rows(logits, labels.const_data_ptr<int64_t>(), plan, o, grad);
  rows.all_rows(zero, mean_norm);

  const int64_t n = plan.state.size();
  const ScalarType acc = acc_type(logits.scalar_type());
  const auto fresh = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(logits, {shape.begin(), shape.size()}, type);
  };
  Tensor loss = o.reduction == kNone ? fresh({n}, acc) : fresh({}, acc);
  Tensor row_stats = fresh({kNumRowStats, n}, acc), row_weight = fresh({n}, acc);
  Tensor chunk_stats = fresh({kNumChunkStats, o.num_chunks}, acc);
  Tensor errors = fresh({kNumErrorCounts + o.num_chunks}, ScalarType::Long);
  const auto write = [&](auto zero_of) {
    using acc_t = decltype(zero_of);
    write_loss(plan, rows, o, loss.mutable_data_ptr<acc_t>());
    write_rows(plan, rows, row_stats.mutable_data_ptr<acc_t>(),
               row_weight.mutable_data_ptr<acc_t>());
    write_chunks(plan, rows, mean_norm, o, chunk_stats.mutable_data_ptr<acc_t>());
  };
  if (acc == ScalarType::Double)
    write(double());
  else
    write(float());
  int64_t* counts = errors.mutable_data_ptr<int64_t>();
  std::copy(plan.errors.begin(), plan.errors.end(), counts);
  for (int64_t t = 0; t < n; ++t)
    if (!rows.rows[t].finite) ++counts[kNumErrorCounts + plan.chunk[t]];
  return {loss, row_stats, chunk_stats, errors, row_weight};
}

using MaybeTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> chunk_loss_cpu(
    const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids, const MaybeTensor& active,
    const MaybeTensor& weight, const MaybeTensor& normalizer, int64_t num_chunks, int64_t reduction,
    int64_t ignore_index, double label_smoothing, double z_loss, double softcap, int64_t stats,
    bool mean_grad_norm, bool need_grad, bool validate) {
  const ChunkLossOptions o{
      num_chunks, Reduction(reduction), ignore_index,   label_smoothing, z_loss,
      softcap,    StatsMode(stats),     mean_grad_norm, need_grad,       validate};
  check_inputs(logits, labels, chunk_ids, active, weight, normalizer, o);
  const Plan plan = make_plan(row_layout(logits), labels, chunk_ids, active, weight, normalizer, o);
  const int64_t none[] = {0};
  Tensor grad = need_grad ? torch::stable::new_empty(logits, logits.sizes())
                          : torch::stable::new_empty(logits, {none, 1});
  const size_t bytes = size_t(grad.numel() * size_of(logits.scalar_type()));
  const ZeroRange zero = prepare_fresh(grad.mutable_data_ptr(), bytes);
  const Results r = run(logits, labels, plan, o, need_grad ? &grad : nullptr, zero);
  return std::tuple_cat(r, std::make_tuple(grad));
}

Results chunk_loss_out_cpu(const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids,
                           const MaybeTensor& active, const MaybeTensor& weight,
                           const MaybeTensor& normalizer, int64_t num_chunks, int64_t reduction,
                           int64_t ignore_index, double label_smoothing, double z_loss,
                           double softcap, int64_t stats, bool mean_grad_norm, bool validate,
                           const Tensor& grad) {
  const ChunkLossOptions o{
      num_chunks,       Reduction(reduction), ignore_index, label_smoothing, z_loss, softcap,
      StatsMode(stats), mean_grad_norm,       true,         validate};
  check_inputs(logits, labels, chunk_ids, active, weight, normalizer, o);
  check_grad_buffer(grad, logits);
  const Plan plan = make_plan(row_layout(logits), labels, chunk_ids, active, weight, normalizer, o);
  return run(logits, labels, plan, o, &grad, {});
}

// to = grad_output * from, row by row. Rows of weight 0 are 0 in `from`: `to` is the same memory,
// or zeroed in `zero`.
void scale_rows(const Tensor& from, const Tensor& to, const Tensor& row_weight,
                const Tensor& grad_output, const ZeroRange& zero) {
  const RowLayout in = row_layout(from), out = row_layout(to);
  const int64_t element = size_of(from.scalar_type());
  const RowKernels& kernels = kernels_for(from.scalar_type());
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  const Values weight(row_weight), factor(grad_output);
  const bool per_row = grad_output.dim() == 1, in_place = source == target;
  const size_t bytes = size_t(in.vocab * element);
  std::vector<int64_t> work;
  for (int64_t t = 0; t < in.rows; ++t) {
    const bool scaled = weight[t] != 0, unit = factor[per_row ? t : 0] == 1;
    const bool zero_already = in_place || zero.covers(target + out.row(t) * element, bytes);
    if (scaled ? !(in_place && unit) : !zero_already) work.push_back(t);
  }
  torch::stable::parallel_for(0, work.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = work[i];
      char* row = target + out.row(t) * element;
      if (weight[t] != 0)
        kernels.scale(source + in.row(t) * element, row, in.vocab, factor[per_row ? t : 0]);
      else
        std::memset(row, 0, bytes);
    }
  });
}

Tensor chunk_loss_backward_cpu(const Tensor& grad, const Tensor& row_weight,
                               const Tensor& grad_output) {
  check_backward(grad, row_weight, grad_output);
  Tensor out = torch::stable::new_empty(grad, grad.sizes());
  const size_t bytes = size_t(out.numel() * size_of(grad.scalar_type()));
  scale_rows(grad, out, row_weight, grad_output, prepare_fresh(out.mutable_data_ptr(), bytes));
  return out;
}

void chunk_loss_backward_inplace_cpu(const Tensor& grad, const Tensor& row_weight,
                                     const Tensor& grad_output) {
  check_backward(grad, row_weight, grad_output);
  scale_rows(grad, grad, row_weight, grad_output, {});
}

std::string cpu_capability() { return kernel_set().name; }

}  // namespace
}  // namespace cwt

STABLE_TORCH_LIBRARY_IMPL(cwt, CPU, m) {
  m.impl("chunk_loss", TORCH_BOX(&cwt::chunk_loss_cpu));
  m.impl("chunk_loss_out", TORCH_BOX(&cwt::chunk_loss_out_cpu));
  m.impl("chunk_loss_backward", TORCH_BOX(&cwt::chunk_loss_backward_cpu));
  m.impl("chunk_loss_backward_", TORCH_BOX(&cwt::chunk_loss_backward_inplace_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(cwt, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cwt::cpu_capability));
}
