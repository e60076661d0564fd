// The entries of chunk_loss, once for every backend: checks, allocation, registration. They make
// memory safe for whoever calls the operators directly.
//
// A backend is a struct with three static functions (cpu/chunk_loss_cpu.cpp, cuda/..._cuda.cpp):
//
//   run(const ChunkLossCall&, const ChunkLossResults&)    chunk_loss and chunk_loss_out
//   plan(const PlanCall&, const PlanResults&)             chunk_loss_plan
//   scale_rows(const ScaleCall&)                          chunk_loss_backward and _backward_
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>

#include "call.h"

namespace cwt {

// Checks.

inline bool is_logits_type(ScalarType t) {
  return t == ScalarType::Half || t == ScalarType::BFloat16 || t == ScalarType::Float ||
         t == ScalarType::Double;
}

inline bool is_real_type(ScalarType t) { return t == ScalarType::Float || t == ScalarType::Double; }

// A contiguous vector on the device of `beside`, the tensor called so.
inline void check_vector(const Tensor& x, const char* name, const char* symbol, int64_t size,
                         const Tensor& beside, const char* beside_name) {
  check_value(x.dim() == 1 && x.size(0) == size, name, " must be (", symbol, ",) = (", size,
              ",), got ", shape_of(x), ".");
  check_value(x.is_contiguous(), name, " must be contiguous.");
  check_value(x.device() == beside.device(), name, " must be on the device of the ", beside_name,
              ".");
}

// `rows` is N; everything must be on the device of `beside`.
inline void check_plan_inputs(const PlanInputs& in, int64_t rows, const Tensor& beside,
                              const char* beside_name, const ChunkLossOptions& o) {
  check_vector(in.labels, "labels", "N", rows, beside, beside_name);
  check_value(in.labels.scalar_type() == ScalarType::Long, "labels must be int64.");
  check_vector(in.chunk_ids, "chunk_ids", "N", rows, beside, beside_name);
  const ScalarType id_type = in.chunk_ids.scalar_type();
  check_value(id_type == ScalarType::Int || id_type == ScalarType::Long,
              "chunk_ids must be int32 or int64.");
  check_value(o.num_chunks >= 0, "num_chunks must be at least 0, got ", o.num_chunks, ".");
  if (in.active) {
    check_vector(*in.active, "active", "C", o.num_chunks, beside, beside_name);
    const ScalarType type = in.active->scalar_type();
    check_value(type == ScalarType::Bool || is_real_type(type),
                "active must be bool, float32 or float64.");
  }
  if (in.token_weight) {
    check_vector(*in.token_weight, "token_weight", "N", rows, beside, beside_name);
    check_value(is_real_type(in.token_weight->scalar_type()),
                "token_weight must be float32 or float64.");
  }
  if (in.normalizer) {
    check_value(in.normalizer->numel() == 1 && is_real_type(in.normalizer->scalar_type()),
                "normalizer must be one float32 or float64 number, got shape ",
                shape_of(*in.normalizer), ".");
    check_value(in.normalizer->device() == beside.device(),
                "normalizer must be on the device of the ", beside_name, ".");
  }
  check_value(o.reduction >= kSum && o.reduction <= kNone, "unknown reduction ", o.reduction, ".");
  check_value(o.stats >= kStatsOff && o.stats <= kStatsAll, "unknown stats mode ", o.stats, ".");
}

inline void check_call(const ChunkLossCall& call) {
  const RowLayout layout = row_layout(call.logits);
  const ChunkLossOptions& o = call.options;
  check_value(is_logits_type(call.logits.scalar_type()),
              "logits must be float16, bfloat16, float32 or float64.");
  check_value(layout.vocab >= 1, "logits must have a vocabulary of at least 1, got ",
              shape_of(call.logits), ".");
  check_plan_inputs(call.rows, layout.rows, call.logits, "logits", o);
  check_value(o.label_smoothing >= 0 && o.label_smoothing < 1,
              "label_smoothing must be in [0, 1), got ", o.label_smoothing, ".");
  check_value(o.z_loss >= 0, "z_loss must be at least 0, got ", o.z_loss, ".");
  check_value(o.softcap >= 0, "softcap must be above 0 (0: none), got ", o.softcap, ".");
  check_value(!o.mean_grad_norm || o.stats != kStatsOff, "mean_grad_norm needs stats.");
}

inline void check_plan_call(const PlanCall& call) {
  const Tensor& labels = call.rows.labels;
  check_value(labels.dim() == 1, "labels must be (N,), got ", shape_of(labels), ".");
  check_value(call.vocab >= 1, "vocab must be at least 1, got ", call.vocab, ".");
  check_plan_inputs(call.rows, labels.size(0), labels, "labels", call.options);
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
  check_vector(row_weight, "row_weight", "N", layout.rows, grad, "logits");
  const ScalarType acc = acc_type(grad.scalar_type());
  check_value(row_weight.scalar_type() == acc && grad_output.scalar_type() == acc,
              "row_weight and grad_output must be float32, or float64 for float64 logits.");
  check_value(grad_output.device() == grad.device(), "grad_output must be on the logits' device.");
  check_value(grad_output.dim() == 0 || (grad_output.dim() == 1 && grad_output.is_contiguous() &&
                                         grad_output.size(0) == layout.rows),
              "grad_output must be () or contiguous (N,) = (", layout.rows, ",), got ",
              shape_of(grad_output), ".");
}

inline void check_stats(const Tensor& row_stats, const Tensor& chunk_stats, const Tensor& errors,
                        const Tensor& labels) {
  const auto is_table = [](const Tensor& x, int64_t rows) {
    return x.dim() == 2 && x.size(0) == rows && x.is_contiguous();
  };
  check_value(is_table(row_stats, kNumRowStats) && row_stats.size(1) == labels.numel(),
              "row_stats must be contiguous (", int(kNumRowStats), ", N), N = ", labels.numel(),
              ", got ", shape_of(row_stats), ".");
  check_value(is_table(chunk_stats, kNumChunkStats), "chunk_stats must be contiguous (",
              int(kNumChunkStats), ", C), got ", shape_of(chunk_stats), ".");
  check_value(errors.dim() == 1 && errors.size(0) == kNumErrorCounts + chunk_stats.size(1) &&
                  errors.is_contiguous(),
              "errors must be contiguous (", kNumErrorCounts + chunk_stats.size(1), ",), got ",
              shape_of(errors), ".");
  check_value(labels.dim() <= 3, "labels must have at most three dimensions, got ",
              shape_of(labels), ".");
}

// Allocation.

using Shape = torch::headeronly::IntHeaderOnlyArrayRef;  // of at most three dimensions

inline std::array<int64_t, 3> contiguous_strides(Shape shape) {
  std::array<int64_t, 3> strides{};
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0; step *= std::max<int64_t>(shape[d], 1)) strides[d] = step;
  return strides;
}

