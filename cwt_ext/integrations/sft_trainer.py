"""TRL's SFTTrainer with chunk_loss."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer  # type: ignore[attr-defined]

from cwt_ext.integrations.targets import TARGETS
from cwt_ext.integrations.trainer import ChunkTrainerMixin

_PER_TOKEN = ("input_ids", "attention_mask", "completion_mask", "assistant_masks", *TARGETS)


class ChunkSFTTrainer(ChunkTrainerMixin, SFTTrainer):  # type: ignore[misc]
    """trl.SFTTrainer trained on chunk_loss; arguments as ChunkTrainerMixin and SFTTrainer.

    The dataset is in tokens: `input_ids`, `chunk_ids`, and perhaps `labels`, `completion_mask` or
    `token_weight`. SFTConfig's `max_length` and `truncation_mode` cut every one of these columns.
    TRL itself refuses an adapter on the head; ChunkTrainer takes one.

    Raises:
        ValueError: a dataset without `input_ids` and `chunk_ids`, or with packing or padding_free,
            which would tear the chunk ids from their tokens.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("max_length") is not None:
            raise ValueError(
                "ChunkSFTTrainer: give max_length in SFTConfig, got "
                f"max_length={kwargs['max_length']} as an argument of the trainer."
            )
        super().__init__(*args, **kwargs)
        if self.padding_free:
            raise ValueError("ChunkSFTTrainer: padding_free=True is not supported.")

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, *rest: Any
    ) -> Any:
        """TRL's preparation, after a truncation that keeps every column in step."""
        columns = list(dataset.column_names or next(iter(dataset)))
        if not {"input_ids", "chunk_ids"} <= set(columns):
            raise ValueError(
                "ChunkSFTTrainer: the dataset must be in tokens, with input_ids and chunk_ids, "
                f"got the columns {columns}."
            )
        if packing:
            raise ValueError("ChunkSFTTrainer: packing=True drops chunk_ids and is not supported.")
        if args.max_length is not None:
            ends = args.truncation_mode == "keep_end"
            cut = slice(-args.max_length, None) if ends else slice(None, args.max_length)
            per_token = [name for name in columns if name in _PER_TOKEN]
            dataset = dataset.map(lambda row: {name: row[name][cut] for name in per_token})
        return super()._prepare_dataset(dataset, processing_class, args, packing, *rest)
