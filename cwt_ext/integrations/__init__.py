"""chunk_loss in the loops that people have: transformers, TRL, and any other with such models.

transformers, accelerate and TRL are imported by `ChunkTrainer` and `ChunkSFTTrainer` alone, when
they are first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cwt_ext.integrations.collator import ChunkCollator
from cwt_ext.integrations.model_loss import ModelChunkLoss, ModelLoss, Step
from cwt_ext.integrations.trainer import ChunkTrainerMixin

if TYPE_CHECKING:
    from cwt_ext.integrations.sft_trainer import ChunkSFTTrainer
    from cwt_ext.integrations.transformers_trainer import ChunkTrainer

_LATER = {
    "ChunkTrainer": ("cwt_ext.integrations.transformers_trainer", "transformers accelerate"),
    "ChunkSFTTrainer": ("cwt_ext.integrations.sft_trainer", "trl"),
}

__all__ = [
    "ChunkCollator",
    "ChunkSFTTrainer",
    "ChunkTrainer",
    "ChunkTrainerMixin",
    "ModelChunkLoss",
    "ModelLoss",
    "Step",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, packages = _LATER[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"cwt_ext.integrations.{name} needs `pip install {packages}`: {error}."
        ) from error
