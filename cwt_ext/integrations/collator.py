"""Batches with chunk ids: every column of a token truncated and padded alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cwt_ext.integrations.targets import FILLERS, IGNORE_INDEX, TARGETS

_LOG = logging.getLogger("cwt_ext.integrations")

Truncation = Literal["keep_end", "keep_start"]


@dataclass
class ChunkCollator:
    """Makes (B, T) tensors of rows of token ids, labels and chunk ids of any lengths.

    A row is a mapping of lists or tensors, each with one entry a token:

        input_ids       token ids
        chunk_ids       the chunk of each token, -1 = none (a question, a prompt)
        labels          default: input_ids; -100 = ignored
        attention_mask  default: 1
        token_weight    optional, float

    Labels and chunk ids stay in the order of the tokens: the loss shifts them, both at once. For an
    encoder-decoder `labels`, `chunk_ids` and `token_weight` belong to the target text and have its
    length; `labels` must then be given.

    Args:
        pad_token_id: id that fills `input_ids`; it never bears loss.
        max_length: longest text in tokens; None = no limit. All columns are truncated together.
        truncation: "keep_end" drops tokens from the beginning, where the prompt is: a late chunk
            keeps its tokens. "keep_start" drops them from the end. For an encoder-decoder, source
            and target are both truncated to `max_length`, the target always at its end.
        pad_to_multiple_of: rounds T up, for tensor cores.
        encoder_decoder: whether the labels are a text of their own.

    Raises:
        ValueError: (when called) a column is missing or has another length, or after truncation no
            token of the whole batch bears a label.

    Example:
        >>> rows = [{"input_ids": [5, 6, 7], "chunk_ids": [-1, 0, 1]},
        ...         {"input_ids": [8, 9], "chunk_ids": [-1, 0]}]
        >>> batch = ChunkCollator(pad_token_id=0)(rows)
        >>> batch["labels"].tolist(), batch["chunk_ids"].tolist()
        ([[5, 6, 7], [8, 9, -100]], [[-1, 0, 1], [-1, 0, -1]])
    """

    pad_token_id: int
    max_length: int | None = None
    truncation: Truncation = "keep_end"
    pad_to_multiple_of: int | None = None
    encoder_decoder: bool = False
    _reported: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.truncation not in ("keep_end", "keep_start"):
            raise ValueError(
                f'ChunkCollator: truncation must be "keep_end" or "keep_start", '
                f"got {self.truncation!r}."
            )
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"ChunkCollator: {name} must be at least 1, got {value}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        columns = [self._row(index, row) for index, row in enumerate(rows)]
        names = columns[0].keys()
        for index, row in enumerate(columns):
            if row.keys() != names:
                raise ValueError(
                    f"ChunkCollator: every row must have the same columns; row 0 has "
                    f"{sorted(names)}, row {index} has {sorted(row)}."
                )
        fillers = {**FILLERS, "input_ids": self.pad_token_id, "attention_mask": 0}
        batch = {name: self._pad([row[name] for row in columns], fillers[name]) for name in names}
        if not _bears_loss(batch):
            raise ValueError(
                f"ChunkCollator: no token of the {len(rows)} rows has a label and a chunk"
                + (f" within max_length={self.max_length}." if self.max_length else ".")
            )
        return batch

    def _row(self, index: int, row: Mapping[str, Any]) -> dict[str, Tensor]:
        missing = [name for name in ("input_ids", "chunk_ids") if row.get(name) is None]
        if missing or (self.encoder_decoder and row.get("labels") is None):
            raise ValueError(
                f"ChunkCollator: row {index} must have input_ids and chunk_ids"
                f"{' and labels' if self.encoder_decoder else ''}, got {sorted(row)}."
            )
        source = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        found = {
            "input_ids": source,
            "attention_mask": torch.as_tensor(
                _given(row, "attention_mask", torch.ones_like(source))
            ),
            "labels": torch.as_tensor(_given(row, "labels", source), dtype=torch.int64),
            "chunk_ids": torch.as_tensor(row["chunk_ids"], dtype=torch.int64),
        }
        if row.get("token_weight") is not None:
            found["token_weight"] = torch.as_tensor(row["token_weight"], dtype=torch.float32)
        for name, value in found.items():
            of = "labels" if self.encoder_decoder and name in TARGETS else "input_ids"
            if value.shape != found[of].shape or value.dim() != 1:
                raise ValueError(
                    f"ChunkCollator: row {index} has {name} of shape {tuple(value.shape)} and "
                    f"{of} of shape {tuple(found[of].shape)}; wanted one entry a token in both. "
                    "Leave truncation to ChunkCollator(max_length=...), which cuts all columns."
                )
        cut = {name: self._cut(name, value) for name, value in found.items()}
        if _bears_loss(found) and not _bears_loss(cut) and not self._reported:
            self._reported = True
            _LOG.warning(
                "ChunkCollator: max_length=%d cuts off every label of a row; it adds nothing to "
                "the loss. Further rows are not reported.",
                self.max_length,
            )
        return cut

    def _cut(self, name: str, value: Tensor) -> Tensor:
        if self.max_length is None:
            return value
        at_end = self.truncation == "keep_start" or (self.encoder_decoder and name in TARGETS)
        return value[: self.max_length] if at_end else value[-self.max_length :]

    def _pad(self, values: list[Tensor], filler: float) -> Tensor:
        step = self.pad_to_multiple_of or 1
        width = -(-max(len(value) for value in values) // step) * step
        out = torch.full((len(values), width), filler, dtype=values[0].dtype)
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = value
        return out


def _given(row: Mapping[str, Any], name: str, default: Tensor) -> Any:
    return default if row.get(name) is None else row[name]


def _bears_loss(columns: Mapping[str, Tensor]) -> bool:
    return bool(((columns["labels"] != IGNORE_INDEX) & (columns["chunk_ids"] >= 0)).any())
