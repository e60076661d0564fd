// chunk_loss on CUDA: checks, allocation, device and stream. The kernels are in
// chunk_loss_kernel.cu. Everything is queued on the current stream; only `validate` waits for the
// device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../chunk_loss_checks.h"
#include "chunk_loss_kernel.h"

namespace cwt {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(
        text_of("chunk_loss: CUDA error in ", what, ": ", cudaGetErrorString(error), "."));
}

// The stream that torch would use now. This library has a CUDA runtime of its own, linked
// statically, which is told the device as well.
cudaStream_t current_stream(const Tensor& x) {
  check_cuda(cudaSetDevice(x.get_device_index()), "choosing the device");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

DeviceLimits device_limits(const Tensor& x) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, x.get_device_index()), "asking for limits");
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), 0};
}

LogitsType logits_type(ScalarType t) {
  if (t == ScalarType::Half) return LogitsType::kHalf;
  if (t == ScalarType::BFloat16) return LogitsType::kBFloat16;
  return t == ScalarType::Float ? LogitsType::kFloat : LogitsType::kDouble;
}

RealArray real_array(const MaybeTensor& x) {
  if (!x) return {nullptr, RealType::kNone};
  const ScalarType t = x->scalar_type();
  const RealType type = t == ScalarType::Bool    ? RealType::kBool
                        : t == ScalarType::Float ? RealType::kFloat
                                                 : RealType::kDouble;
  return {x->const_data_ptr(), type};
}

// Positions within a row are 32-bit in the kernels.
void check_vocab(const RowLayout& layout) {
  check_value(layout.vocab <= std::numeric_limits<int32_t>::max() - 65536,
              "the CUDA kernels take vocabularies below 2^31 - 65536, got ", layout.vocab, ".");
}

// Waits for the device and raises for the first bad row, as the CPU does.
void check_rows(const ChunkLossArgs& a, cudaStream_t stream) {
  const auto fetch = [&](void* to, const void* from, size_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "validate");
    check_cuda(cudaStreamSynchronize(stream), "validate");
  };
  int64_t from_end = 0, label = 0, chunk = 0;
  fetch(&from_end, a.counters + kFirstBadRow, sizeof from_end);
  if (from_end == 0) return;
  const int64_t t = a.layout.rows - from_end, chunks = a.options.num_chunks;
  fetch(&label, a.labels + t, sizeof label);
  if (a.wide_chunk_ids) {
    fetch(&chunk, static_cast<const int64_t*>(a.chunk_ids) + t, sizeof chunk);
  } else {
    int32_t narrow = 0;
    fetch(&narrow, static_cast<const int32_t*>(a.chunk_ids) + t, sizeof narrow);
    chunk = narrow;
  }
  if (chunk < -1 || chunk >= chunks)
    throw std::out_of_range(text_of("chunk_loss: chunk_ids[", t, "] is ", chunk, ", outside [-1, ",
                                    chunks, ") (label ", label, ", num_chunks ", chunks, ")."));
  throw std::out_of_range(text_of("chunk_loss: labels[", t, "] is ", label,
                                  ", which is neither in [0, ", a.layout.vocab,
                                  ") nor ignore_index = ", a.options.ignore_index, "."));
}

