// Which rows count and with what weight: the part of chunk_loss that looks at no logits.
#pragma once

#include <limits>
#include <vector>

#include "../chunk_loss_checks.h"

namespace cwt {

struct Plan {
  std::vector<RowState> state;  // (N)
  std::vector<int64_t> chunk;   // (N)
  std::vector<double> weight;   // (N) dloss/dl_t; 0 for rows that do not count, NaN for bad ones
  std::vector<bool> in_stats;   // (N) bad rows that belong to an evaluated chunk
  std::vector<int64_t> errors;  // (2 + C)
};

// One double from a float32, float64 or bool tensor, or 1 where there is none.
class Values {
 public:
  explicit Values(const std::optional<Tensor>& x)
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

inline void check_rows(const Plan& plan, const int64_t* labels, int64_t vocab,
                       const ChunkLossOptions& o) {
  for (size_t t = 0; t < plan.state.size(); ++t) {
    if (plan.state[t] == RowState::kBadLabel)
      throw std::out_of_range(text_of("chunk_loss: labels[", t, "] is ", labels[t],
                                      ", which is neither in [0, ", vocab,
                                      ") nor ignore_index = ", o.ignore_index, "."));
    if (plan.state[t] == RowState::kBadChunk)
      throw std::out_of_range(text_of("chunk_loss: chunk_ids[", t, "] is ", plan.chunk[t],
                                      ", outside [-1, ", o.num_chunks, ") (label ", labels[t],
                                      ", num_chunks ", o.num_chunks, ")."));
  }
}

// Turns a_c w_t (in plan.weight) into row_weight: divides by what the reduction asks for.
inline void normalize(Plan& plan, const Values& active, const std::optional<Tensor>& normalizer,
                      const ChunkLossOptions& o) {
  const bool given = normalizer.has_value();
  double denominator = given ? Values(normalizer)[0] : 1;
  std::vector<double> chunk_sum(o.reduction == kChunkMean ? o.num_chunks : 0);
  if (o.reduction == kChunkMean) {  // here plan.weight holds w_t alone
    std::vector<bool> seen(o.num_chunks);
    if (!given) denominator = 0;
    for (size_t t = 0; t < plan.state.size(); ++t) {
      if (plan.state[t] != RowState::kCounts) continue;
      const int64_t c = plan.chunk[t];
      chunk_sum[c] += plan.weight[t];
      if (!given && !seen[c]) denominator += active[c];
      seen[c] = true;
    }
  } else if (o.reduction == kTokenMean && !given) {
    denominator = 0;
    for (size_t t = 0; t < plan.state.size(); ++t)
      if (plan.state[t] == RowState::kCounts) denominator += plan.weight[t];
  }
  for (size_t t = 0; t < plan.state.size(); ++t) {
    if (plan.state[t] != RowState::kCounts) continue;
    if (o.reduction == kChunkMean)
      plan.weight[t] *= active[plan.chunk[t]] / chunk_sum[plan.chunk[t]];
    plan.weight[t] /= denominator;
  }
}

inline Plan make_plan(const RowLayout& layout, const Tensor& labels, const Tensor& chunk_ids,
                      const std::optional<Tensor>& active, const std::optional<Tensor>& weight,
                      const std::optional<Tensor>& normalizer, const ChunkLossOptions& o) {
  const int64_t n = layout.rows;
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const bool narrow_ids = chunk_ids.scalar_type() == ScalarType::Int;
  const void* ids = chunk_ids.const_data_ptr();
  const Values chunk_weight(active), token_weight(weight);
  Plan plan{std::vector<RowState>(n), std::vector<int64_t>(n), std::vector<double>(n),
            std::vector<bool>(n), std::vector<int64_t>(kNumErrorCounts + o.num_chunks)};
  for (int64_t t = 0; t < n; ++t) {
    const int64_t c =
        narrow_ids ? static_cast<const int32_t*>(ids)[t] : static_cast<const int64_t*>(ids)[t];
    const double w = token_weight[t];
    const RowState state = row_state(label[t], c, w, layout.vocab, o,
                                     [&](int64_t chunk) { return chunk_weight[chunk]; });
    plan.chunk[t] = c;
    plan.state[t] = state;
    if (state == RowState::kCounts) {
      plan.weight[t] = o.reduction == kChunkMean ? w : w * chunk_weight[c];
    } else if (state == RowState::kBadLabel || state == RowState::kBadChunk) {
      ++plan.errors[state == RowState::kBadLabel ? kBadLabels : kBadChunks];
      plan.weight[t] = std::numeric_limits<double>::quiet_NaN();
      plan.in_stats[t] = state == RowState::kBadLabel && c >= 0 &&
                         (o.stats == kStatsAll || (w != 0 && chunk_weight[c] != 0));
    }
  }
  if (o.validate) check_rows(plan, label, layout.vocab, o);
  normalize(plan, chunk_weight, normalizer, o);
  return plan;
}

}  // namespace cwt
