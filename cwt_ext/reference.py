"""Oracles: slow, obvious, plain torch; they share no code with the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ReferenceLoss(NamedTuple):
    """What the chunk_loss oracle returns: `chunks` maps a statistic's name to its (C,) tensor."""

    loss: Tensor
    grad: Tensor  # (N, V), of the sum of `loss`
    chunks: dict[str, Tensor]
    rows: dict[str, Tensor]


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Returns softcap * tanh(logits / softcap), or the logits where softcap is None."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def row_losses(
    logits: Tensor, labels: Tensor, label_smoothing: float, z_loss: float, softcap: float | None
) -> Tensor:
    """Returns the loss of each row, (N,), differentiable any number of times.

    Args:
        logits: (N, V), any float dtype; give float64 for an oracle.
        labels: (N,), int64 in [0, V).
        label_smoothing: in [0, 1).
        z_loss: weight of logsumexp^2.
        softcap: bound of the logits or None.

    Returns:
        (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2.
    """
    z = softcapped(logits, softcap)
    rows = torch.arange(len(z), device=z.device)
    z_label = z[rows, labels]
    # log sum_j exp(z_j - z_y) over j != y, then log1p: exact where the label has nearly all mass.
    others = (z - z_label[:, None]).masked_fill(rows_label_mask(z, labels), -torch.inf)
    nll = torch.nn.functional.softplus(torch.logsumexp(others, -1), threshold=700.0)
    lse = nll + z_label
    loss = nll
    if label_smoothing:
        loss = loss + label_smoothing * (z_label - z.mean(-1))
    if z_loss:
        loss = loss + z_loss * lse**2
    return loss


def rows_label_mask(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns (N, V) bool, True at each row's label."""
    return torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]


def row_gradients(
    logits: Tensor, labels: Tensor, label_smoothing: float, z_loss: float, softcap: float | None
) -> Tensor:
    """Returns (N, V): the gradient of each row's loss with respect to its logits.

    Written out, because automatic differentiation of the label's entry cancels near p = 1.
    """
    z = softcapped(logits, softcap)
    p = torch.softmax(z, -1)
    mask = rows_label_mask(z, labels)
    lse = torch.logsumexp(z, -1, keepdim=True)
    not_label = p.masked_fill(mask, 0).sum(-1, keepdim=True)
    g = torch.where(mask, -not_label, p) + 2 * z_loss * lse * p
    g = g - label_smoothing / z.shape[-1] + label_smoothing * mask.to(z.dtype)
    return g if softcap is None else g / torch.cosh(logits / softcap) ** 2


def row_weights(
    counts: Tensor,
    chunk_ids: Tensor,
    active: Tensor,
    token_weight: Tensor,
    reduction: str,
    normalizer: float | None,
) -> Tensor:
    """Returns (N,) float64: d loss / d row loss."""
    ids = chunk_ids.clamp_min(0)
    a = torch.where(counts, active[ids] if len(active) else 1.0, 0.0).double()
    w = torch.where(counts, token_weight, 0.0).double()
    if reduction == "chunk_mean":
        sums = torch.zeros(len(active), dtype=torch.float64).index_add(0, ids[counts], w[counts])
        present = torch.zeros(len(active), dtype=torch.bool)
        present[ids[counts]] = True
        total = active[present].sum() if normalizer is None else normalizer
        out = a * w
        out[counts] = out[counts] / sums[ids[counts]] / total
        return out
    if normalizer is None:
        normalizer = float((a * w).sum()) if reduction == "token_mean" and counts.any() else 1.0
    return a * w / normalizer


