"""Figures of a training run for tensorboard and other trackers, by the names of accelerate."""

from typing import Any

from accelerate.tracking import get_available_trackers
from accelerate.utils import is_tensorboard_available

from cwt.errors import UserError

PROJECT = "cwt"
_OF_A_STEP = ("loss", "validation_loss", "validation_accuracy")


def tracker_names(text: str) -> list[str]:
    """Returns the trackers of `auto` (tensorboard where it is installed), or of a list of names.

    Args:
        text: auto, names of accelerate separated by commas, or nothing.

    Raises:
        UserError: accelerate knows no such tracker, or its package is not installed.
    """
    if text == "auto":
        return ["tensorboard"] if is_tensorboard_available() else []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return []
    there = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in names:
        if name not in there:
            raise UserError(
                f"--trackers: {name!r} is not known or not installed; there are "
                f"{', '.join(there) or 'none'}."
            )
    return names


def figures(row: dict[str, Any]) -> dict[str, float]:
    """Returns what trackers are told of a step, given its line of train_log.jsonl.

    loss, validation_loss and validation_accuracy where measured, and for each chunk index that had
    tokens: nll (mean a token), grad_share (part of the summed gradient norms) and, where measured,
    smoothing (norm of the mean gradient over the mean norm: 1 = all tokens pull the same way), of
    the logits' gradients or, as hidden_smoothing, of the hidden states'.
    """
    found: dict[str, float] = {name: row[name] for name in _OF_A_STEP if name in row}
    norms, means = row["chunk_grad_norm"], row.get("chunk_mean_grad_norm")
    ratios = row.get("chunk_hidden_smoothing")
    for chunk, tokens in enumerate(row["chunk_tokens"]):
        if not tokens:
            continue
        found[f"nll/{chunk}"] = row["chunk_nll"][chunk] / tokens
        found[f"grad_share/{chunk}"] = norms[chunk] / (sum(norms) or 1.0)
        if means and norms[chunk]:
            found[f"smoothing/{chunk}"] = means[chunk] * tokens / norms[chunk]
        if ratios:
            found[f"hidden_smoothing/{chunk}"] = ratios[chunk]
    return found
