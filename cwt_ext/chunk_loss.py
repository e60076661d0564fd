"""Chunk-masked cross-entropy with per-chunk gradient statistics, loss and gradient in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwt_ext import _ops
from cwt_ext._arguments import RowArguments, row_arguments
from cwt_ext._checks import Reduction, StatsMode, is_eager
from cwt_ext._row_weights import float16_scale, weigh_rows

_OP = "chunk_loss"


class ChunkStats(NamedTuple):
    """Statistics per chunk, each (C,), float32 or (float64 logits) float64, without gradient.

    g_t is the gradient of row t's own unweighted loss with respect to its logits: for the plain
    loss softmax(z_t) - onehot(y_t). Sums run over the chunk's rows that count (`stats=True`) or
    over all its valid rows (`stats="all"`). A chunk that holds a NaN/Inf logit has NaN sums.
    """

    tokens: Tensor  # number of rows
    nll_sum: Tensor  # sum of -log p(label), nats
    correct: Tensor  # number of rows whose label has the largest logit
    entropy_sum: Tensor  # sum of the entropies of softmax(z_t), nats
    grad_norm_sum: Tensor  # sum of ||g_t||
    grad_sq_sum: Tensor  # sum of ||g_t||^2
    mean_grad_norm: Tensor | None  # ||mean of g_t||, None unless asked for
    nonfinite: Tensor  # int64: rows whose logits hold NaN or +Inf (or only -Inf)
    bad_labels: Tensor  # (), int64: labels outside [0, V) in the whole call
    bad_chunk_ids: Tensor  # (), int64: chunk ids outside [-1, C) in the whole call

    @property
    def nll(self) -> Tensor:
        """Mean -log p(label) of each chunk: nll_sum / tokens, 0 for a chunk without tokens."""
        return self.nll_sum / self.tokens.clamp_min(1)

    @property
    def accuracy(self) -> Tensor:
        """Share of correct tokens of each chunk: correct / tokens, 0 for a chunk without tokens."""
        return self.correct / self.tokens.clamp_min(1)

    @property
    def over_smoothing(self) -> Tensor:
        """||mean g|| / mean ||g|| in [0, 1]: 1 = all tokens pull the same way, 0 = they cancel."""
        if self.mean_grad_norm is None:
            raise ValueError("over_smoothing needs chunk_loss(..., mean_grad_norm=True).")
        ratio = self.mean_grad_norm * self.tokens / self.grad_norm_sum
        return torch.where(self.grad_norm_sum == 0, torch.zeros_like(ratio), ratio)

    @property
    def grad_share(self) -> Tensor:
        """Each chunk's share of the gradient: grad_norm_sum / sum over chunks of grad_norm_sum."""
        total = self.grad_norm_sum.sum()
        return self.grad_norm_sum / torch.where(total == 0, torch.ones_like(total), total)


class RowStats(NamedTuple):
    """Numbers per row, each of the labels' shape; 0 for rows that were not read."""

    nll: Tensor  # -log p(label), nats
    logsumexp: Tensor  # log sum_j exp(z_j), after softcap
    grad_norm: Tensor  # ||g_t||
    entropy: Tensor  # of softmax(z_t), nats
    correct: Tensor  # 1 where the label has the largest logit, else 0


class ChunkLoss(NamedTuple):
    """What chunk_loss returns; `stats` and `rows` are None with stats=False."""

    loss: Tensor
    stats: ChunkStats | None
    rows: RowStats | None


