// Every operator of cwt_ext: the native table of contents. The kernels register themselves at the
// end of csrc/cpu/<op>_cpu.cpp and csrc/cuda/<op>_cuda.cpp; chunk_loss.h says what the arguments
// and results mean.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(cwt, m) {
  // Loss, statistics and (need_grad) the gradient of the loss with respect to the logits, in a
  // fresh tensor.
  m.def(
      "chunk_loss(Tensor logits, Tensor labels, Tensor chunk_ids, Tensor? active, Tensor? weight, "
      "Tensor? normalizer, SymInt num_chunks, int reduction, int ignore_index, float "
      "label_smoothing, "
      "float z_loss, float softcap, int stats, bool mean_grad_norm, bool need_grad, bool validate) "
      "-> "
      "(Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor row_weight, "
      "Tensor grad)");

  // The same; the gradient goes to `grad`, which may be the very memory of the logits, or not
  // overlap it.
  m.def(
      "chunk_loss_out(Tensor logits, Tensor labels, Tensor chunk_ids, Tensor? active, Tensor? "
      "weight, "
      "Tensor? normalizer, SymInt num_chunks, int reduction, int ignore_index, float "
      "label_smoothing, "
      "float z_loss, float softcap, int stats, bool mean_grad_norm, bool validate, *, Tensor(a!) "
      "grad) -> "
      "(Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor row_weight)");

  // grad times grad_output, a scalar or one number per row; rows whose row_weight is 0 are not
  // read, and stay 0.
  m.def("chunk_loss_backward(Tensor grad, Tensor row_weight, Tensor grad_output) -> Tensor");

  // The same in place; where every factor is 1 nothing is read or written.
  m.def("chunk_loss_backward_(Tensor(a!) grad, Tensor row_weight, Tensor grad_output) -> ()");

  // The instruction set that the CPU kernels run with on this machine: baseline, avx2 or avx512.
  m.def("cpu_capability() -> str");
}
