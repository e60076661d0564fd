"""Checkpoints of a training run: accelerate's files in a folder that is either whole or absent."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError

from cwt.errors import UserError
from cwt.files import checksum, read_json, write_json
from cwt.training.recipe import Recipe

BEST_WEIGHTS = ".best.safetensors"  # the best on validation; the run's own when it ends

_CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint-(\d+)")
# How it is computed, not what: where they differ the result is the same, to rounding.
_MAY_DIFFER = {"checkpoint_seconds", "micro_batch_tokens", "gradient_checkpointing"}
_SHARE_OF_SAVING = 20  # times what the last checkpoint took lie between two of them, at least


class Pace:
    """Says when the next checkpoint is due.

    Args:
        seconds: between two checkpoints, at least; 0: after every step, whatever it takes.
        now: the time at which the run begins, in seconds.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds, self.last, self.cost = seconds, now, 0.0

    def due(self, now: float) -> bool:
        """Returns whether to save now; saving takes about a twentieth of the time, at most."""
        least = max(self.seconds, _SHARE_OF_SAVING * self.cost) if self.seconds else 0.0
        return now - self.last > least

    def saved(self, begin: float, end: float) -> None:
        """Records when a checkpoint was saved."""
        self.last, self.cost = end, end - begin


@contextmanager
def saving(what: str, out: Path) -> Iterator[None]:
    """Turns what torch and safetensors raise where a disk is full into an error of the user's."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        there = _checkpoints(out)
        kept = "no checkpoint was saved before"
        if there:
            kept = f"{there[-1]} is intact, the same command goes on from it"
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{out}: {what} cannot be written: {reason}; {kept}.") from error


def save_checkpoint(accelerator: Accelerator, out: Path, recipe: Recipe, step: int) -> None:
    """Writes out/checkpoint-<step> and removes the ones before it.

    The folder holds the weights, the optimizer, the random states, every object registered with
    the accelerator, and a checksum of each file. It is written beside its place and moved into it:
    after a crash in the middle the checkpoint before is still there. A checkpoint of this step that
    is there already stays.

    Raises:
        UserError: it cannot be written.
    """
    if (out / f"checkpoint-{step}").exists():
        return
    temporary = out / ".checkpoint.part"
    try:
        with saving(f"the checkpoint of step {step}", out):
            _save(accelerator, temporary, recipe, out / f"checkpoint-{step}")
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save(accelerator: Accelerator, temporary: Path, recipe: Recipe, target: Path) -> None:
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / "recipe.json", asdict(recipe))
        write_json(temporary / _CHECKSUMS, _checksums(temporary))
        before = _checkpoints(target.parent)
        os.replace(temporary, target)
        for folder in before:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()  # it is in its place when the others go on


def load_checkpoint(accelerator: Accelerator, out: Path, recipe: Recipe) -> None:
    """Brings a run back to its last checkpoint in `out`; without one it stays as it is.

    Raises:
        UserError: the checkpoint belongs to another recipe, a file of it is damaged, or it cannot
            be read.
    """
    found = _checkpoints(out)
    if not found:
        return
    path = found[-1]
    _check_files(path)
    saved, wanted = read_json(path / "recipe.json"), asdict(recipe)
    for record in (saved, wanted):
        for name in _MAY_DIFFER:
            record.pop(name, None)
    if saved != wanted:
        raise UserError(f"{path} belongs to another recipe: {saved}, wanted {wanted}.")
    try:
        # load_state would run code in custom_checkpoint_*, and go on without random states.
        for file in path.glob("*.pkl"):
            load(file, map_location="cpu", weights_only=True)
        accelerator.load_state(str(path))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} cannot be read: {reason}; remove it to start again.") from error


def _check_files(path: Path) -> None:
    """Refuses a damaged checkpoint: the libraries load flipped weights, and any random states."""
    try:
        wanted = read_json(path / _CHECKSUMS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path / _CHECKSUMS} cannot be read: {error}; remove {path} to start again."
        ) from error
    found = _checksums(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            state = "damaged" if name in found else "missing"
            raise UserError(f"{path / name} is {state}; remove {path} to start again.")


def _checksums(folder: Path) -> dict[str, int]:
    """Returns the CRC-32 of every other file in a folder, by its path there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _CHECKSUMS)
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def remove_checkpoints(out: Path) -> None:
    """Removes what only a run in progress needs."""
    (out / BEST_WEIGHTS).unlink(missing_ok=True)
    for folder in (*_checkpoints(out), out / ".checkpoint.part"):
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(out: Path) -> list[Path]:
    """Returns the whole checkpoints of a run, the latest last."""
    steps = {int(m[1]): path for path in out.iterdir() if (m := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps)]
