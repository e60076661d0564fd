// chunk_loss on the CPU: choice of the instruction set, the rows (run.h), sums per chunk.
#include <cstdlib>
#include <string>

#include "../entry.h"
#include "run.h"

namespace cwt {
namespace {

const RowKernelSet& choose_kernels() {
  const char* wanted = std::getenv("CWT_CPU_CAPABILITY");
  const std::string want = wanted ? wanted : "";
#if defined(__aarch64__) || defined(CWT_EMULATE_NEON)  // tests/test_emulated_kernels.py
  if (want.empty() || want == "neon") return kRowKernelsNeon;
#elif defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (want.empty() || want == "avx512")) return kRowKernelsAvx512;
  if (avx2 && (want.empty() || want == "avx2")) return kRowKernelsAvx2;
#endif
  check_value(want.empty() || want == "baseline",
              "CWT_CPU_CAPABILITY must be baseline, neon, avx2 or avx512, and one that "
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

template <typename acc_t>
void write_results(const Plan& plan, const Run& rows, const std::vector<double>& mean_norm,
                   const ChunkLossOptions& o, const ChunkLossResults& r) {
  write_loss(plan, rows, o, r.loss.mutable_data_ptr<acc_t>());
  write_rows(plan, rows, r.row_stats.mutable_data_ptr<acc_t>(),
             r.row_weight.mutable_data_ptr<acc_t>());
  write_chunks(plan, rows, mean_norm, o, r.chunk_stats.mutable_data_ptr<acc_t>());
}

void write_errors(const Plan& plan, const Run& rows, int64_t chunks, int64_t* errors) {
  std::copy(plan.errors.begin(), plan.errors.end(), errors);
  std::fill_n(errors + kNumErrorCounts, chunks, 0);
  for (size_t t = 0; t < rows.rows.size(); ++t)
    if (!rows.rows[t].finite) ++errors[kNumErrorCounts + plan.chunk[t]];
}

size_t bytes_of(const Tensor& x) { return size_t(x.numel() * size_of(x.scalar_type())); }

ZeroRange prepare_tensor(const Tensor& x) {
  return prepare_fresh(x.mutable_data_ptr(), bytes_of(x));
}

// Rows of `to` to be written: those that are scaled, and those that must become 0 and are not yet.
std::vector<int64_t> rows_to_scale(const ScaleCall& call, const Values& factor,
                                   const ZeroRange& zero) {
  const RowLayout out = row_layout(call.to);
  const int64_t element = size_of(call.to.scalar_type());
  const char* target = static_cast<const char*>(call.to.const_data_ptr());
  const Values weight(call.row_weight);
  const bool per_row = call.grad_output.dim() == 1;
  const bool in_place = call.from.const_data_ptr() == call.to.const_data_ptr();
  const size_t bytes = size_t(out.vocab * element);
  std::vector<int64_t> work;
  for (int64_t t = 0; t < out.rows; ++t) {
    const bool scaled = weight[t] != 0, unit = factor[per_row ? t : 0] == 1;
    const bool zero_already = in_place || zero.covers(target + out.row(t) * element, bytes);
    if (scaled ? !(in_place && unit) : !zero_already) work.push_back(t);
  }
  return work;
}

struct Cpu {
  static void run(const ChunkLossCall& call, const ChunkLossResults& r) {
    const ChunkLossOptions& o = call.options;
    const Plan plan = make_plan(call.rows, row_layout(call.logits).vocab, o);
    const ZeroRange zero = r.grad_is_fresh ? prepare_tensor(*r.grad) : ZeroRange{};
    std::vector<double> mean_norm(o.num_chunks);
    const ScalarType type = call.logits.scalar_type();
    Run rows(call, plan, r.grad, kernels_for(type));
    rows.all_rows(zero, mean_norm);
    if (type == ScalarType::Double)
      write_results<double>(plan, rows, mean_norm, o, r);
    else
      write_results<float>(plan, rows, mean_norm, o, r);
    write_errors(plan, rows, o.num_chunks, r.errors.mutable_data_ptr<int64_t>());
  }

  static void plan(const PlanCall& call, const PlanResults& r) {
    const Plan plan = make_plan(call.rows, call.vocab, call.options);
    std::copy(plan.weight.begin(), plan.weight.end(), r.row_weight.mutable_data_ptr<double>());
    int8_t* state = r.state.mutable_data_ptr<int8_t>();
    for (const RowState s : plan.state) *state++ = static_cast<int8_t>(s);
  }

  static void scale_rows(const ScaleCall& call) {
    const RowLayout in = row_layout(call.from), out = row_layout(call.to);
    const int64_t element = size_of(call.from.scalar_type());
    const RowKernels& kernels = kernels_for(call.from.scalar_type());
    const ZeroRange zero = call.to_is_fresh ? prepare_tensor(call.to) : ZeroRange{};
    const Values weight(call.row_weight), factor(call.grad_output);
    const bool per_row = call.grad_output.dim() == 1;
    const std::vector<int64_t> work = rows_to_scale(call, factor, zero);
    const char* source = static_cast<const char*>(call.from.const_data_ptr());
    char* target = static_cast<char*>(call.to.mutable_data_ptr());
    torch::stable::parallel_for(0, work.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = work[i];
        char* row = target + out.row(t) * element;
        if (weight[t] != 0)
          kernels.scale(source + in.row(t) * element, row, in.vocab, factor[per_row ? t : 0]);
        else
          std::memset(row, 0, size_t(in.vocab * element));
      }
    });
  }
};

std::string cpu_capability() { return kernel_set().name; }

}  // namespace
}  // namespace cwt

STABLE_TORCH_LIBRARY_IMPL(cwt, CPU, m) { cwt::register_chunk_loss<cwt::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(cwt, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cwt::cpu_capability));
}
