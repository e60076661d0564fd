"""Fused chunk loss and exact chunk segmentation for chain-of-thought distillation."""

from cwt_ext.chunk_loss import ChunkLoss, ChunkStats, RowStats, chunk_loss, shift_labels
from cwt_ext.segment import Segmentation, segment, segment_batch

__all__ = [
    "ChunkLoss",
    "ChunkStats",
    "RowStats",
    "Segmentation",
    "chunk_loss",
    "segment",
    "segment_batch",
    "shift_labels",
]
