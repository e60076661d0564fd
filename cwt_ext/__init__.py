"""Fused chunk-masked cross-entropy and exact chunk segmentation for chain-of-thought distillation."""
