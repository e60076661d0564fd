"""What chunk_loss and linear_chunk_loss are both given: checked, and as the operators take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cwt_ext import _ops
from cwt_ext._checks import check_options, check_tensors

_REAL_TYPES = (torch.float32, torch.float64)  # of weights and normalizers, in the operators
_FEW = 64  # so many numbers are looked through faster as a list than by an operator


class RowArguments(NamedTuple):
    """What weighs the rows and shapes their losses, in the order of chunk_loss in csrc/ops.cpp."""

    labels: Tensor  # (N,) int64
    chunk_ids: Tensor  # (N,) int32 or int64
    active: Tensor | None  # (C,) bool, float32 or float64
    token_weight: Tensor | None  # (N,) float32 or float64
    normalizer: Tensor | None  # () float32 or float64
    num_chunks: int
    reduction: int  # of _ops.REDUCTIONS
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float  # 0: none
    stats: int  # of _ops.STATS_MODES


def row_arguments(
    op: str,
    name: str,
    x: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    active: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    normalizer: Tensor | float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    num_chunks: int | None,
    stats: bool | str,
    width: str = "V",
) -> RowArguments:
    """Returns the arguments of a call of `op`, whose rows are those of `x`, called `name`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names `op`.
    """
    check_tensors(op, name, x, labels, chunk_ids, active, token_weight, width)
    check_options(op, reduction, stats, label_smoothing, z_loss, softcap)
    chunk_ids = _flat(chunk_ids)
    chunks = _count_chunks(op, chunk_ids, active, num_chunks)
    return RowArguments(
        _flat(labels),
        chunk_ids,
        _flat_weights(op, "active", active, keep_bool=True),
        _flat_weights(op, "token_weight", token_weight),
        _normalizer(op, normalizer, x.device),
        chunks,
        _ops.REDUCTIONS[reduction],
        ignore_index,
        float(label_smoothing),
        float(z_loss),
        0.0 if softcap is None else float(softcap),
        _ops.STATS_MODES[stats],
    )


def _count_chunks(op: str, chunk_ids: Tensor, active: Tensor | None, num_chunks: int | None) -> int:
    """Returns C from whichever argument states it; raises ValueError where two disagree."""
    if num_chunks is not None and num_chunks < 0:
        raise ValueError(f"{op}: num_chunks must be at least 0, got {num_chunks}.")
    if active is not None:
        if active.dim() != 1 or (num_chunks is not None and active.shape[0] != num_chunks):
            want = "C" if num_chunks is None else num_chunks
            raise ValueError(
                f"{op}: active must be ({want},), one entry per chunk, got {tuple(active.shape)}."
            )
        return active.shape[0]
    if num_chunks is not None:
        return num_chunks
    if chunk_ids.numel() <= _FEW and chunk_ids.is_cpu:
        last = max(chunk_ids.tolist(), default=-1)
    else:
        last = int(chunk_ids.max()) if chunk_ids.numel() else -1
    return max(last + 1, 0)


def _flat(x: Tensor) -> Tensor:
    """Returns `x` as the operators take it: one dimension, contiguous."""
    return x if x.dim() == 1 and x.is_contiguous() else x.reshape(-1).contiguous()


def _flat_weights(op: str, name: str, x: Tensor | None, keep_bool: bool = False) -> Tensor | None:
    """Returns weights as the operators take them: (N,) float32 or float64 (or bool), contiguous."""
    if x is None:
        return None
    if x.dtype == torch.bool:
        x = x if keep_bool else x.float()
    elif not x.dtype.is_floating_point:
        raise TypeError(f"{op}: {name} must be bool or float, got {x.dtype}.")
    elif x.dtype not in _REAL_TYPES:
        x = x.float()
    return _flat(x)


def _normalizer(op: str, x: Tensor | float | None, device: torch.device) -> Tensor | None:
    """Returns the normalizer as a () tensor on `device`, checked where no host copy is needed."""
    if x is None:
        return None
    if not isinstance(x, Tensor):
        if not 0 < x < float("inf"):
            raise ValueError(f"{op}: normalizer must be above 0 and finite, got {x}.")
        return torch.full((), float(x), dtype=torch.float64, device=device)
    if x.numel() != 1 or x.requires_grad:
        raise ValueError(
            f"{op}: normalizer must be one number without gradient, got shape "
            f"{tuple(x.shape)}, requires_grad={x.requires_grad}."
        )
    dtype = x.dtype if x.dtype in _REAL_TYPES else torch.float64
    return x.to(device=device, dtype=dtype).reshape(())
