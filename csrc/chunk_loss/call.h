// One call of a chunk_loss operator as one struct: what came off torch's stack, and what goes back.
// The fields are in the order of the schema in csrc/ops.cpp; contract.h says what they mean.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>

#include "contract.h"
#include "errors.h"

namespace cwt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// What decides which rows count, and with what weight.
struct PlanInputs {
  Tensor labels;             // (N)
  Tensor chunk_ids;          // (N)
  MaybeTensor active;        // (C)
  MaybeTensor token_weight;  // (N)
  MaybeTensor normalizer;    // ()
};

struct ChunkLossCall {
  Tensor logits;  // (N, V) or (B, T, V)
  PlanInputs rows;
  ChunkLossOptions options;
};

struct ChunkLossResults {
  Tensor loss, row_stats, chunk_stats, errors, row_weight;
  MaybeTensor grad;
  bool grad_is_fresh;  // nobody has seen its memory yet
};

struct PlanCall {
  PlanInputs rows;
  int64_t vocab;
  ChunkLossOptions options;  // only what the plan looks at
};

struct PlanResults {
  Tensor row_weight, state;
};

// to = grad_output * from, row by row; `to` may be `from`.
struct ScaleCall {
  Tensor from, row_weight, grad_output;
  Tensor to;
  bool to_is_fresh;  // nobody has seen its memory yet
};

// Takes the arguments of a boxed call off the stack, first to last.
class Arguments {
 public:
  explicit Arguments(const StableIValue* stack) : next_(stack) {}

  template <typename value_t>
  value_t take() {
    return torch::stable::detail::to<value_t>(*next_++);
  }
  Tensor tensor() { return take<Tensor>(); }
  MaybeTensor maybe_tensor() { return take<MaybeTensor>(); }
  int64_t integer() { return take<int64_t>(); }
  double real() { return take<double>(); }
  bool flag() { return take<bool>(); }

 private:
  const StableIValue* next_;
};

// Puts results on the stack, where the arguments have been taken off.
template <typename... tensors_t>
void give_back(StableIValue* stack, const tensors_t&... tensors) {
  ((*stack++ = torch::stable::detail::from(tensors)), ...);
}

// Braces are evaluated from left to right: the order of the fields is that of the schema.
inline PlanInputs take_plan_inputs(Arguments& a) {
  return {a.tensor(), a.tensor(), a.maybe_tensor(), a.maybe_tensor(), a.maybe_tensor()};
}

// Arguments of chunk_loss, or without need_grad in the list, which is then true, of chunk_loss_out.
inline ChunkLossCall take_chunk_loss(Arguments& a, bool has_need_grad) {
  Tensor logits = a.tensor();
  PlanInputs rows = take_plan_inputs(a);
  ChunkLossOptions o{};
  o.num_chunks = a.integer();
  o.reduction = Reduction(a.integer());
  o.ignore_index = a.integer();
  o.label_smoothing = a.real();
  o.z_loss = a.real();
  o.softcap = a.real();
  o.stats = StatsMode(a.integer());
  o.mean_grad_norm = a.flag();
  o.need_grad = has_need_grad ? a.flag() : true;
  o.validate = a.flag();
  return {logits, rows, o};
}

inline PlanCall take_plan(Arguments& a) {
  PlanCall call{take_plan_inputs(a), 0, {}};
  call.options.num_chunks = a.integer();
  call.vocab = a.integer();
  call.options.reduction = Reduction(a.integer());
  call.options.ignore_index = a.integer();
  call.options.stats = StatsMode(a.integer());
  return call;
}

// float32, or float64 for float64 logits.
inline ScalarType acc_type(ScalarType logits) {
  return logits == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline RowLayout row_layout(const Tensor& x) {
  check_value(x.dim() == 2 || x.dim() == 3, "logits must be (N, V) or (B, T, V), got ", shape_of(x),
              ".");
  const int64_t last = x.dim() - 1;
  RowLayout layout{};
  layout.vocab = x.size(last);
  layout.vocab_stride = x.stride(last);
  layout.inner = x.size(last - 1);
  layout.inner_stride = x.stride(last - 1);
  layout.rows = last == 1 ? layout.inner : x.size(0) * layout.inner;
  layout.outer_stride = last == 1 ? 0 : x.stride(0);
  if (layout.inner == 0) layout.inner = 1;  // no rows: keep row() free of a division by 0
  return layout;
}

}  // namespace cwt
