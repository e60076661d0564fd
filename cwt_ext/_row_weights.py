"""What each row weighs, and the power of two by which float16 gradients are formed too large."""

from __future__ import annotations

import torch
from torch import Tensor

from cwt_ext import _ops
from cwt_ext._arguments import RowArguments

# float16 holds nothing below 6e-8 and nothing above 65504. Row weights are 1 / tokens, so the
# gradient is formed 2^k times too large, with k such that the largest row weight is in [32, 64).
_FLOAT16_EXPONENT = 6


def weigh_rows(rows: RowArguments, vocab: int, validate: bool) -> tuple[Tensor, Tensor]:
    """Returns (row_weight, state) of chunk_loss_plan, where a bad row has the weight of its chunk.

    As `token_weight` of a call with reduction "sum" or "none" and no `active`, the weights give the
    loss that the arguments describe. The weight of a bad row decides no more than whether the
    statistics of its chunk are spoilt. With `validate`, where a bad row raises in the end, it
    stays NaN.

    Returns:
        row_weight (N,) float64, state (N,) int8.
    """
    row_weight, state = _ops.chunk_loss_plan(
        *rows[:6], vocab, rows.reduction, rows.ignore_index, rows.stats
    )
    if validate:
        return row_weight, state
    nominal = torch.ones_like(row_weight)
    if rows.token_weight is not None:
        nominal = rows.token_weight.double()
    if rows.active is not None and len(rows.active):
        places = rows.chunk_ids.clamp(0, len(rows.active) - 1)
        nominal = nominal * rows.active.double()[places]
    return torch.where(state >= _ops.FIRST_BAD_STATE, nominal, row_weight), state


def float16_scale(row_weight: Tensor) -> Tensor:
    """Returns the power of two, () float64, that brings the largest weight into [32, 64)."""
    if not len(row_weight):
        return row_weight.new_ones(())
    most = row_weight.nan_to_num(0.0).abs().max()
    exponent = _FLOAT16_EXPONENT - torch.frexp(most)[1]
    return torch.where(most > 0, torch.ldexp(torch.ones_like(most), exponent), 1.0)
