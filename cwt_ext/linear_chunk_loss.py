"""chunk_loss of hidden @ weight.T + bias, without ever holding the (N, V) logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cwt_ext import _linear_blocks, _ops
from cwt_ext._arguments import row_arguments
from cwt_ext._checks import Reduction, StatsMode, is_eager
from cwt_ext._row_weights import weigh_rows
from cwt_ext.chunk_loss import ChunkStats, RowStats, name_stats

_OP = "linear_chunk_loss"
# Bytes of logits at a time: as many rows as keep the products busy. On a CPU 512 rows of 49152
# float32, on an accelerator 2048 rows of 128256 bfloat16 (benchmarks/README.md).
_BLOCK_BYTES = {"cpu": 112 << 20}
_ACCELERATOR_BLOCK_BYTES = 512 << 20


class HiddenStats(NamedTuple):
    """Per chunk, of d_t = dLoss/dhidden_t over the rows that count, each (C,), without gradient."""

    grad_norm_sum: Tensor  # sum of ||d_t||
    grad_sq_sum: Tensor  # sum of ||d_t||^2
    sum_grad_norm: Tensor  # ||sum of d_t||; divided by grad_norm_sum: 1 = aligned, 0 = cancelling


class LinearChunkLoss(NamedTuple):
    """What linear_chunk_loss returns.

    `stats` and `rows` are None with stats=False, `hidden` is None without hidden_stats=True.
    """

    loss: Tensor
    stats: ChunkStats | None
    rows: RowStats | None
    hidden: HiddenStats | None


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
    hidden_stats: bool = False,
    validate: bool | None = None,
    block_rows: int | None = None,
    block_bytes: int | None = None,
    max_rows: int | None = None,
) -> LinearChunkLoss:
    """Returns chunk_loss(hidden @ weight.T + bias, ...) while holding few rows of logits at a time.

    Rows that do not count are dropped before the product. Gradients are formed in the forward pass,
    those of `weight` and `bias` added up in float32 (float64 for float64 inputs) over the blocks;
    what does not require grad costs nothing. For reduction "none" the logits are formed again in
    the backward pass, because only then the rows' upstream gradients are known.

    Under autocast the products run in autocast's dtype, as those of F.linear would; gradients have
    the dtypes of their tensors. In float16 gradients are formed scaled up by a power of two and
    meet the loss scale in float32, so neither vanishes nor overflows.

    Picking the rows waits for an accelerator once, unless `max_rows` is given. Works under
    torch.compile(fullgraph=True); CUDA graphs need `max_rows`, `num_chunks` and validate=False.

    Args:
        hidden: (N, D) or (B, T, D), float16/bfloat16/float32/float64.
        weight: (V, D), dtype of `hidden` (under autocast any): the output head.
        labels: (N,) or (B, T), int64, aligned with `hidden`.
        chunk_ids: shape of the labels, int32/int64; -1 = no chunk.
        bias: (V,), dtype of `weight`.
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
        hidden_stats: adds statistics of dLoss/dhidden per chunk; not for reduction "none".
        validate: as in chunk_loss; None = True on CPU, False elsewhere.
        block_rows: rows of logits held at a time; None = as many as `block_bytes` hold.
        block_bytes: bytes of logits held at a time; None = 112 MiB on a CPU, 512 MiB elsewhere.
        max_rows: evaluates at most so many rows, a number known beforehand: nothing waits for the
            device then. Where more rows count the loss is NaN.

    Returns:
        LinearChunkLoss(loss, stats, rows, hidden): the first three as chunk_loss's.

    Raises:
        RuntimeError: forward-mode differentiation or double backward.
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
    rows = row_arguments(
        _OP, "hidden", hidden, labels, chunk_ids, active, token_weight, reduction, normalizer,
        ignore_index, label_smoothing, z_loss, softcap, num_chunks, stats, width="D",
    )  # fmt: skip
    for x in (hidden, weight, bias):
        if x is not None:
            is_eager(_OP, x)  # raises under transforms
    if hidden_stats and reduction == "none":
        raise ValueError(f'{_OP}: hidden_stats=True needs a reduction other than "none".')
    hidden = _in_product_dtype(hidden, weight, bias)
    if validate is None:
        validate = hidden.device.type == "cpu"
    row_weight, state = weigh_rows(rows, weight.shape[0], validate)
    may_differ = torch.is_grad_enabled()
    needs = [x is not None and x.requires_grad and may_differ for x in (hidden, weight, bias)]
    needs[0] |= hidden_stats
    results = _linear_blocks.Results(
        *_ops.linear_chunk_loss(
            hidden.reshape(-1, hidden.shape[-1]),
            weight,
            bias,
            rows.labels,
            rows.chunk_ids,
            row_weight,
            state,
            rows.num_chunks,
            reduction != "none",
            ignore_index,
            rows.label_smoothing,
            rows.z_loss,
            rows.softcap,
            rows.stats,
            hidden_stats,
            validate,
            _block_rows(block_rows, block_bytes, weight.shape[0], hidden),
            _capacity(max_rows),
            needs,
        )
    )
    loss = results.loss.view(labels.shape) if reduction == "none" else results.loss
    of_hidden = HiddenStats(*results.hidden_stats.unbind()) if hidden_stats else None
    if stats is False:
        return LinearChunkLoss(loss, None, None, of_hidden)
    tables = (results.row_stats, results.chunk_stats, results.errors)
    return LinearChunkLoss(loss, *name_stats(*tables, labels, False), of_hidden)


def _in_product_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the hidden states in the dtype of the products, after a look at the head."""
    _check_head(hidden, weight, bias)
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return hidden.to(torch.get_autocast_dtype(device))
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != hidden.dtype:
            raise TypeError(
                f"{_OP}: {name} must have the dtype of hidden ({hidden.dtype}), got {value.dtype}."
            )
    return hidden


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    width = hidden.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(f"{_OP}: weight must be (V, {width}), got {tuple(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{_OP}: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}.")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if not value.dtype.is_floating_point:
            raise TypeError(f"{_OP}: {name} must be a floating-point tensor, got {value.dtype}.")
        if value.device != hidden.device:
            raise ValueError(
                f"{_OP}: {name} must be on the device of hidden ({hidden.device}), "
                f"got {value.device}."
            )


def _block_rows(rows: int | None, bytes_: int | None, vocab: int, hidden: Tensor) -> int:
    if rows is not None and bytes_ is not None:
        raise ValueError(f"{_OP}: give block_rows or block_bytes, not both.")
    for name, value in (("block_rows", rows), ("block_bytes", bytes_)):
        if value is not None and value < 1:
            raise ValueError(f"{_OP}: {name} must be at least 1, got {value}.")
    if rows is not None:
        return rows
    if bytes_ is None:
        bytes_ = _BLOCK_BYTES.get(hidden.device.type, _ACCELERATOR_BLOCK_BYTES)
    return max(1, bytes_ // (vocab * hidden.element_size()))


def _capacity(max_rows: int | None) -> int:
    if max_rows is not None and max_rows < 0:
        raise ValueError(f"{_OP}: max_rows must be at least 0, got {max_rows}.")
    return -1 if max_rows is None else max_rows
