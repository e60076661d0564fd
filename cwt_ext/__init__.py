"""Fused chunk-masked cross-entropy and exact chunk segmentation for chain-of-thought distillation."""

from .chunk_loss import ChunkLoss, ChunkStats, RowStats, chunk_loss, shift_labels

__all__ = ["ChunkLoss", "ChunkStats", "RowStats", "chunk_loss", "shift_labels"]
