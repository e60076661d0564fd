"""The operator behind linear_chunk_loss: blocks of rows go through the head, the loss, and back.

A block's life: its logits are one matrix product in a buffer that all blocks share; chunk_loss
turns them into their own gradient in place; two more products turn that into the block's part of
dLoss/dhidden and dLoss/dweight. No more logits than one block's are ever held.

Written with PyTorch's products, so this is an operator in Python: `torch.compile` takes it as one
node, and every device that has a kernel of chunk_loss has it.
"""

# torch.library carries no types.
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwt_ext import _ops
from cwt_ext._row_weights import float16_scale

NUM_HIDDEN_STATS = 3
_NUM_TENSORS = 7  # the first fields of Call
_OP = "linear_chunk_loss"
_HALF_TYPES = (torch.float16, torch.bfloat16)
# On a CPU a block has a multiple of so many rows where there are more, and products in float32 and
# float64 take so many rows of the head at a time: up to 1.5 times as fast (benchmarks/README.md).
_ROW_TILE = 64
_HEAD_TILE = 512
# A gradient of the head that changes its dtype, or is added to one in float32, does so for so many
# rows at a time.
_HALF_HEAD_TILE = 4096

_LIBRARY = torch.library.Library("cwt", "FRAGMENT")
_LIBRARY.define(
    """linear_chunk_loss(
    Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor chunk_ids,
    Tensor row_weight, Tensor state, SymInt num_chunks, bool reduce,
    int ignore_index, float label_smoothing, float z_loss, float softcap, int stats,
    bool hidden_stats, bool validate, SymInt block_rows, SymInt max_rows, bool[] needs
  ) -> (
    Tensor loss, Tensor row_stats, Tensor chunk_stats, Tensor errors, Tensor hidden_stats,
    Tensor scale, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias
  )"""
)


class Call(NamedTuple):
    """The arguments of one call, in the order of the schema."""

    hidden: Tensor  # (N, D), in the dtype of the products
    weight: Tensor  # (V, D), any floating dtype: cast to that of `hidden`
    bias: Tensor | None  # (V,)
    labels: Tensor  # (N,)
    chunk_ids: Tensor  # (N,)
    row_weight: Tensor  # (N,) float64: dloss/dl_t
    state: Tensor  # (N,) int8, of chunk_loss_plan: 0 for rows that are not evaluated
    num_chunks: int
    reduce: bool  # whether the loss is the sum over the rows, else (N,)
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    stats: int
    hidden_stats: bool
    validate: bool
    block_rows: int
    max_rows: int  # as many rows are evaluated, without asking the device; -1: as many as there are
    needs: tuple[bool, bool, bool]  # gradients of hidden, weight, bias

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.hidden.dtype == torch.float64 else torch.float32

    @property
    def wanted(self) -> tuple[bool, bool, bool]:
        """The gradients to form now: none where each row's upstream gradient is yet to come."""
        return self.needs if self.reduce else (False, False, False)


class Results(NamedTuple):
    """What the operator returns. Gradients are `scale` times too large, (0,) where not asked for;
    that of hidden has its dtype, the others are float32 (float64)."""

    loss: Tensor
    row_stats: Tensor  # (5, N)
    chunk_stats: Tensor  # (7, C)
    errors: Tensor  # (2 + C)
    hidden_stats: Tensor  # (3, C), or (0,)
    scale: Tensor  # ()
    grad_hidden: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


class _Rows(NamedTuple):
    """The n rows that are evaluated, one after another."""

    picked: Tensor | None  # (n,) their places; None: all of them
    fits: Tensor | None  # (), whether max_rows were enough; None: no limit
    hidden: Tensor
    labels: Tensor
    chunk_ids: Tensor
    row_weight: Tensor

    def spread(self, values: Tensor, size: int) -> Tensor:
        """Returns values of the picked rows, along the last dimension, at their places."""
        if self.picked is None:
            return values
        out = values.new_zeros(*values.shape[:-1], size)
        return out.index_copy_(-1, self.picked, values)


def _refuse_bad_rows(c: Call) -> None:
    if c.state.numel() and int(c.state.max()) >= _ops.FIRST_BAD_STATE:
        row = int(torch.nonzero(c.state >= _ops.FIRST_BAD_STATE)[0])
        raise IndexError(
            f"{_OP}: row {row} has label {int(c.labels[row])} and chunk id "
            f"{int(c.chunk_ids[row])}; wanted a label in [0, {c.weight.shape[0]}) or ignore_index, "
            f"and a chunk id in [-1, {c.num_chunks})."
        )


