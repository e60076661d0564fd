"""Checkpoints: what is left after a crash is whole, and the run that goes on is the same run."""

import itertools
import os
import re
import shutil
import signal
import types
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from cwt.errors import UserError
from cwt.files import read_json, read_lines
from cwt.training import checkpoint, loop, step_log
from safetensors.torch import load_file
from train_cases import RECIPE, Stop, stop_half_way, stopped, trained


def save_every_sixth_step(out, how):
    """Trains in a process of its own, and stops where it is told: behind a checkpoint, moving one.

    A clock that ticks once a step makes every sixth step save, however slow the machine is.
    """
    ticks, steps, move = itertools.count(), itertools.count(1), os.replace
    loop.time = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    checkpoint._SHARE_OF_SAVING = 0
    step_log._FLUSH_SECONDS = -1.0  # so that the log has rows from after the checkpoint
    torch.set_num_threads(1)

    def progress(share, text):
        if next(steps) == 9 and how == "behind":
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source, target):
        if how == "moving" and Path(target).name.startswith("checkpoint-"):
            os.kill(os.getpid(), signal.SIGKILL)
        move(source, target)

    os.replace = replace_or_die
    trained(out, replace(RECIPE, budget=5000, checkpoint_seconds=5.5), progress=progress)


def ended(out, how):
    """The exit code of such a process."""
    process = forked.CONTEXT.Process(target=save_every_sixth_step, args=(out, how))
    process.start()
    process.join(300)
    return process.exitcode


def test_a_run_killed_twice_ends_as_if_it_had_not_been(tmp_path, one_thread):
    out, straight = tmp_path / "killed", tmp_path / "straight"
    # Three steps behind the checkpoint of step 6.
    assert ended(out, "behind") == -signal.SIGKILL
    assert [p.name for p in out.glob("*checkpoint*")] == ["checkpoint-6"]
    first = read_lines(out / "train_log.jsonl")
    assert len(first) == 9

    # Step 12: written whole, not yet in its place.
    assert ended(out, "moving") == -signal.SIGKILL
    names = {p.name for p in out.glob("*checkpoint*")} | {p.name for p in out.glob(".check*")}
    assert names == {"checkpoint-6", ".checkpoint.part"}
    second = read_lines(out / "train_log.jsonl")
    assert len(second) == 12
    assert not (out / "train.json").exists()

    assert ended(out, "to the end") == 0
    # checkpoint_seconds says when to save, not what comes out.
    _, spent = trained(straight, replace(RECIPE, budget=5000, checkpoint_seconds=1e6))
    assert spent.optimizer_steps > 12
    a, b = (load_file(d / "model.safetensors") for d in (straight, out))
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    log = read_lines(straight / "train_log.jsonl")
    assert log == read_lines(out / "train_log.jsonl")
    assert (first, second) == (log[:9], log[:12])
    assert not [p for p in out.iterdir() if "checkpoint" in p.name]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """The checkpoint of a run that stopped half way."""
    return stopped(tmp_path_factory.mktemp("broken-off"))


def first_step_again(out):
    """Goes on for one step; returns the number that it has."""

    def stop(share, text):
        raise Stop

    with pytest.raises(Stop):
        trained(out, progress=stop)
    return read_lines(out / "train_log.jsonl")[-1]["step"]


def test_leftovers_of_a_crash_are_ignored(broken_off, tmp_path):
    """A checkpoint cut short while it was written, and one that should have been removed."""
    out, step = tmp_path / "out", int(broken_off.name.split("-")[1])
    assert step > 3
    shutil.copytree(broken_off.parent, out)
    (out / ".checkpoint.part").mkdir()
    for file in broken_off.iterdir():
        (out / ".checkpoint.part" / file.name).write_bytes(file.read_bytes()[:100])
    (out / "checkpoint-3").mkdir()  # the later one counts, by number
    assert first_step_again(out) == step + 1


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


DAMAGE = {
    "random bytes": lambda content: bytes(torch.randint(256, (len(content),)).tolist()),
    "one flipped byte": flipped,
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.bin",
        "random_states_0.pkl",
        "custom_checkpoint_0.pkl",
        "custom_checkpoint_1.pkl",
        "recipe.json",
        "checksums.json",
    ],
)
def test_a_damaged_file_is_named_and_nothing_else_is_lost(broken_off, name, damage):
    file, out = broken_off / name, broken_off.parent
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    before = files_of(out)
    try:
        with pytest.raises(UserError) as refused:
            trained(out)
        assert files_of(out) == before
    finally:
        file.write_bytes(whole)
    message = str(refused.value)
    assert "\n" not in message
    assert f"remove {broken_off} to start again." in message
    if name != "checksums.json":
        assert message.startswith(f"{file} is damaged")
    else:
        assert message.startswith(str(broken_off))


def test_a_missing_file_is_named(broken_off):
    file = broken_off / "optimizer.bin"
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match=re.escape(f"{file} is missing")):
        trained(broken_off.parent)
    file.write_bytes(whole)


def test_every_file_of_a_checkpoint_has_a_checksum(broken_off):
    names = {path.name for path in broken_off.iterdir()} - {"checksums.json"}
    assert set(read_json(broken_off / "checksums.json")) == names
    assert len(names) == 6


@pytest.mark.parametrize(
    "other", [{"seed": 6}, {"learning_rate": 1e-3}, {"target": "rationale"}, {"budget": 3001}]
)
def test_a_checkpoint_of_another_recipe_is_refused(broken_off, other):
    before = files_of(broken_off.parent)
    with pytest.raises(UserError, match=r"checkpoint-\d+ belongs to another recipe: .*, wanted "):
        trained(broken_off.parent, replace(RECIPE, **other))
    assert files_of(broken_off.parent) == before


def test_without_time_no_checkpoint_is_written(tmp_path):
    with pytest.raises(Stop):
        trained(
            tmp_path, replace(RECIPE, budget=900, checkpoint_seconds=1e6), progress=stop_half_way
        )
    assert not list(tmp_path.glob("*checkpoint*"))
