// The checks and allocations that every chunk_loss entry shares. They make memory safe for whoever
// calls the operator directly; cwt_ext/chunk_loss.py says the same to users with more words.
// std::invalid_argument arrives in Python as ValueError, std::out_of_range as IndexError.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "chunk_loss.h"

namespace cwt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... parts_t>
std::string text_of(const parts_t&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string shape_of(const Tensor& x) {
  std::ostringstream out;
  out << '(';
  for (int64_t d = 0; d < x.dim(); ++d) out << (d ? ", " : "") << x.size(d);
  out << ')';
  return out.str();
}

template <typename... parts_t>
void check_value(bool holds, const parts_t&... parts) {
  if (!holds) throw std::invalid_argument(text_of("chunk_loss: ", parts...));
}

inline bool is_logits_type(ScalarType t) {
  return t == ScalarType::Half || t == ScalarType::BFloat16 || t == ScalarType::Float ||
         t == ScalarType::Double;
}

inline bool is_real_type(ScalarType t) { return t == ScalarType::Float || t == ScalarType::Double; }

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

inline void check_vector(const Tensor& x, const char* name, const char* symbol, int64_t size,
                         const Tensor& logits) {
  check_value(x.dim() == 1 && x.size(0) == size, name, " must be (", symbol, ",) = (", size,
              ",), got ", shape_of(x), ".");
  check_value(x.is_contiguous(), name, " must be contiguous.");
  check_value(x.device() == logits.device(), name, " must be on the device of the logits.");
}

inline void check_inputs(const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids,
                         const std::optional<Tensor>& active, const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& normalizer, const ChunkLossOptions& o) {
  const RowLayout layout = row_layout(logits);
  check_value(is_logits_type(logits.scalar_type()),
              "logits must be float16, bfloat16, float32 or float64.");
  check_value(layout.vocab >= 1, "logits must have a vocabulary of at least 1, got ",
              shape_of(logits), ".");
  check_vector(labels, "labels", "N", layout.rows, logits);
  check_value(labels.scalar_type() == ScalarType::Long, "labels must be int64.");
  check_vector(chunk_ids, "chunk_ids", "N", layout.rows, logits);
  const ScalarType id_type = chunk_ids.scalar_type();
  check_value(id_type == ScalarType::Int || id_type == ScalarType::Long,
              "chunk_ids must be int32 or int64.");
  check_value(o.num_chunks >= 0, "num_chunks must be at least 0, got ", o.num_chunks, ".");
  if (active) {
    check_vector(*active, "active", "C", o.num_chunks, logits);
    check_value(active->scalar_type() == ScalarType::Bool || is_real_type(active->scalar_type()),
                "active must be bool, float32 or float64.");
  }
  if (weight) {
    check_vector(*weight, "weight", "N", layout.rows, logits);
    check_value(is_real_type(weight->scalar_type()), "weight must be float32 or float64.");
  }
  if (normalizer) {
    check_value(normalizer->numel() == 1 && is_real_type(normalizer->scalar_type()),
                "normalizer must be one float32 or float64 number, got shape ",
                shape_of(*normalizer), ".");
    check_value(normalizer->device() == logits.device(),
                "normalizer must be on the device of the logits.");
  }
  check_value(o.reduction >= kSum && o.reduction <= kNone, "unknown reduction ", o.reduction, ".");
  check_value(o.stats >= kStatsOff && o.stats <= kStatsAll, "unknown stats mode ", o.stats, ".");
  check_value(o.label_smoothing >= 0 && o.label_smoothing < 1,
              "label_smoothing must be in [0, 1), got ", o.label_smoothing, ".");
  check_value(o.z_loss >= 0, "z_loss must be at least 0, got ", o.z_loss, ".");
  check_value(o.softcap >= 0, "softcap must be above 0 (0: none), got ", o.softcap, ".");
  check_value(!o.mean_grad_norm || o.stats != kStatsOff, "mean_grad_norm needs stats.");
}

// The buffer of chunk_loss_out: the logits' shape and dtype, unit stride along the vocabulary, rows
// that do not overlap.
inline void check_grad_buffer(const Tensor& grad, const Tensor& logits) {
  const RowLayout want = row_layout(logits), got = row_layout(grad);
  bool same = grad.dim() == logits.dim();
  for (int64_t d = 0; same && d < logits.dim(); ++d) same = grad.size(d) == logits.size(d);
  check_value(same, "the gradient buffer must have the shape of the logits ", shape_of(logits),
              ", got ", shape_of(grad), ".");
  check_value(grad.scalar_type() == logits.scalar_type() && grad.device() == logits.device(),
              "the gradient buffer must have the dtype and device of the logits.");
  check_value(got.vocab_stride == 1 || got.vocab == 1 || got.rows == 0,
              "the gradient buffer must have unit stride along the vocabulary, got ",
              got.vocab_stride, ".");
  const bool inner_apart = got.inner <= 1 || got.inner_stride >= got.vocab;
  const bool outer_apart =
      got.rows <= got.inner || got.outer_stride >= (got.inner - 1) * got.inner_stride + got.vocab;
  check_value(inner_apart && outer_apart, "rows of the gradient buffer must not overlap.");
  if (grad.const_data_ptr() == logits.const_data_ptr()) {
    const bool same_rows = want.inner_stride == got.inner_stride &&
                           want.outer_stride == got.outer_stride &&
                           (want.vocab_stride == 1 || want.vocab == 1);
    check_value(same_rows, "a gradient buffer in the logits' memory must have their strides.");
  }
}

inline void check_backward(const Tensor& grad, const Tensor& row_weight,
                           const Tensor& grad_output) {
  const RowLayout layout = row_layout(grad);
  check_value(is_logits_type(grad.scalar_type()), "grad must be a floating-point tensor.");
  check_vector(row_weight, "row_weight", "N", layout.rows, grad);
  check_value(row_weight.scalar_type() == acc_type(grad.scalar_type()) &&
                  grad_output.scalar_type() == acc_type(grad.scalar_type()),
              "row_weight and grad_output must be float32, or float64 for float64 logits.");
  check_value(grad_output.device() == grad.device(), "grad_output must be on the logits' device.");
  check_value(grad_output.dim() == 0 || (grad_output.dim() == 1 && grad_output.is_contiguous() &&
                                         grad_output.size(0) == layout.rows),
              "grad_output must be () or contiguous (N,) = (", layout.rows, ",), got ",
              shape_of(grad_output), ".");
}

}  // namespace cwt