// Uninitialised, on the device of `like`. torch::stable::new_empty would look its operator up by
// name and box the arguments, which takes longer than the allocation itself.
inline Tensor fresh(const Tensor& like, Shape shape, Shape strides, ScalarType type) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(shape.size()), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type,
      device_index, &out));
  return Tensor(out);
}

// The same, contiguous.
inline Tensor fresh(const Tensor& like, Shape shape, ScalarType type) {
  const std::array<int64_t, 3> strides = contiguous_strides(shape);
  return fresh(like, shape, {strides.data(), shape.size()}, type);
}

// The elements of a contiguous tensor from `offset` on, as a view.
inline Tensor part_of(const Tensor& x, Shape shape, int64_t offset) {
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(x.get(), int64_t(shape.size()), shape.data(),
                                     contiguous_strides(shape).data(), offset, &out));
  return Tensor(out);
}

// Uninitialised, of the shape and dtype of `x`. Contiguous, except where x is the first T rows of
// each T', as logits[:, :-1] is, and T' is not much more: then with its strides, so that rows of
// odd length begin at the same place within 16 bytes. _ops.py has the same rule for fake tensors.
inline Tensor fresh_like(const Tensor& x) {
  if (x.dim() == 3 && x.numel() > 0 && x.size(0) > 1 && x.stride(2) == 1 &&
      x.stride(1) == x.size(2)) {
    const int64_t rows = x.stride(0) / x.stride(1);  // T'
    const bool whole = rows * x.stride(1) == x.stride(0);
    if (whole && rows > x.size(1) && rows <= x.size(1) + x.size(1) / 8 + 1)
      return fresh(x, x.sizes(), x.strides(), x.scalar_type());
  }
  return fresh(x, x.sizes(), x.scalar_type());
}

