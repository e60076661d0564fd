"""What chunk_loss and linear_chunk_loss ask of their arguments; `op` names the caller."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cwt_ext import _ops

Reduction = Literal["token_mean", "chunk_mean", "sum", "none"]
StatsMode = bool | Literal["all"]
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(
    op: str,
    name: str,
    x: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    active: Tensor | None,
    token_weight: Tensor | None,
    width: str = "V",
) -> None:
    """Raises TypeError or ValueError unless dtypes, shapes and devices fit `x`, called `name`."""
    if active is None and token_weight is None and _plainly_right(x, labels, chunk_ids):
        return
    given = {name: x, "labels": labels, "chunk_ids": chunk_ids}
    constants = {"active": active, "token_weight": token_weight}
    given |= {key: value for key, value in constants.items() if value is not None}
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {key} must be a tensor, got {type(value).__name__}.")
        if value.device != x.device:
            raise ValueError(
                f"{op}: {key} must be on the device of {name} ({x.device}), got {value.device}."
            )
        if key in constants and value.requires_grad:
            raise ValueError(f"{op}: {key} is a constant here, but requires grad: detach it.")
    _check_dtypes(op, name, x, labels, chunk_ids)
    if x.dim() not in (2, 3) or x.shape[-1] == 0:
        raise ValueError(
            f"{op}: {name} must be (N, {width}) or (B, T, {width}) with {width} >= 1, "
            f"got {tuple(x.shape)}."
        )
    shape = tuple(x.shape[:-1])
    for key in ("labels", "chunk_ids", "token_weight"):
        if key in given and tuple(given[key].shape) not in ((x.shape[:-1].numel(),), shape):
            raise ValueError(
                f"{op}: {key} must have one entry per row of {name} {tuple(x.shape)}, that is "
                f"shape {shape}, got {tuple(given[key].shape)}."
            )


def _plainly_right(x: object, labels: object, chunk_ids: object) -> bool:
    """The usual case in one expression: a small call spends much of its time on checks."""
    return (
        isinstance(x, Tensor)
        and isinstance(labels, Tensor)
        and isinstance(chunk_ids, Tensor)
        and labels.dtype == torch.int64
        and chunk_ids.dtype in (torch.int32, torch.int64)
        and x.dtype in _FLOAT_DTYPES
        and x.dim() in (2, 3)
        and x.shape[-1] > 0
        and x.shape[:-1] == labels.shape == chunk_ids.shape
        and x.device == labels.device == chunk_ids.device
    )


def _check_dtypes(op: str, name: str, x: Tensor, labels: Tensor, chunk_ids: Tensor) -> None:
    if x.dtype not in _FLOAT_DTYPES:
        raise TypeError(
            f"{op}: {name} must be float16, bfloat16, float32 or float64, got {x.dtype}."
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"{op}: labels must be int64, got {labels.dtype}.")
    if chunk_ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: chunk_ids must be int32 or int64, got {chunk_ids.dtype}.")


def is_eager(op: str, x: Tensor) -> bool:
    """Returns whether `x` is a plain tensor, outside the compiler and torch.func.

    Raises:
        RuntimeError: derivatives are asked for that the operator would leave out.
    """
    eager = (
        type(x) in _PLAIN_TYPES
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )
    if forward_ad._current_level >= 0:
        tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
        if tangent is not None:
            raise RuntimeError(
                f"{op}: forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad) are not "
                "supported: only backward has a formula. Use torch.autograd.grad, or "
                "cwt_ext.reference.row_losses for forward mode."
            )
    if eager or torch.compiler.is_compiling():
        return eager
    if torch._C._functorch.is_gradtrackingtensor(x):
        raise RuntimeError(
            f"{op}: torch.func.grad, vjp and jacrev are not supported. Call "
            "torch.autograd.grad(loss, inputs) or loss.backward() instead."
        )
    return False


def check_options(
    op: str,
    reduction: str,
    stats: bool | str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> None:
    """Raises ValueError unless every option is one that exists."""
    if reduction not in _ops.REDUCTIONS:
        raise ValueError(
            f"{op}: reduction must be one of {', '.join(_ops.REDUCTIONS)}, got {reduction!r}."
        )
    if stats not in _ops.STATS_MODES:
        raise ValueError(f'{op}: stats must be True, False or "all", got {stats!r}.')
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1), got {label_smoothing}.")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"{op}: z_loss must be at least 0 and finite, got {z_loss}.")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"{op}: softcap must be above 0 and finite (or None), got {softcap}.")
