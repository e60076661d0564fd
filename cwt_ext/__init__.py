"""Fused chunk loss and exact chunk segmentation for chain-of-thought distillation."""

try:
    from cwt_ext.chunk_loss import ChunkLoss, ChunkStats, RowStats, chunk_loss, shift_labels
    from cwt_ext.linear_chunk_loss import HiddenStats, LinearChunkLoss, linear_chunk_loss
    from cwt_ext.segment import Segmentation, cost_matrix, segment, segment_batch
except ImportError as error:  # raised at the first use, so that the doctor can still be called
    _why = error

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(str(_why), name=_why.name, path=_why.path) from _why


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
