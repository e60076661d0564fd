// Every operator of cwt_ext: the native table of contents. csrc/chunk_loss/contract.h says what
// the arguments and results mean, csrc/chunk_loss/entry.h registers the kernels.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(cwt, m) {
  // Loss, statistics and (need_grad) the gradient with respect to the logits, in a fresh tensor.
  m.def(R"(chunk_loss(
    Tensor logits, Tensor labels, Tensor chunk_ids,
    Tensor? active, Tensor? token_weight, Tensor? normalizer,
    SymInt num_chunks, int reduction, int ignore_index,
    float label_smoothing, float z_loss, float softcap,
    int stats, bool mean_grad_norm, bool need_grad, bool validate
  ) -> (
    Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor row_weight, Tensor grad
  ))");

  // The same for a caller that has an autograd formula of its own: cwt_ext/_ops.py gives chunk_loss
  // one, and whatever passes it costs more than the operator itself on a small input.
  m.def(R"(chunk_loss_no_autograd(
    Tensor logits, Tensor labels, Tensor chunk_ids,
    Tensor? active, Tensor? token_weight, Tensor? normalizer,
    SymInt num_chunks, int reduction, int ignore_index,
    float label_smoothing, float z_loss, float softcap,
    int stats, bool mean_grad_norm, bool need_grad, bool validate
  ) -> (
    Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor row_weight, Tensor grad
  ))");

  // The same with the gradient in `grad`: the very memory of the logits, or none of it.
  m.def(R"(chunk_loss_out(
    Tensor logits, Tensor labels, Tensor chunk_ids,
    Tensor? active, Tensor? token_weight, Tensor? normalizer,
    SymInt num_chunks, int reduction, int ignore_index,
    float label_smoothing, float z_loss, float softcap,
    int stats, bool mean_grad_norm, bool validate,
    *, Tensor(a!) grad
  ) -> (
    Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor row_weight
  ))");

  // Which rows chunk_loss would read and with what weight they count; looks at no logits.
  m.def(R"(chunk_loss_plan(
    Tensor labels, Tensor chunk_ids,
    Tensor? active, Tensor? token_weight, Tensor? normalizer,
    SymInt num_chunks, SymInt vocab, int reduction, int ignore_index, int stats
  ) -> (
    Tensor row_weight, Tensor state
  ))");

  // The statistics of chunk_loss one by one, as views: per row, in the shape of `labels`, then per
  // chunk, then the error counts. One call where views made in Python would take 15.
  m.def(R"(chunk_loss_stats(
    Tensor(a) row_stats, Tensor(b) chunk_stats, Tensor(c) errors, Tensor labels
  ) -> (
    Tensor(a) nll, Tensor(a) logsumexp, Tensor(a) grad_norm, Tensor(a) entropy, Tensor(a) correct,
    Tensor(b) tokens, Tensor(b) nll_sum, Tensor(b) correct_sum, Tensor(b) entropy_sum,
    Tensor(b) grad_norm_sum, Tensor(b) grad_sq_sum, Tensor(b) mean_grad_norm,
    Tensor(c) nonfinite, Tensor(c) bad_labels, Tensor(c) bad_chunk_ids
  ))");

  // grad times grad_output, a scalar or one number per row; rows of row_weight 0 are 0, not read.
  m.def(R"(chunk_loss_backward(
    Tensor grad, Tensor row_weight, Tensor grad_output
  ) -> Tensor)");

  // The same in place; where every factor is 1 nothing is read or written.
  m.def(R"(chunk_loss_backward_(
    Tensor(a!) grad, Tensor row_weight, Tensor grad_output
  ) -> ())");

  // The instruction set that the CPU kernels run with on this machine: baseline, neon, avx2 or
  // avx512.
  m.def(R"(cpu_capability() -> str)");
}
