"""What a batch asks of the loss: labels, chunk ids and weights, aligned with the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwt_ext.chunk_loss import shift_labels

IGNORE_INDEX = -100
NO_CHUNK = -1
TARGETS = ("labels", "chunk_ids", "token_weight")  # columns of a batch that the model never sees
FILLERS: dict[str, float] = {"labels": IGNORE_INDEX, "chunk_ids": NO_CHUNK, "token_weight": 0.0}


class Targets(NamedTuple):
    """Aligned with the logits: entry t belongs to the logits at position t. Each (B, T)."""

    labels: Tensor  # int64, -100 = ignored
    chunk_ids: Tensor  # int32/int64, -1 = no chunk
    token_weight: Tensor | None  # float or bool


def take_targets(batch: Mapping[str, Any], shift: bool) -> tuple[dict[str, Any], Targets]:
    """Splits a batch into what the model is called with and the aligned targets.

    Args:
        batch: as a data collator makes it, with `labels` and `chunk_ids`, each (B, T), and perhaps
            `token_weight`, in the order of the tokens: `labels[b, t]` is token t itself.
        shift: whether the logits at t predict token t + 1 (causal models), not t (decoders).

    Raises:
        ValueError: a column is missing or of another shape, or the labels are shifted already.
    """
    for name in ("labels", "chunk_ids"):
        if batch.get(name) is None:
            raise ValueError(
                f"chunk loss: the batch must have 'labels' and 'chunk_ids', got {sorted(batch)}. "
                "A Trainer drops columns that the model does not know; ChunkTrainer and "
                "ChunkSFTTrainer keep them, ChunkCollator pads them."
            )
    if batch.get("shift_labels") is not None:
        raise ValueError(
            "chunk loss: got 'shift_labels', but labels are shifted here, together with chunk_ids; "
            "give 'labels' in the order of the tokens."
        )
    shape = batch["labels"].shape
    found = {name: batch[name] for name in TARGETS if batch.get(name) is not None}
    for name, value in found.items():
        if value.dim() != 2 or value.shape != shape:
            raise ValueError(
                f"chunk loss: {name} must be (B, T) as the labels {tuple(shape)}, got "
                f"{tuple(value.shape)}. Where texts are truncated, truncate every column alike: "
                "ChunkCollator(max_length=...) does."
            )
        if shift:
            found[name] = shift_labels(value, FILLERS[name])  # type: ignore[arg-type]
    inputs = {name: value for name, value in batch.items() if name not in TARGETS}
    return inputs, Targets(found["labels"], found["chunk_ids"], found.get("token_weight"))


def token_weights(
    targets: Targets, active: Tensor | None, chunks: int | None
) -> tuple[Tensor, Tensor]:
    """Returns the chunk ids (n,) and weights a_c w_t (n,), float64, of the tokens that count.

    Raises:
        IndexError: a chunk id is not below `chunks`, the number of chunks where it is known.
    """
    bears = (targets.labels != IGNORE_INDEX) & (targets.chunk_ids >= 0)
    ids = targets.chunk_ids[bears].long()
    if chunks is not None and ids.numel() and int(ids.max()) >= chunks:
        raise IndexError(
            f"chunk loss: there are {chunks} chunks (num_chunks, or the length of active), but "
            f"chunk_ids reach {int(ids.max())}."
        )
    if targets.token_weight is None:
        weight = torch.ones_like(ids, dtype=torch.float64)
    else:
        weight = targets.token_weight[bears].double()
    return ids, weight if active is None else weight * active.to(ids.device).double()[ids]
