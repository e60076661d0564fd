// chunk_loss on the CPU: the entries. Checks, allocation, choice of kernels, sums per chunk.
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <tuple>

#include "chunk_loss_run.h"

namespace cwt {
namespace {

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
  Run rows(logits, labels.const_data_ptr<int64_t>(), plan, o, grad,
           kernels_for(logits.scalar_type()));
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
