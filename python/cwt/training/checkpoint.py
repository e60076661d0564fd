"""Checkpoints of a training run: accelerate's files in a folder that is either whole or absent."""

import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from cwt.errors import UserError
from cwt.files import read_json, write_json
from cwt.training.recipe import Recipe

_NAME = re.compile(r"checkpoint-(\d+)")
_MAY_DIFFER = {"checkpoint_seconds"}  # says when to save, not what


def save_checkpoint(accelerator: Accelerator, out: Path, recipe: Recipe, step: int) -> None:
    """Writes out/checkpoint-<step> and removes the ones before it.

    The folder holds the weights, the optimizer, the random states and every object registered with
    the accelerator. It is written beside its place and moved into it: after a crash in the middle
    the checkpoint before is still there.
    """
    temporary = out / ".checkpoint.part"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / "recipe.json", asdict(recipe))
        before = _checkpoints(out)
        os.replace(temporary, out / f"checkpoint-{step}")
        for folder in before:
            shutil.rmtree(folder)


def load_checkpoint(accelerator: Accelerator, out: Path, recipe: Recipe) -> None:
    """Brings a run back to its last checkpoint in `out`; without one it stays as it is.

    Raises:
        UserError: the checkpoint belongs to another recipe, or cannot be read.
    """
    found = _checkpoints(out)
    if not found:
        return
    path = found[-1]
    try:
        saved, wanted = read_json(path / "recipe.json"), asdict(recipe)
        for record in (saved, wanted):
            for name in _MAY_DIFFER:
                record.pop(name, None)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}; remove it to start again.") from error
    if saved != wanted:
        raise UserError(f"{path} belongs to another recipe: {saved}, wanted {wanted}.")
    try:
        accelerator.load_state(str(path))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} cannot be read: {reason}; remove it to start again.") from error


def remove_checkpoints(out: Path) -> None:
    """Removes what only a run in progress needs."""
    for folder in (*_checkpoints(out), out / ".checkpoint.part"):
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(out: Path) -> list[Path]:
    """Returns the whole checkpoints of a run, the latest last."""
    steps = {int(m[1]): path for path in out.iterdir() if (m := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps)]
