"""chunk_loss of hidden @ weight.T + bias, without ever holding the (N, V) logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwt_ext import _ops
from cwt_ext._checks import (
    Reduction,
    StatsMode,
    check_options,
    check_tensors,
    count_chunks,
    flat_integers,
    flat_weights,
    normalizer_tensor,
)
from cwt_ext.chunk_loss import ChunkStats, RowStats, pack_stats

_OP = "linear_chunk_loss"
_BLOCK_BYTES = 32 << 20  # of logits at a time


class HiddenStats(NamedTuple):
    """Per chunk, of d_t = dLoss/dhidden_t over the rows that count, each (C,), without gradient."""

    grad_norm_sum: Tensor  # sum of ||d_t||
    grad_sq_sum: Tensor  # sum of ||d_t||^2
    sum_grad_norm: Tensor  # ||sum of d_t||; divided by grad_norm_sum: 1 = aligned, 0 = cancelling


class LinearChunkLoss(NamedTuple):
    """What linear_chunk_loss returns; `hidden` is None unless the hidden states require grad."""

    loss: Tensor
    stats: ChunkStats | None
    rows: RowStats | None
    hidden: HiddenStats | None


class _Problem(NamedTuple):
    """Everything but the tensors that take part in automatic differentiation."""

    labels: Tensor  # (N,)
    chunk_ids: Tensor  # (N,)
    row_weight: Tensor  # (N,) float64: dloss/dl_t
    picked: Tensor  # (n,) the rows that are evaluated
    num_chunks: int
    options: tuple[Any, ...]  # ignore_index, label_smoothing, z_loss, softcap, stats
    block_rows: int


class _Totals(NamedTuple):
    row_loss: Tensor  # (N,) row_weight_t l_t
    row_stats: Tensor  # (5, N)
    chunk_stats: Tensor  # (7, C)
    errors: Tensor  # (2 + C)
    hidden_stats: Tensor  # (3, C)


def linear_chunk_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    bias: Tensor | None = None,
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
    validate: bool | None = None,
    block_rows: int | None = None,
) -> LinearChunkLoss:
    """Returns chunk_loss(hidden @ weight.T + bias, ...) while holding few rows of logits at a time.

    Rows that do not count are dropped before the product. Gradients are formed in the forward pass,
    those of `weight` and `bias` accumulated in float32 (float64 for float64 inputs); what does
    not require grad costs nothing. For reduction "none" the logits are formed again in the backward
    pass, because only then the rows' upstream gradients are known. Picks rows on the host: not for
    torch.compile(fullgraph=True) nor CUDA graphs.

    Args:
        hidden: (N, D) or (B, T, D), float16/bfloat16/float32/float64.
        weight: (V, D), dtype of `hidden`: the output head.
        labels: (N,) or (B, T), int64, aligned with `hidden`.
        chunk_ids: shape of the labels, int32/int64; -1 = no chunk.
        bias: (V,), dtype of `hidden`.
        active: as in chunk_loss.
        token_weight: as in chunk_loss.
        reduction: as in chunk_loss.
        normalizer: as in chunk_loss.
        ignore_index: as in chunk_loss.
        label_smoothing: as in chunk_loss.
        z_loss: as in chunk_loss.
        softcap: as in chunk_loss.
        num_chunks: as in chunk_loss.
        stats: as in chunk_loss. The norm of a chunk's mean logits gradient is not offered here: it
            needs all rows of a chunk at once. `hidden.sum_grad_norm` is, for dLoss/dhidden.
        validate: as in chunk_loss; None = True on CPU, False elsewhere.
        block_rows: rows of logits held at a time; None = about 32 MiB of logits.

    Returns:
        LinearChunkLoss(loss, stats, rows, hidden): the first three as chunk_loss's.

    Raises:
        ValueError: a shape, device or option is wrong.
        TypeError: a dtype is wrong.
        IndexError: a label or chunk id is out of range (with `validate`).

    Example:
        >>> hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
        >>> ids = torch.tensor([0, 0, 1, 1, 2, -1])
        >>> out = linear_chunk_loss(hidden, head, torch.arange(6), ids)
        >>> out.loss.backward()
        >>> hidden.grad.shape, out.stats.tokens.tolist()
        (torch.Size([6, 4]), [2.0, 2.0, 1.0])
    """
    check_tensors(_OP, "hidden", hidden, labels, chunk_ids, active, token_weight, width="D")
    check_options(_OP, reduction, stats, label_smoothing, z_loss, softcap)
    _check_head(hidden, weight, bias)
    chunks = count_chunks(_OP, chunk_ids, active, num_chunks)
    y, ids = flat_integers(labels), flat_integers(chunk_ids)
    row_weight, state = _ops.chunk_loss_plan(
        y,
        ids,
        flat_weights(_OP, "active", active, keep_bool=True),
        flat_weights(_OP, "token_weight", token_weight),
        normalizer_tensor(_OP, normalizer, hidden.device, torch.float64),
        chunks,
        weight.shape[0],
        _ops.REDUCTIONS[reduction],
        ignore_index,
        _ops.STATS_MODES[stats],
    )
    bad = state >= _ops.FIRST_BAD_STATE
    if validate is None:
        validate = hidden.device.type == "cpu"
    if validate and bool(bad.any()):
        _raise_first_bad(bad, y, ids, weight.shape[0], chunks)
    problem = _Problem(
        y,
        ids,
        torch.where(bad, 0.0, row_weight),
        torch.nonzero(state).flatten(),
        chunks,
        (ignore_index, label_smoothing, z_loss, softcap or 0.0, _ops.STATS_MODES[stats]),
        _block_rows(block_rows, weight),
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    loss, row_stats, chunk_stats, errors, hidden_stats = _loss(
        flat, weight, bias, problem, reduction == "none"
    )
    if reduction == "none":
        loss = loss.view(labels.shape)
    of_hidden = HiddenStats(*hidden_stats.unbind()) if hidden_stats.numel() else None
    if stats is False:
        return LinearChunkLoss(loss, None, None, of_hidden)
    rows = RowStats(*row_stats.view(_ops.NUM_ROW_STATS, *labels.shape).unbind())
    return LinearChunkLoss(loss, pack_stats(chunk_stats, errors, False), rows, of_hidden)


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    width = hidden.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(f"{_OP}: weight must be (V, {width}), got {tuple(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{_OP}: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}.")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.dtype != hidden.dtype:
            raise TypeError(
                f"{_OP}: {name} must have the dtype of hidden ({hidden.dtype}), got {value.dtype}."
            )
        if value.device != hidden.device:
            raise ValueError(
                f"{_OP}: {name} must be on the device of hidden ({hidden.device}), "
                f"got {value.device}."
            )


def _block_rows(asked: int | None, weight: Tensor) -> int:
    if asked is None:
        return max(64, _BLOCK_BYTES // max(1, weight.shape[0] * weight.element_size()))
    if asked < 1:
        raise ValueError(f"{_OP}: block_rows must be at least 1, got {asked}.")
    return asked


def _raise_first_bad(bad: Tensor, labels: Tensor, ids: Tensor, vocab: int, chunks: int) -> None:
    row = int(torch.nonzero(bad)[0])
    raise IndexError(
        f"{_OP}: row {row} has label {int(labels[row])} and chunk id {int(ids[row])}; wanted a "
        f"label in [0, {vocab}) or ignore_index, and a chunk id in [-1, {chunks})."
    )


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, p: _Problem, per_row: bool
    ) -> tuple[Tensor, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        ctx.problem, ctx.needs, ctx.per_row = p, needs, per_row
        later = (False, False, False)
        totals, grads = _evaluate(hidden, weight, bias, p, later if per_row else needs)
        ctx.save_for_backward(*((hidden, weight, bias) if per_row else grads))
        ctx.mark_non_differentiable(*totals[1:])
        ctx.set_materialize_grads(False)
        acc = totals.row_stats.dtype
        row_loss = totals.row_loss
        return (row_loss if per_row else row_loss.sum()).to(acc), *totals[1:]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> Any:
        if grad_loss is None:
            return (None,) * 5
        if torch.is_grad_enabled():
            raise RuntimeError(f"{_OP}: double backward is not supported.")
        if ctx.per_row:
            p = ctx.problem._replace(
                row_weight=torch.where(
                    ctx.problem.row_weight == 0, 0.0, ctx.problem.row_weight * grad_loss.double()
                ),
            )
            hidden, weight, bias = ctx.saved_tensors
            _, grads = _evaluate(hidden, weight, bias, p, ctx.needs)
            return (*grads, None, None)
        scaled = (None if g is None else g * grad_loss.to(g.dtype) for g in ctx.saved_tensors)
        return (*scaled, None, None)


_loss: Callable[..., tuple[Tensor, ...]] = _Loss.apply


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: _Problem,
    needs: tuple[bool, bool, bool],
) -> tuple[_Totals, tuple[Tensor | None, ...]]:
    """Runs the blocks: returns the sums and the gradients of (hidden, weight, bias) asked for."""
    acc = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    n, vocab, chunks = len(p.labels), weight.shape[0], p.num_chunks
    new = hidden.new_zeros
    totals = _Totals(
        new(n, dtype=torch.float64),
        new(_ops.NUM_ROW_STATS, n, dtype=acc),
        new(_ops.NUM_CHUNK_STATS, chunks, dtype=torch.float64),
        new(_ops.NUM_ERROR_COUNTS + chunks, dtype=torch.int64),
        new((3, chunks) if needs[0] else 0, dtype=torch.float64),
    )
    grad_hidden = torch.zeros_like(hidden) if needs[0] else None
    grad_weight = torch.zeros_like(weight, dtype=acc) if needs[1] else None
    grad_bias = new(vocab, dtype=acc) if needs[2] else None
    pulls = new(chunks, hidden.shape[1], dtype=torch.float64)  # sum of dLoss/dhidden per chunk
    buffer = hidden.new_empty(min(p.block_rows, len(p.picked)), vocab)
    for index in torch.split(p.picked, p.block_rows):
        h, z = hidden[index], buffer[: len(index)]
        if bias is None:
            torch.mm(h, weight.t(), out=z)
        else:
            torch.addmm(bias, h, weight.t(), out=z)
        _block(p, index, z, any(needs), totals)
        if grad_hidden is not None:
            d = z @ weight
            grad_hidden[index] = d
            _add_hidden_stats(totals.hidden_stats, pulls, d.double(), p.chunk_ids[index])
        if grad_weight is not None:
            grad_weight.addmm_(z.to(acc).t(), h.to(acc))
        if grad_bias is not None:
            grad_bias += z.sum(0, dtype=acc)
    if grad_hidden is not None:
        totals.hidden_stats[2] = pulls.norm(dim=1)
    result = totals._replace(
        chunk_stats=totals.chunk_stats.to(acc), hidden_stats=totals.hidden_stats.to(acc)
    )
    narrow = (g if g is None else g.to(hidden.dtype) for g in (grad_weight, grad_bias))
    return result, (grad_hidden, *narrow)


def _block(p: _Problem, index: Tensor, z: Tensor, need_grad: bool, totals: _Totals) -> None:
    """Adds the block's numbers to `totals`; with need_grad its logits become their gradient."""
    ignore_index, label_smoothing, z_loss, softcap, stats = p.options
    args = (
        z,
        p.labels[index],
        p.chunk_ids[index],
        None,
        p.row_weight[index],
        None,
        p.num_chunks,
        _ops.REDUCTIONS["none"],
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        stats,
        False,
    )
    if need_grad:
        results = _ops.chunk_loss_out(*args, False, grad=z)
    else:
        results = _ops.chunk_loss(*args, False, False)
    loss, row_stats, chunk_stats, errors = results[:4]
    totals.row_loss[index] = loss.double()
    totals.row_stats[:, index] = row_stats
    totals.chunk_stats.add_(chunk_stats)
    totals.errors.add_(errors)


def _add_hidden_stats(stats: Tensor, pulls: Tensor, d: Tensor, ids: Tensor) -> None:
    # A product with the membership matrix adds in a fixed order on every device.
    member = (ids == torch.arange(len(pulls), device=ids.device)[:, None]).double()
    square = (d * d).sum(1)
    stats[0] += member @ square.sqrt()
    stats[1] += member @ square
    pulls += member @ d