def chunk_loss(
    logits: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    *,
    active: Tensor | None = None,
    token_weight: Tensor | None = None,
    reduction: str = "token_mean",
    normalizer: float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    num_chunks: int | None = None,
    stats: bool | str = True,
) -> ReferenceLoss:
    """Returns what cwt_ext.chunk_loss should, computed in float64 on the CPU, one idea per line.

    Args:
        logits: (N, V) or (B, T, V). Gradients flow to it through ordinary autograd.
        labels: one per row, int64.
        chunk_ids: one per row, -1 = none.
        active: (C,) bool or float, None = all 1.
        token_weight: one per row, None = all 1.
        reduction: as in cwt_ext.chunk_loss.
        normalizer: as in cwt_ext.chunk_loss.
        ignore_index: as in cwt_ext.chunk_loss.
        label_smoothing: as in cwt_ext.chunk_loss.
        z_loss: as in cwt_ext.chunk_loss.
        softcap: as in cwt_ext.chunk_loss.
        num_chunks: C, None = length of `active`, or max(chunk_ids) + 1.
        stats: "all" for every valid row; anything else for the rows that count.

    Returns:
        ReferenceLoss with float64 tensors; labels and ids are taken as valid.
    """
    x = logits.double().cpu().reshape(-1, logits.shape[-1])
    y, c = labels.cpu().reshape(-1), chunk_ids.cpu().reshape(-1).long()
    n = len(x)
    if num_chunks is None:
        num_chunks = len(active) if active is not None else int(c.max()) + 1 if n else 0
    a = torch.ones(num_chunks).double() if active is None else active.cpu().double()
    w = torch.ones(n).double() if token_weight is None else token_weight.cpu().reshape(-1).double()
    valid = (y != ignore_index) & (c >= 0)
    counts = valid & (w != 0)
    if num_chunks:
        counts &= a[c.clamp_min(0)] != 0
    kappa = row_weights(counts, c, a, w, reduction, normalizer)

    losses = torch.zeros(n, dtype=torch.float64)
    losses[counts] = row_losses(x[counts], y[counts], label_smoothing, z_loss, softcap)
    loss = losses * kappa if reduction == "none" else (losses * kappa).sum()

    read = valid if stats == "all" else counts
    with torch.no_grad():
        rows, chunks = _statistics(x, y, c, read, num_chunks, label_smoothing, z_loss, softcap)
        grad = torch.zeros_like(x)
        own = row_gradients(x[counts], y[counts], label_smoothing, z_loss, softcap)
        grad[counts] = kappa[counts, None] * own
    return ReferenceLoss(loss, grad, chunks, rows)


def _statistics(
    x: Tensor,
    y: Tensor,
    c: Tensor,
    read: Tensor,
    num_chunks: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    z, label = softcapped(x[read], softcap), y[read]
    g = row_gradients(x[read], label, label_smoothing, z_loss, softcap)
    nll = row_losses(x[read], label, 0.0, 0.0, softcap)
    log_p = torch.where(rows_label_mask(z, label), -nll[:, None], torch.log_softmax(z, -1))
    measured = {
        "nll": nll,
        "logsumexp": torch.logsumexp(z, -1),
        "grad_norm": g.norm(dim=-1),
        "entropy": -(log_p.exp() * log_p.clamp_min(-1e300)).sum(-1),
        "correct": (z[torch.arange(len(z)), label] >= z.max(-1).values).double(),
        "grad_sq": (g * g).sum(-1),
    }
    rows = {}
    for name, values in measured.items():
        rows[name] = torch.zeros(len(x), dtype=torch.float64)
        rows[name][read] = values
    chunks = {
        name: torch.stack([values[read & (c == k)].sum() for k in range(num_chunks)])
        if num_chunks
        else torch.zeros(0, dtype=torch.float64)
        for name, values in {**rows, "tokens": read.double()}.items()
    }
    means = [g[c[read] == k].mean(0).norm() for k in range(num_chunks)]
    mean_norm = torch.stack(means).nan_to_num(0.0) if means else torch.zeros(0).double()
    return rows, {
        "tokens": chunks["tokens"],
        "nll_sum": chunks["nll"],
        "correct": chunks["correct"],
        "entropy_sum": chunks["entropy"],
        "grad_norm_sum": chunks["grad_norm"],
        "grad_sq_sum": chunks["grad_sq"],
        "mean_grad_norm": mean_norm,
    }