def _pick_rows(c: Call, scale: Tensor | None) -> _Rows:
    rows = len(c.labels)
    row_weight = c.row_weight if scale is None else c.row_weight * scale
    everything = (c.hidden, c.labels, c.chunk_ids, row_weight)
    if c.max_rows < 0:
        picked = torch.nonzero(c.state).flatten()  # waits for the device
        if len(picked) == rows:
            return _Rows(None, None, *everything)
        return _Rows(picked, None, *(x[picked] for x in everything))
    fits = (c.state != 0).sum() <= c.max_rows
    picked = torch.argsort((c.state == 0).to(torch.int8), stable=True)[: c.max_rows]
    hidden, *rest = (x[picked] for x in everything)
    # A row that only fills the capacity may hold anything, NaN included.
    hidden = hidden.masked_fill((c.state[picked] == 0)[:, None], 0)
    return _Rows(picked, fits, hidden, *rest)


@contextmanager
def _as_given(device: torch.device) -> Iterator[None]:
    """No gradient and no casts by autocast: the operator's own rules hold."""
    casts = torch.is_autocast_enabled(device.type)
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if casts else nullcontext():
        yield


def _block_size(rows: int, most: int) -> int:
    """Returns the rows of a block: as few blocks as `most` allows, of one size but for the last."""
    count = max(-(-rows // most), 1)
    size = -(-rows // count)
    rounded = -(-size // _ROW_TILE) * _ROW_TILE
    return rounded if rounded <= min(most, rows) else size


class _Blocks:
    """The sums that the blocks add to."""

    def __init__(self, c: Call, rows: _Rows) -> None:
        n, width, vocab = len(rows.labels), c.hidden.shape[1], c.weight.shape[0]
        new = c.hidden.new_empty
        self.c, self.rows = c, rows
        self.weight = c.weight.to(c.hidden.dtype)
        self.bias = None if c.bias is None else c.bias.to(c.hidden.dtype)
        self.size = _block_size(n, c.block_rows)
        self.buffer = new(self.size, vocab)
        self.row_results: list[tuple[Tensor, Tensor]] = []  # (rows,) and (5, rows) of each block
        self.chunk_stats = c.hidden.new_zeros(
            _ops.NUM_CHUNK_STATS, c.num_chunks, dtype=torch.float64
        )
        self.errors = c.labels.new_zeros(_ops.NUM_ERROR_COUNTS + c.num_chunks)
        self.grad_hidden = new(n, width) if c.wanted[0] else None
        self.grad_weight = new(vocab, width, dtype=c.acc) if c.wanted[1] else None
        if self.grad_weight is not None and n == 0:
            self.grad_weight.zero_()  # there is no first block to write it
        self.grad_bias = c.hidden.new_zeros(vocab, dtype=c.acc) if c.wanted[2] else None
        self.pulls = _Pulls(c) if c.hidden_stats else None

    def run(self) -> None:
        for begin in range(0, len(self.rows.labels), max(self.size, 1)):
            end = min(begin + self.size, len(self.rows.labels))
            hidden, z = self.rows.hidden[begin:end], self.buffer[: end - begin]
            self._logits(hidden, z)
            self._loss(begin, end, z)
            self._products(begin, end, hidden, z)

    def losses_and_stats(self) -> tuple[Tensor, Tensor]:
        """Returns the (n,) losses and the (5, n) statistics of all rows."""
        if len(self.row_results) == 1:
            return self.row_results[0]
        new = self.c.hidden.new_empty
        none = (new(0, dtype=self.c.acc), new(_ops.NUM_ROW_STATS, 0, dtype=self.c.acc))
        losses, stats = zip(none, *self.row_results, strict=True)
        return torch.cat(losses), torch.cat(stats, dim=1)

    def stats_of_hidden(self, scale: Tensor | None) -> Tensor | None:
        return None if self.pulls is None else self.pulls.stats(scale).to(self.c.acc)

    def _logits(self, hidden: Tensor, z: Tensor) -> None:
        """Writes the block's logits to z, (rows, V)."""
        vocab = z.shape[1]
        whole = hidden.is_cuda or hidden.dtype in _HALF_TYPES
        step = vocab if whole else _HEAD_TILE
        for v in range(0, vocab, step):
            head, out = self.weight[v : v + step].t(), z[:, v : v + step]
            if self.bias is None:
                torch.mm(hidden, head, out=out)
            else:
                torch.addmm(self.bias[v : v + step], hidden, head, out=out)

    def _loss(self, begin: int, end: int, z: Tensor) -> None:
        """Keeps the block's numbers; where a gradient is due its logits become their gradient."""
        c, rows = self.c, self.rows
        args = (
            z,
            rows.labels[begin:end],
            rows.chunk_ids[begin:end],
            None,
            rows.row_weight[begin:end],
            None,
            c.num_chunks,
            _ops.REDUCTIONS["none"],
            c.ignore_index,
            c.label_smoothing,
            c.z_loss,
            c.softcap,
            c.stats,
            False,
        )
        if any(c.wanted):
            results = _ops.chunk_loss_out(*args, False, grad=z)
        else:
            results = _ops.chunk_loss(*args, False, False)
        self.row_results.append((results[0], results[1]))
        self.chunk_stats += results[2]
        self.errors += results[3]

    def _products(self, begin: int, end: int, hidden: Tensor, grad_logits: Tensor) -> None:
        if self.grad_hidden is not None:
            d = self.grad_hidden[begin:end]
            torch.mm(grad_logits, self.weight, out=d)
            if self.pulls is not None:
                self.pulls.add(d, self.rows.chunk_ids[begin:end])
        if self.grad_weight is not None:
            _add_product(self.grad_weight, grad_logits, hidden, first=begin == 0)
        if self.grad_bias is not None:
            self.grad_bias += grad_logits.sum(0, dtype=self.c.acc)


def _add_product(total: Tensor, grad_logits: Tensor, hidden: Tensor, first: bool) -> None:
    """total += grad_logits.T @ hidden, (V, D) in float32 (float64); the first block overwrites."""
    left = grad_logits.t()
    if hidden.dtype in _HALF_TYPES and not hidden.is_cuda:
        # The product of one block is rounded, as the CPU has no other; their sum is not.
        for v in range(0, len(total), _HALF_HEAD_TILE):
            part, product = total[v : v + _HALF_HEAD_TILE], left[v : v + _HALF_HEAD_TILE] @ hidden
            part.copy_(product) if first else part.add_(product)
        return
    wide: dict[str, Any] = {"out_dtype": torch.float32} if hidden.dtype in _HALF_TYPES else {}
    if first:
        torch.mm(left, hidden, out=total, **wide)
    else:
        torch.addmm(total, left, hidden, out=total, **wide)


class _Pulls:
    """Sums of the rows of dLoss/dhidden, per chunk."""

    def __init__(self, c: Call) -> None:
        new = c.hidden.new_zeros
        self.chunks = torch.arange(c.num_chunks, device=c.hidden.device)
        self.norms = new(c.num_chunks, dtype=torch.float64)
        self.squares = new(c.num_chunks, dtype=torch.float64)
        self.sums = new(c.num_chunks, c.hidden.shape[1], dtype=torch.float64)

    def add(self, grad_hidden: Tensor, chunk_ids: Tensor) -> None:
        # A product with the membership matrix adds in a fixed order on every device.
        member = (chunk_ids == self.chunks[:, None]).double()
        d = grad_hidden.double()
        square = (d * d).sum(1)
        self.norms += member @ square.sqrt()
        self.squares += member @ square
        self.sums += member @ d

    def stats(self, scale: Tensor | None) -> Tensor:
        of_sums = self.sums.norm(dim=1)
        if scale is None:
            return torch.stack([self.norms, self.squares, of_sums])
        return torch.stack([self.norms / scale, self.squares / (scale * scale), of_sums / scale])


def _linear_chunk_loss(*args: Any) -> tuple[Tensor, ...]:
    c = Call(*args)
    if c.validate:
        _refuse_bad_rows(c)
    with _as_given(c.hidden.device):
        in_float16 = c.hidden.dtype == torch.float16 and any(c.wanted)
        scale = float16_scale(c.row_weight) if in_float16 else None
        rows = _pick_rows(c, scale)
        blocks = _Blocks(c, rows)
        blocks.run()
        n = len(c.labels)
        row_loss, row_stats = (rows.spread(x, n) for x in blocks.losses_and_stats())
        row_loss = row_loss.double()
        if scale is not None:
            row_loss = row_loss / scale
        loss = row_loss.sum() if c.reduce else row_loss
        if rows.fits is not None:
            loss = torch.where(rows.fits, loss, torch.nan)
        grad_hidden = blocks.grad_hidden
        if grad_hidden is not None and rows.picked is not None:
            grad_hidden = torch.zeros_like(c.hidden).index_copy_(0, rows.picked, grad_hidden)
        return Results(
            loss.to(c.acc),
            row_stats,
            blocks.chunk_stats.to(c.acc),
            blocks.errors,
            _or_empty(c, blocks.stats_of_hidden(scale)),
            c.hidden.new_ones((), dtype=c.acc) if scale is None else scale.to(c.acc),
            _or_empty(c, grad_hidden),
            _or_empty(c, blocks.grad_weight),
            _or_empty(c, blocks.grad_bias),
        )


def _or_empty(c: Call, x: Tensor | None) -> Tensor:
    return c.hidden.new_empty(0, dtype=c.acc) if x is None else x


_LIBRARY.impl("linear_chunk_loss", _linear_chunk_loss, "CompositeExplicitAutograd")


@torch.library.register_fake("cwt::linear_chunk_loss")
def _(*args: Any) -> tuple[Tensor, ...]:
    c = Call(*args)
    new, n, vocab = c.hidden.new_empty, len(c.labels), c.weight.shape[0]

    def grad(which: int, *shape: int, dtype: torch.dtype = c.acc) -> Tensor:
        return new(*shape, dtype=dtype) if c.wanted[which] else new(0, dtype=c.acc)

    return Results(
        new(() if c.reduce else (n,), dtype=c.acc),
        new(_ops.NUM_ROW_STATS, n, dtype=c.acc),
        new(_ops.NUM_CHUNK_STATS, c.num_chunks, dtype=c.acc),
        c.labels.new_empty(_ops.NUM_ERROR_COUNTS + c.num_chunks),
        new((NUM_HIDDEN_STATS, c.num_chunks) if c.hidden_stats else 0, dtype=c.acc),
        new((), dtype=c.acc),
        grad(0, *c.hidden.shape, dtype=c.hidden.dtype),
        grad(1, *c.weight.shape),
        grad(2, vocab),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    c, r = Call(*inputs), Results(*output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = c[_NUM_TENSORS:]
    ctx.reduce = c.reduce
    ctx.dtypes = [None if x is None else x.dtype for x in c[:3]]
    kept = (r.scale, r.grad_hidden, r.grad_weight, r.grad_bias)
    ctx.save_for_backward(*(kept if c.reduce else c[:_NUM_TENSORS]))


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    results: list[Tensor | None] = [None] * len(Call._fields)
    if grad_loss is None:
        return tuple(results)
    if torch.is_grad_enabled():
        raise RuntimeError(f"{_OP}: double backward is not supported.")
    if ctx.reduce:
        scale, *grads = ctx.saved_tensors
        factor = grad_loss.to(scale.dtype) / scale
    else:
        grads, factor = _grads_of_rows(Call(*ctx.saved_tensors, *ctx.options), grad_loss)
    for i, grad in enumerate(grads):
        if ctx.needs_input_grad[i]:
            results[i] = _times(grad, factor, ctx.dtypes[i])
    return tuple(results)


def _grads_of_rows(c: Call, grad_loss: Tensor) -> tuple[list[Tensor], Tensor]:
    """Returns the gradients where each row has its own upstream gradient, and their factor.

    Only now the upstream gradients are known, so the logits are formed once more.
    """
    row_weight = torch.where(c.row_weight == 0, 0.0, c.row_weight * grad_loss.double())
    again = c._replace(row_weight=row_weight, reduce=True, validate=False)
    r = Results(*_ops.linear_chunk_loss(*again))
    return [r.grad_hidden, r.grad_weight, r.grad_bias], 1 / r.scale


def _times(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns grad * factor in a dtype, rounded once; in grad's memory where that serves."""
    if grad.dtype == dtype:
        if grad.dim() == 2:
            return _ops.scale_grad(grad, None, factor)
        return _ops.scale_grad(grad[None], None, factor)[0]
    if torch.compiler.is_compiling() or len(grad) <= _HALF_HEAD_TILE:
        return (grad * factor).to(dtype)
    out = grad.new_empty(grad.shape, dtype=dtype)
    for part, wide in zip(out.split(_HALF_HEAD_TILE), grad.split(_HALF_HEAD_TILE), strict=True):
        part.copy_(wide * factor)  # no second gradient in the wider dtype
    return out


torch.library.register_autograd("cwt::linear_chunk_loss", _backward, setup_context=_save)