Results run(const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids,
            const MaybeTensor& active, const MaybeTensor& weight, const MaybeTensor& normalizer,
            const ChunkLossOptions& o, const Tensor* grad) {
  const ScalarType acc = acc_type(logits.scalar_type());
  const auto fresh = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(logits, {shape.begin(), shape.size()}, type);
  };
  const RowLayout layout = row_layout(logits);
  const int64_t n = layout.rows;
  check_vocab(layout);
  Tensor loss = o.reduction == kNone ? fresh({n}, acc) : fresh({}, acc);
  Tensor row_stats = fresh({kNumRowStats, n}, acc), row_weight = fresh({n}, acc);
  Tensor chunk_stats = fresh({kNumChunkStats, o.num_chunks}, acc);
  Tensor errors = fresh({kNumErrorCounts + o.num_chunks}, ScalarType::Long);

  ChunkLossArgs a{};
  a.options = o;
  a.inverse_softcap = o.softcap > 0 ? 1 / o.softcap : 0;
  a.smoothing_per_logit = o.label_smoothing / double(layout.vocab);
  a.layout = layout;
  a.type = logits_type(logits.scalar_type());
  a.wide_chunk_ids = chunk_ids.scalar_type() == ScalarType::Long;
  a.logits = logits.const_data_ptr();
  a.labels = labels.const_data_ptr<int64_t>();
  a.chunk_ids = chunk_ids.const_data_ptr();
  a.active = real_array(active);
  a.weight = real_array(weight);
  a.normalizer = real_array(normalizer);
  a.loss = loss.mutable_data_ptr();
  a.row_stats = row_stats.mutable_data_ptr();
  a.chunk_stats = chunk_stats.mutable_data_ptr();
  a.errors = errors.mutable_data_ptr<int64_t>();
  a.row_weight = row_weight.mutable_data_ptr();
  if (grad) {
    a.grad = grad->mutable_data_ptr();
    a.grad_layout = row_layout(*grad);
  }
  Tensor workspace = fresh({int64_t(chunk_loss_workspace_bytes(a))}, ScalarType::Byte);
  bind_chunk_loss_workspace(a, workspace.mutable_data_ptr());
  const cudaStream_t stream = current_stream(logits);
  const DeviceLimits device = device_limits(logits);
  launch_chunk_loss_plan(a, device, stream);
  if (o.validate) check_rows(a, stream);
  launch_chunk_loss(a, device, stream);
  return {loss, row_stats, chunk_stats, errors, row_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> chunk_loss_cuda(
    const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids, const MaybeTensor& active,
    const MaybeTensor& weight, const MaybeTensor& normalizer, int64_t num_chunks, int64_t reduction,
    int64_t ignore_index, double label_smoothing, double z_loss, double softcap, int64_t stats,
    bool mean_grad_norm, bool need_grad, bool validate) {
  const ChunkLossOptions o{
      num_chunks, Reduction(reduction), ignore_index,   label_smoothing, z_loss,
      softcap,    StatsMode(stats),     mean_grad_norm, need_grad,       validate};
  check_inputs(logits, labels, chunk_ids, active, weight, normalizer, o);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const int64_t none[] = {0};
  Tensor grad = need_grad ? torch::stable::new_empty(logits, logits.sizes())
                          : torch::stable::new_empty(logits, {none, 1});
  const Results r =
      run(logits, labels, chunk_ids, active, weight, normalizer, o, need_grad ? &grad : nullptr);
  return std::tuple_cat(r, std::make_tuple(grad));
}

Results chunk_loss_out_cuda(const Tensor& logits, const Tensor& labels, const Tensor& chunk_ids,
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
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  return run(logits, labels, chunk_ids, active, weight, normalizer, o, &grad);
}

void scale_rows(const Tensor& from, const Tensor& to, const Tensor& row_weight,
                const Tensor& grad_output) {
  const RowLayout layout = row_layout(from);
  check_vocab(layout);
  if (layout.rows == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(from.get_device_index());
  const ChunkLossBackwardArgs a{logits_type(from.scalar_type()),
                                layout,
                                row_layout(to),
                                from.const_data_ptr(),
                                to.mutable_data_ptr(),
                                row_weight.const_data_ptr(),
                                grad_output.const_data_ptr(),
                                grad_output.dim() == 1};
  launch_chunk_loss_backward(a, device_limits(from), current_stream(from));
}

Tensor chunk_loss_backward_cuda(const Tensor& grad, const Tensor& row_weight,
                                const Tensor& grad_output) {
  check_backward(grad, row_weight, grad_output);
  Tensor out = torch::stable::new_empty(grad, grad.sizes());
  scale_rows(grad, out, row_weight, grad_output);
  return out;
}

void chunk_loss_backward_cuda_(const Tensor& grad, const Tensor& row_weight,
                               const Tensor& grad_output) {
  check_backward(grad, row_weight, grad_output);
  scale_rows(grad, grad, row_weight, grad_output);
}

}  // namespace
}  // namespace cwt

STABLE_TORCH_LIBRARY_IMPL(cwt, CUDA, m) {
  m.impl("chunk_loss", TORCH_BOX(&cwt::chunk_loss_cuda));
  m.impl("chunk_loss_out", TORCH_BOX(&cwt::chunk_loss_out_cuda));
  m.impl("chunk_loss_backward", TORCH_BOX(&cwt::chunk_loss_backward_cuda));
  m.impl("chunk_loss_backward_", TORCH_BOX(&cwt::chunk_loss_backward_cuda_));
}