def shift_labels(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Returns the labels of next-token prediction: out[..., t] = labels[..., t + 1].

    The last position gets `ignore_index`. The same call aligns chunk ids, with -1 in its place.

    Args:
        labels: (T,) or (B, T), any integer dtype.
        ignore_index: what the last position of each sequence gets.

    Returns:
        A new tensor of the shape and dtype of `labels`.

    Example:
        >>> shift_labels(torch.tensor([5, 6, 7]))
        tensor([   6,    7, -100])
    """
    out = torch.full_like(labels, ignore_index)
    out[..., :-1] = labels[..., 1:]
    return out


def chunk_loss(
    logits: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    *,
    active: Tensor | None = None,
    token_weight: Tensor | None = None,
    reduction: Reduction = "token_mean",
    normalizer: Tensor | float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    num_chunks: int | None = None,
    stats: StatsMode = True,
    mean_grad_norm: bool = False,
    inplace: bool = False,
    grad_buffer: Tensor | None = None,
    validate: bool | None = None,
) -> ChunkLoss:
    """Returns the cross-entropy of the rows of active chunks, with statistics per chunk and row.

    For `active` of bool and no options it replaces::

        counts = (labels != ignore_index) & (chunk_ids >= 0) & active[chunk_ids]
        loss = F.cross_entropy(logits.float()[counts], labels[counts])

    A row counts when its label is not `ignore_index`, its chunk is active and its token weight is
    not 0.
    Logits of rows that do not count are not read; their gradient is exactly 0. With z = logits or
    softcap * tanh(logits / softcap), lse = logsumexp(z), nll = lse - z_label, a row's loss is
    (1 - label_smoothing) * nll + label_smoothing * (lse - mean(z)) + z_loss * lse^2.

    The gradient with respect to the logits is formed in the forward pass (if the logits require
    grad and grad mode is on), in a new tensor unless `inplace` or `grad_buffer` is given. A float16
    gradient is formed too large by a power of two. Backward divides by it, and multiplies by the
    loss scale, in float32: the gradient neither vanishes nor overflows. The result does not depend
    on the number of threads. Double backward raises.

    Args:
        logits: (N, V) or (B, T, V), float16/bfloat16/float32/float64, any strides.
        labels: (N,) or (B, T), int64, aligned with the logits (`shift_labels` aligns them).
        chunk_ids: shape of the labels, int32/int64; -1 = no chunk, the row does not count.
        active: (C,), bool or float chunk weights a_c; None = all 1.
        token_weight: shape of the labels, float or bool weights w_t; None = all 1. Constants: no
            gradient flows to `token_weight`, `active` or `normalizer`.
        reduction: "token_mean": sum(a w l) / sum(a w). "chunk_mean": mean over chunks (weighted by
            a) of each chunk's own mean (weighted by w). "sum": sum(a w l). "none": a w l per row.
        normalizer: replaces the denominator (for "sum" and "none": divides). Give the count of the
            whole step when a step is split over micro-batches or ranks.
        ignore_index: label of rows that do not count.
        label_smoothing: in [0, 1).
        z_loss: weight of lse^2, at least 0.
        softcap: bound of the logits, above 0; None = none.
        num_chunks: C. None = length of `active`, or max(chunk_ids) + 1, which reads the ids on the
            host: give one of the two under torch.compile and on an accelerator.
        stats: True: over the rows that count. "all": over every valid row, active or not (reads the
            logits of inactive chunks too). False: no statistics.
        mean_grad_norm: adds the exact norm of each chunk's mean gradient to the statistics.
        inplace: the gradient overwrites the logits, which nobody may read afterwards: their
            version counter is raised, so that autograd notices. Without effect, like `grad_buffer`,
            under torch.compile, for subclasses of Tensor, and where no gradient is due.
        grad_buffer: tensor of the logits' shape and dtype that receives the gradient: reusing one
            over steps saves the page faults of a new one. It must live until backward has run, and
            share no memory with the logits; given all of theirs, it acts as `inplace`.
        validate: raise IndexError for bad labels and ids. None = True on CPU, False elsewhere,
            where it costs a host synchronisation. When False, a bad row's loss is NaN, its gradient
            is 0, and `stats.bad_labels` or `stats.bad_chunk_ids` counts it.

    Returns:
        ChunkLoss(loss, stats, rows). The loss is float32 (float64 for float64 logits), () or, for
        "none", of the labels' shape. No counting row: 0, with a graph, and gradients 0. A row whose
        logits hold NaN or +Inf has NaN loss and gradient; -Inf logits are fine.

    Raises:
        ValueError: a shape, device or option is wrong, `inplace` on a leaf that requires grad, or a
            `grad_buffer` that overlaps the logits in part.
        TypeError: a dtype is wrong.
        IndexError: a label is outside [0, V) and not ignore_index, or a chunk id outside [-1, C).
        RuntimeError: under torch.func.grad, vjp or jvp, or with forward-mode tangents.

    Example:
        >>> logits = torch.randn(6, 100, requires_grad=True)
        >>> labels, ids = torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> out = chunk_loss(logits, labels, ids, active=torch.tensor([False, True, False]))
        >>> out.loss.backward()
        >>> logits.grad.abs().sum(1).ne(0).tolist()
        [False, False, True, True, False, False]
    """
    rows = row_arguments(
        _OP, "logits", logits, labels, chunk_ids, active, token_weight, reduction, normalizer,
        ignore_index, label_smoothing, z_loss, softcap, num_chunks, stats,
    )  # fmt: skip
    if mean_grad_norm and stats is False:
        raise ValueError(f"{_OP}: mean_grad_norm=True is a statistic and needs stats, got False.")
    if validate is None:
        validate = logits.device.type == "cpu"
    eager = is_eager(_OP, logits)
    need_grad = logits.requires_grad and torch.is_grad_enabled()
    buffer = None
    if need_grad and (inplace or grad_buffer is not None):
        buffer = _pick_buffer(logits, inplace, grad_buffer, eager)
    scale = None
    if need_grad and logits.dtype == torch.float16:
        rows, scale = _scale_up(rows, logits.shape[-1], validate)
    if not eager:
        loss, *found = _ops.chunk_loss(logits, *rows, mean_grad_norm, need_grad, validate)
    elif need_grad:
        found = []
        loss = _eager_loss(logits, buffer, (*rows, mean_grad_norm), validate, found)
    else:
        loss, *found = _ops.chunk_loss_no_autograd(logits, *rows, mean_grad_norm, False, validate)
    if scale is not None:
        loss = loss / scale
    if reduction == "none":
        loss = loss.view(labels.shape)
    if stats is False:
        return ChunkLoss(loss, None, None)
    row_stats, chunk_stats, errors = found[:3]
    return ChunkLoss(loss, *name_stats(row_stats, chunk_stats, errors, labels, mean_grad_norm))


def _scale_up(rows: RowArguments, vocab: int, validate: bool) -> tuple[RowArguments, Tensor]:
    """Returns arguments that make loss and gradient a power of two too large, and that power.

    The division of the loss by it brings its inverse, and with it any loss scale, to the gradient
    in float32, before the gradient is rounded to float16 for good.
    """
    row_weight, _ = weigh_rows(rows, vocab, validate)
    scale = float16_scale(row_weight)
    none = _ops.REDUCTIONS["none"]
    scaled = rows._replace(
        active=None,
        token_weight=row_weight * scale,
        normalizer=None,
        reduction=none if rows.reduction == none else _ops.REDUCTIONS["sum"],
    )
    return scaled, scale.float()


class _EagerLoss(torch.autograd.Function):
    """chunk_loss outside the compiler; the gradient goes to a buffer, if there is one.

    The operator's own autograd formula, which the compiler needs, would cost ten times as much on a
    small input. What is not differentiable goes to the list `found`: an output costs more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        buffer: Tensor | None,
        args: tuple[Any, ...],
        validate: bool,
        found: list[Tensor],
    ) -> Tensor:
        if buffer is None:
            results = _ops.chunk_loss_no_autograd(logits, *args, True, validate)
            buffer = results[-1]
        else:
            results = _ops.chunk_loss_out(logits, *args, validate, grad=buffer)
            torch.autograd.graph.increment_version(buffer)
        loss, row_stats, chunk_stats, errors, row_weight = results[:5]
        found += row_stats, chunk_stats, errors
        ctx.save_for_backward(row_weight, buffer)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        row_weight, grad = ctx.saved_tensors
        return _ops.scale_grad(grad, row_weight, grad_loss), None, None, None, None


