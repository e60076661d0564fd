// chunk_loss on CUDA: device, stream, and what the kernels are handed. The launchers are in
// launch.cu. Everything is queued on the current stream; only `validate` waits for the device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <limits>

#include "../entry.h"
#include "launch.h"

namespace cwt {
namespace {

using torch::stable::accelerator::DeviceGuard;

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
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), 0,
          attribute(cudaDevAttrClusterLaunch) != 0};
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
void check_vocab(int64_t vocab) {
  check_value(vocab <= std::numeric_limits<int32_t>::max() - 65536,
              "the CUDA kernels take vocabularies below 2^31 - 65536, got ", vocab, ".");
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
  const int64_t t = a.layout.rows - from_end;
  fetch(&label, a.labels + t, sizeof label);
  if (a.wide_chunk_ids) {
    fetch(&chunk, static_cast<const int64_t*>(a.chunk_ids) + t, sizeof chunk);
  } else {
    int32_t narrow = 0;
    fetch(&narrow, static_cast<const int32_t*>(a.chunk_ids) + t, sizeof narrow);
    chunk = narrow;
  }
  throw_bad_row(t, label, chunk, a.layout.vocab, a.options);
}

void set_plan_inputs(ChunkLossArgs& a, const PlanInputs& in, const ChunkLossOptions& o) {
  a.options = o;
  a.wide_chunk_ids = in.chunk_ids.scalar_type() == ScalarType::Long;
  a.labels = in.labels.const_data_ptr<int64_t>();
  a.chunk_ids = in.chunk_ids.const_data_ptr();
  a.active = real_array(in.active);
  a.token_weight = real_array(in.token_weight);
  a.normalizer = real_array(in.normalizer);
}

ChunkLossArgs kernel_args(const ChunkLossCall& call, const ChunkLossResults& r) {
  ChunkLossArgs a{};
  set_plan_inputs(a, call.rows, call.options);
  a.layout = row_layout(call.logits);
  a.inverse_softcap = a.options.softcap > 0 ? 1 / a.options.softcap : 0;
  a.smoothing_per_logit = a.options.label_smoothing / double(a.layout.vocab);
  a.type = logits_type(call.logits.scalar_type());
  a.logits = call.logits.const_data_ptr();
  a.loss = r.loss.mutable_data_ptr();
  a.row_stats = r.row_stats.mutable_data_ptr();
  a.chunk_stats = r.chunk_stats.mutable_data_ptr();
  a.errors = r.errors.mutable_data_ptr<int64_t>();
  a.row_weight = r.row_weight.mutable_data_ptr();
  if (r.grad) {
    a.grad = r.grad->mutable_data_ptr();
    a.grad_layout = row_layout(*r.grad);
  }
  return a;
}

Tensor bind_workspace(ChunkLossArgs& a, const Tensor& like) {
  Tensor workspace = fresh(like, {int64_t(chunk_loss_workspace_bytes(a))}, ScalarType::Byte);
  bind_chunk_loss_workspace(a, workspace.mutable_data_ptr());
  return workspace;
}

struct Cuda {
  static void run(const ChunkLossCall& call, const ChunkLossResults& r) {
    const DeviceGuard guard(call.logits.get_device_index());
    ChunkLossArgs a = kernel_args(call, r);
    check_vocab(a.layout.vocab);
    const Tensor workspace = bind_workspace(a, call.logits);
    const cudaStream_t stream = current_stream(call.logits);
    const DeviceLimits device = device_limits(call.logits);
    launch_chunk_loss_plan(a, device, stream);
    if (a.options.validate) check_rows(a, stream);
    launch_chunk_loss(a, device, stream);
  }

  static void plan(const PlanCall& call, const PlanResults& r) {
    const Tensor& labels = call.rows.labels;
    const DeviceGuard guard(labels.get_device_index());
    ChunkLossArgs a{};
    set_plan_inputs(a, call.rows, call.options);
    a.layout.rows = labels.size(0);
    a.layout.vocab = call.vocab;
    a.type = LogitsType::kDouble;  // so that row_weight is float64
    a.row_weight = r.row_weight.mutable_data_ptr();
    a.row_state = r.state.mutable_data_ptr<int8_t>();
    const Tensor workspace = bind_workspace(a, labels);
    launch_chunk_loss_plan(a, device_limits(labels), current_stream(labels));
  }

  static void scale_rows(const ScaleCall& call) {
    const RowLayout layout = row_layout(call.from);
    check_vocab(layout.vocab);
    if (layout.rows == 0) return;
    const DeviceGuard guard(call.from.get_device_index());
    const ChunkLossBackwardArgs a{logits_type(call.from.scalar_type()),
                                  layout,
                                  row_layout(call.to),
                                  call.from.const_data_ptr(),
                                  call.to.mutable_data_ptr(),
                                  call.row_weight.const_data_ptr(),
                                  call.grad_output.const_data_ptr(),
                                  call.grad_output.dim() == 1};
    launch_chunk_loss_backward(a, device_limits(call.from), current_stream(call.from));
  }
};

}  // namespace
}  // namespace cwt

STABLE_TORCH_LIBRARY_IMPL(cwt, CUDA, m) { cwt::register_chunk_loss<cwt::Cuda>(m); }
