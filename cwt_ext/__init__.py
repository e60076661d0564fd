"""Fused chunk loss and exact chunk segmentation for chain-of-thought distillation."""

from cwt_ext.segment import Segmentation, segment, segment_batch

__all__ = ["Segmentation", "segment", "segment_batch"]
