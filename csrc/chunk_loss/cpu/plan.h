// Which rows count and with what weight: the part of chunk_loss that looks at no logits.
#pragma once

#include <limits>
#include <vector>

#include "../call.h"

namespace cwt {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Plan {
  std::vector<RowState> state;  // (N)
  std::vector<int64_t> chunk;   // (N)
  std::vector<double> weight;   // (N) dloss/dl_t; 0 for rows that do not count, NaN for bad ones
  std::vector<bool> in_stats;   // (N) bad rows that belong to an evaluated chunk
  std::vector<int64_t> errors;  // (2) bad labels, bad chunk ids
};

// One double from a float32, float64 or bool tensor, or 1 where there is none.
class Values {
 public:
  explicit Values(const MaybeTensor& x)
      : data_(x ? x->const_data_ptr() : nullptr), type_(x ? x->scalar_type() : ScalarType::Float) {}

  double operator[](int64_t i) const {
    if (!data_) return 1;
    if (type_ == ScalarType::Float) return static_cast<const float*>(data_)[i];
    if (type_ == ScalarType::Double) return static_cast<const double*>(data_)[i];
    return static_cast<const bool*>(data_)[i] ? 1 : 0;
  }

 private:
  const void* data_;
  ScalarType type_;
};

// An int64 from an int32 or int64 tensor.
class Integers {
 public:
  explicit Integers(const Tensor& x)
      : data_(x.const_data_ptr()), narrow_(x.scalar_type() == ScalarType::Int) {}

  int64_t operator[](int64_t i) const {
    return narrow_ ? static_cast<const int32_t*>(data_)[i] : static_cast<const int64_t*>(data_)[i];
  }

 private:
  const void* data_;
  bool narrow_;
};

inline void check_rows(const Plan& plan, const int64_t* labels, int64_t vocab,
                       const ChunkLossOptions& o) {
  for (size_t t = 0; t < plan.state.size(); ++t)
    if (plan.state[t] == RowState::kBadLabel || plan.state[t] == RowState::kBadChunk)
      throw_bad_row(t, labels[t], plan.chunk[t], vocab, o);
}

// Returns W_c and what the counting rows themselves give as the denominator. Rows are added in
// their order; plan.weight holds w_t.
inline double sum_weights(const Plan& plan, const Values& chunk_weight, Reduction reduction,
                          std::vector<double>& weight_sum) {
  double denominator = 0;
  std::vector<bool> seen(weight_sum.size());
  for (size_t t = 0; t < plan.state.size(); ++t) {
    if (plan.state[t] != RowState::kCounts) continue;
    const int64_t c = plan.chunk[t];
    if (reduction == kTokenMean)
      denominator += plan.weight[t] * chunk_weight[c];
    else if (!seen[c])
      denominator += chunk_weight[c];
    weight_sum[c] += plan.weight[t];
    seen[c] = true;
  }
  return denominator;
}

// Turns w_t (in plan.weight) into the row's weight.
inline void weigh_rows(Plan& plan, const Values& chunk_weight, const MaybeTensor& normalizer,
                       const ChunkLossOptions& o) {
  std::vector<double> weight_sum(o.num_chunks), factor(o.num_chunks);
  double denominator = normalizer ? Values(normalizer)[0] : 1;
  if (has_own_denominator(o.reduction)) {
    const double own = sum_weights(plan, chunk_weight, o.reduction, weight_sum);
    if (!normalizer) denominator = own;
  }
  for (int64_t c = 0; c < o.num_chunks; ++c)
    factor[c] = chunk_factor(o.reduction, chunk_weight[c], weight_sum[c]);
  for (size_t t = 0; t < plan.state.size(); ++t)
    if (plan.state[t] == RowState::kCounts)
      plan.weight[t] = row_weight(plan.weight[t], factor[plan.chunk[t]], denominator);
}

inline Plan make_plan(const PlanInputs& in, int64_t vocab, const ChunkLossOptions& o) {
  const int64_t n = in.labels.numel();
  const int64_t* label = in.labels.const_data_ptr<int64_t>();
  const Integers chunk_id(in.chunk_ids);
  const Values chunk_weight(in.active), token_weight(in.token_weight);
  Plan plan{std::vector<RowState>(n), std::vector<int64_t>(n), std::vector<double>(n),
            std::vector<bool>(n), std::vector<int64_t>(kNumErrorCounts)};
  for (int64_t t = 0; t < n; ++t) {
    const int64_t c = chunk_id[t];
    const double w = token_weight[t];
    const RowState state =
        row_state(label[t], c, w, vocab, o, [&](int64_t chunk) { return chunk_weight[chunk]; });
    plan.chunk[t] = c;
    plan.state[t] = state;
    if (state == RowState::kCounts) {
      plan.weight[t] = w;
    } else if (state == RowState::kBadLabel || state == RowState::kBadChunk) {
      ++plan.errors[state == RowState::kBadLabel ? kBadLabels : kBadChunks];
      plan.weight[t] = kNan;
      plan.in_stats[t] = state == RowState::kBadLabel && c >= 0 &&
                         (o.stats == kStatsAll || (w != 0 && chunk_weight[c] != 0));
    }
  }
  if (o.validate) check_rows(plan, label, vocab, o);
  weigh_rows(plan, chunk_weight, in.normalizer, o);
  return plan;
}

}  // namespace cwt