# The apply of the parent leaves out what torch.func needs, which is not here.
_eager_loss: Callable[..., Tensor] = super(torch.autograd.Function, _EagerLoss).apply


def name_stats(
    row_stats: Tensor, chunk_stats: Tensor, errors: Tensor, labels: Tensor, mean_grad_norm: bool
) -> tuple[ChunkStats, RowStats]:
    """Returns the operator's tables of statistics by their names, per row as `labels` has them."""
    parts = _ops.chunk_loss_stats(row_stats, chunk_stats, errors, labels)
    mean = parts[11] if mean_grad_norm else None
    return ChunkStats._make((*parts[5:11], mean, *parts[12:])), RowStats._make(parts[:5])


def _pick_buffer(
    logits: Tensor, inplace: bool, grad_buffer: Tensor | None, eager: bool
) -> Tensor | None:
    if inplace and grad_buffer is not None:
        raise ValueError(f"{_OP}: give inplace=True or a grad_buffer, not both.")
    if inplace and logits.is_leaf:
        raise ValueError(
            f"{_OP}: inplace=True would overwrite a leaf that requires grad (a parameter or an "
            "input); pass the output of an operation, or inplace=False."
        )
    if grad_buffer is not None and (
        grad_buffer.shape != logits.shape
        or grad_buffer.dtype != logits.dtype
        or grad_buffer.device != logits.device
        or grad_buffer.requires_grad
    ):
        raise ValueError(
            f"{_OP}: grad_buffer must be a {logits.dtype} tensor {tuple(logits.shape)} on "
            f"{logits.device} without grad, got {grad_buffer.dtype} {tuple(grad_buffer.shape)} on "
            f"{grad_buffer.device}, requires_grad={grad_buffer.requires_grad}."
        )
    if not eager:
        return None  # the compiler owns memory; the functional operator is what it can trace
    return logits.detach() if grad_buffer is None else _own_memory(logits, grad_buffer)


def _own_memory(logits: Tensor, buffer: Tensor) -> Tensor:
    """Returns the buffer; raises ValueError where it shares a part of the logits' memory."""
    size = logits.element_size()
    apart = buffer.data_ptr() - logits.data_ptr()  # bytes
    if not -_reach(buffer) * size < apart < _reach(logits) * size or not logits.numel():
        return buffer
    if apart == 0 and buffer.stride() == logits.stride():
        if logits.is_leaf:
            raise ValueError(
                f"{_OP}: grad_buffer is the memory of the logits, a leaf that requires grad (a "
                "parameter or an input), which it would overwrite; give a buffer of its own."
            )
        return logits.detach()  # shares the version counter: autograd notices
    row, width = logits.stride(-2), logits.shape[-1]
    in_rows = (
        logits.dim() == 2
        and logits.stride() == buffer.stride() == (row, 1)
        and apart % size == 0
        and width <= apart // size % row <= row - width  # side by side in one wider matrix
    )
    if not in_rows:
        raise ValueError(
            f"{_OP}: grad_buffer overlaps the logits in part (it begins {apart} bytes after them, "
            f"strides {buffer.stride()} and {logits.stride()}): the gradient would overwrite "
            "logits that are still to be read. Give a buffer of its own, or inplace=True."
        )
    return buffer


def _reach(x: Tensor) -> int:
    """Returns how many elements lie from the first to the last, both included."""
    return 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