// Every result but the gradient.
inline ChunkLossResults allocate_results(const ChunkLossCall& call) {
  const Tensor& x = call.logits;
  const int64_t rows = row_layout(x).rows, chunks = call.options.num_chunks;
  const ScalarType acc = acc_type(x.scalar_type());
  return {call.options.reduction == kNone ? fresh(x, {rows}, acc) : fresh(x, {}, acc),
          fresh(x, {kNumRowStats, rows}, acc),
          fresh(x, {kNumChunkStats, chunks}, acc),
          fresh(x, {kNumErrorCounts + chunks}, ScalarType::Long),
          fresh(x, {rows}, acc),
          std::nullopt,
          false};
}

// The operators, as torch calls them: arguments on a stack, results in their place.

template <typename backend_t>
void chunk_loss(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const ChunkLossCall call = take_chunk_loss(arguments, true);
  check_call(call);
  ChunkLossResults r = allocate_results(call);
  if (call.options.need_grad) {
    r.grad = fresh_like(call.logits);
    r.grad_is_fresh = true;
  }
  backend_t::run(call, r);
  const Tensor grad = r.grad ? *r.grad : fresh(call.logits, {0}, call.logits.scalar_type());
  give_back(stack, r.loss, r.row_stats, r.chunk_stats, r.errors, r.row_weight, grad);
}

template <typename backend_t>
void chunk_loss_out(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const ChunkLossCall call = take_chunk_loss(arguments, false);
  const Tensor grad = arguments.tensor();
  check_call(call);
  check_grad_buffer(grad, call.logits);
  ChunkLossResults r = allocate_results(call);
  r.grad = grad;
  backend_t::run(call, r);
  give_back(stack, r.loss, r.row_stats, r.chunk_stats, r.errors, r.row_weight);
}

template <typename backend_t>
void chunk_loss_plan(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const PlanCall call = take_plan(arguments);
  check_plan_call(call);
  const Tensor& labels = call.rows.labels;
  const int64_t rows = labels.size(0);
  const PlanResults r{fresh(labels, {rows}, ScalarType::Double),
                      fresh(labels, {rows}, ScalarType::Char)};
  backend_t::plan(call, r);
  give_back(stack, r.row_weight, r.state);
}

template <typename backend_t>
void chunk_loss_backward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor grad = arguments.tensor(), row_weight = arguments.tensor();
  const Tensor grad_output = arguments.tensor();
  check_backward(grad, row_weight, grad_output);
  const Tensor out = fresh_like(grad);
  backend_t::scale_rows(ScaleCall{grad, row_weight, grad_output, out, true});
  give_back(stack, out);
}

template <typename backend_t>
void chunk_loss_backward_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor grad = arguments.tensor(), row_weight = arguments.tensor();
  const Tensor grad_output = arguments.tensor();
  check_backward(grad, row_weight, grad_output);
  backend_t::scale_rows(ScaleCall{grad, row_weight, grad_output, grad, false});
}

inline void chunk_loss_stats(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor row_stats = arguments.tensor(), chunk_stats = arguments.tensor();
  const Tensor errors = arguments.tensor(), labels = arguments.tensor();
  check_stats(row_stats, chunk_stats, errors, labels);
  const int64_t rows = labels.numel(), chunks = chunk_stats.size(1);
  for (int64_t s = 0; s < kNumRowStats; ++s)
    *stack++ = torch::stable::detail::from(part_of(row_stats, labels.sizes(), s * rows));
  for (int64_t s = 0; s < kNumChunkStats; ++s)
    *stack++ = torch::stable::detail::from(part_of(chunk_stats, {chunks}, s * chunks));
  give_back(stack, part_of(errors, {chunks}, kNumErrorCounts), part_of(errors, {}, kBadLabels),
            part_of(errors, {}, kBadChunks));
}

// Registration; `library` is the `m` of STABLE_TORCH_LIBRARY_IMPL.
template <typename backend_t, typename library_t>
void register_chunk_loss(library_t& library) {
  library.impl("chunk_loss", &chunk_loss<backend_t>);
  library.impl("chunk_loss_no_autograd", &chunk_loss<backend_t>);
  library.impl("chunk_loss_out", &chunk_loss_out<backend_t>);
  library.impl("chunk_loss_plan", &chunk_loss_plan<backend_t>);
  library.impl("chunk_loss_stats", &chunk_loss_stats);
  library.impl("chunk_loss_backward", &chunk_loss_backward<backend_t>);
  library.impl("chunk_loss_backward_", &chunk_loss_backward_<backend_t>);
}

}  // namespace cwt
