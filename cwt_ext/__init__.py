"""Fused chunk loss and exact chunk segmentation for chain-of-thought distillation."""

from cwt_ext.chunk_loss import ChunkLoss, ChunkStats, RowStats, chunk_loss, shift_labels
from cwt_ext.linear_chunk_loss import HiddenStats, LinearChunkLoss, linear_chunk_loss
from cwt_ext.segment import Segmentation, cost_matrix, segment, segment_batch

__version__ = "0.1.0"  # the one place: pyproject.toml reads it here

__all__ = [
    "ChunkLoss",
    "ChunkStats",
    "HiddenStats",
    "LinearChunkLoss",
    "RowStats",
    "Segmentation",
    "__version__",
    "chunk_loss",
    "cost_matrix",
    "linear_chunk_loss",
    "segment",
    "segment_batch",
    "shift_labels",
]
