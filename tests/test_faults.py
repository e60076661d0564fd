"""Signals, losses that are not finite, full disks, files that change: a clear end, nothing lost."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from app_fixtures import tiny
from cwt.cli import main
from cwt.config import load_config
from cwt.errors import UserError
from cwt.files import read_lines, replacing, write_text
from cwt.interrupts import postponed, terminable
from cwt.pipeline.methods import METHODS
from cwt.pipeline.stages import recipe_of
from cwt.pipeline.workspace import Workspace
from cwt.training.sampler import Sampler
from safetensors.torch import load_file
from train_cases import RECIPE, same_weights, trained

ROOT = Path(__file__).resolve().parents[1]
SIZES = ["--data.train-size", "16", "--data.validation-size", "4", "--data.test-size", "4"]


def options(budget=2500, methods="CWT"):
    return [*SIZES, "--budget", str(budget), "--methods", methods, "--eval.latency-questions", "0",
            "--eval.max-new-tokens", "4", "--chunk.no-compare"]  # fmt: skip


FLAGS = options()


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def cwt(*arguments, **options):
    command = [sys.executable, "-m", "cwt", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=environment(), **options
    )


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(signum):
    heard = []
    before = signal.signal(signum, lambda number, frame: heard.append(number))
    try:
        with postponed() as asked:
            assert not asked.signum
            signal.raise_signal(signum)
            assert (asked.signum, heard) == (signum, [])
        assert heard == [signum]
        with postponed():
            signal.raise_signal(signum)
            signal.raise_signal(signum)  # the second is heard at once, and both count as one
            assert heard == [signum, signum]
        assert heard == [signum, signum]
    finally:
        signal.signal(signum, before)


def test_signals_that_nobody_handles_and_other_threads_are_left_alone():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    handlers = []

    def look():
        with postponed(), terminable():
            handlers.append([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [[before, signal.SIG_DFL]]
    with postponed():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_interrupts_where_sigint_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable() as asked, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert asked.signum == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """RECIPE undisturbed: (the student, the rows of its log); checkpoints change neither."""
    out = tmp_path_factory.mktemp("straight")
    model, _ = trained(out, replace(RECIPE, checkpoint_seconds=1e6))
    return model, read_lines(out / "train_log.jsonl")


def test_an_interrupted_training_ends_its_step_and_goes_on_to_the_same_weights(tmp_path, straight):
    recipe = replace(RECIPE, checkpoint_seconds=1e6)  # by the clock there would be no checkpoint
    seen = []

    def interrupt(share, text):
        seen.append(share)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        trained(out, recipe, progress=interrupt)
    assert len(seen) == 4
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [row["step"] for row in read_lines(out / "train_log.jsonl")] == [1, 2, 3, 4]
    resumed, _ = trained(out, recipe)
    assert same_weights(straight[0], resumed)
    assert read_lines(out / "train_log.jsonl") == straight[1]


def saved_steps(out, name):
    """The step of a row's only checkpoint; the log ends there."""
    (checkpoint,) = (out / "students" / name).glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert len(read_lines(out / "students" / name / "train_log.jsonl")) == step > 0
    return step


def check_last_line(errors, out):
    (line,) = errors.splitlines()
    assert line.startswith("cwt: stopped; the same command goes on from here: cwt run ")
    assert line.endswith(f"--out '{out}'")


def wait_for_steps(out, rows):
    """Returns when so many rows of the table are past their first step."""
    deadline = time.monotonic() + 120
    while sum(p.stat().st_size > 0 for p in out.glob("students/*/train_log.jsonl")) < rows:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def disturbed(out, jobs, disturb):
    """Runs FTT and CWT in this process, does something as they train; returns the exit code."""

    def later():
        wait_for_steps(out, jobs)
        time.sleep(0.3)
        disturb()

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        main(["run", *options(900_000, "FTT,CWT"), "--jobs", str(jobs), "--out", str(out)])
    thread.join()
    return ended.value.code


def workers_of(process):
    """The workers of a run: what the server of multiprocessing has forked."""
    (server,) = (c for c in process.children() if "forkserver" in " ".join(c.cmdline()))
    return server.children()


@pytest.mark.parametrize(
    ("signum", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)]
)
def test_a_run_that_is_told_to_stop_saves_and_says_how_to_go_on(tmp_path, capsys, signum, jobs):
    out = tmp_path / "a run"
    assert disturbed(out, jobs, lambda: os.kill(os.getpid(), signum)) == 128 + signum
    check_last_line(capsys.readouterr().err, out)
    for name in ["FTT", "CWT"][:jobs]:
        saved_steps(out, name)


@pytest.fixture
def two_workers(tmp_path):
    """A run that trains FTT and CWT side by side, each past its first step: (process, folder)."""
    out = tmp_path / "a run"
    flags = [*options(900_000, "FTT,CWT"), "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cwt", "run", *flags], start_new_session=True,
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_steps(out, 2)
    yield process, out
    process.kill()
    process.communicate()


def test_workers_end_with_a_parent_that_is_killed(two_workers):
    """Else they would write beside the next run, which finds no lock."""
    process, _ = two_workers
    workers = workers_of(psutil.Process(process.pid))
    assert len(workers) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_worker_that_is_killed_has_a_last_word_and_its_sibling_saves(tmp_path, capsys):
    out, workers = tmp_path / "a run", []

    def kill():
        workers.extend(workers_of(psutil.Process()))
        workers[0].kill()

    assert disturbed(out, 2, kill) == 2
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        r"cwt: the process of (FTT|CWT), training, step (\d+) \((.*?)(?: and (\d+) more)?\), was "
        r"killed \(out of memory\?\); the same command goes on from its last checkpoint, .*",
        line,
    )
    assert found, line
    name, step, first, more = found.groups(default="0")
    # The ids are those of the step, drawn once more.
    ws = Workspace(load_config(out / "config.yaml"), out)
    method, student = METHODS[name], tiny()
    rows = [student.tokenize(e) for e in ws.training_examples(method.chunking)]
    sampler = Sampler(rows, recipe_of(ws, method))
    drawn = [[row.example for row in sampler.draw()] for _ in range(int(step))][-1]
    assert first.split(", ") == drawn[:8]
    assert int(more) == max(0, len(drawn) - 8)
    # It saved nothing (by the clock there is no checkpoint yet); the other did, and both ended.
    assert not list((out / "students" / name).glob("checkpoint-*"))
    saved_steps(out, {"FTT": "CWT", "CWT": "FTT"}[name])
    assert not [worker for worker in workers if worker.is_running()]


@pytest.mark.ci
def test_workers_hear_once_that_their_group_is_to_stop(two_workers):
    """Told by the system and by the parent, a worker would else end before it saves."""
    process, out = two_workers
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    check_last_line(errors, out)
    for name in ("FTT", "CWT"):
        saved_steps(out, name)


# Losses and gradients that are not finite


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e6])
def test_what_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    tmp_path, monkeypatch, what, checkpoint_seconds, straight
):
    from cwt.training.loop import _Run
    from cwt.training.sampler import Sampler

    recipe = replace(RECIPE, checkpoint_seconds=checkpoint_seconds)
    whole, draw = _Run.loss, Sampler.draw
    steps = []

    def poisoned(self, samples, count, mean_grad_norm):
        result = whole(self, samples, count, mean_grad_norm)
        steps.append(1)
        if len(steps) != 3:
            return result
        if what == "loss":
            result.stats.nll_sum[0] = torch.nan
            return result
        next(self.model.parameters()).register_hook(lambda grad: grad * torch.inf)
        return result

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "loss", poisoned)
        rows = []
        patch.setattr(Sampler, "draw", lambda self: rows.append(draw(self)) or rows[-1])
        with pytest.raises(UserError) as stopped:
            trained(out, recipe)
    message = str(stopped.value)
    assert "training diverged in step 3: " in message
    assert f"its samples: {', '.join(row.example for row in rows[2])}. " in message
    assert "checkpoint-2 has the state before it" in message
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
    kept = load_file(out / "checkpoint-2" / "model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    # What was saved is the state before the step: without the poison it is the run it was.
    resumed, _ = trained(out, recipe)
    assert same_weights(straight[0], resumed)


# Disks and files


def limited(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_is_full_in_training_leaves_what_was_there(tmp_path):
    out = tmp_path / "r"
    done = cwt("run", *FLAGS, "--out", out, "--jobs", "1", "--train.checkpoint-seconds", "0",
               preexec_fn=limited(1 << 20))  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the checkpoint of step 1 cannot be written: " in line
    assert "no checkpoint was saved before" in line
    assert not list(out.glob("students/*/*checkpoint*"))
    before = contents(out / "data") | contents(out / "chunks")
    main(["run", *FLAGS, "--out", str(out), "--jobs", "1"])
    assert before.items() <= contents(out).items()


def test_a_disk_that_is_full_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "file.json"
    write_text(path, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"file\.json"):
            write_text(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == {path: b"before"}


def test_a_full_disk_is_one_line_of_the_command_line(tmp_path):
    done = cwt("data", *SIZES, "--out", tmp_path / "r", preexec_fn=limited(3000))
    assert done.returncode == 2
    assert done.stderr == (
        f"cwt: {tmp_path / 'r/data/train.jsonl'}: File too large. What was there before is "
        "intact.\n"
    )
    assert {p.name for p in (tmp_path / "r").rglob("*") if p.is_file()} <= {"config.yaml", ".lock"}
    main(["data", *SIZES, "--out", str(tmp_path / "r")])
    assert (tmp_path / "r/data/train.jsonl").stat().st_size > 3000


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="/sys is Linux's")
def test_a_folder_that_cannot_be_written_is_one_line(capsys):
    # /sys refuses new folders to everybody, root too.
    with pytest.raises(SystemExit) as ended:
        main(["data", *SIZES, "--out", "/sys/run-of-cwt"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cwt: /sys/run-of-cwt: ")


def test_what_a_killed_process_was_writing_is_no_run_of_others_and_goes(tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / ".config.yaml.4711.part").write_text("seed: ")
    (out / "data").mkdir()
    (out / "data" / ".train.jsonl.4711.part").write_text("{")
    (out / "data" / ".mine.part").write_text("not a file of this software")
    shutil.move(out / "data", tmp_path / "data")
    main(["data", *SIZES, "--out", str(out)])
    shutil.copytree(tmp_path / "data", out / "data", dirs_exist_ok=True)
    main(["data", *SIZES, "--out", str(out)])
    assert [p.name for p in out.rglob("*.part")] == [".mine.part"]


def test_nothing_is_left_of_a_file_whose_writer_failed(tmp_path):
    def half():
        with replacing(tmp_path / "file") as path:
            path.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "r"
    main(["run", *FLAGS, "--jobs", "1", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("chunks/chunks.json", ["train", "--method", "FTT"]),
        ("data/train.jsonl", ["train", "--method", "FTT"]),
        ("data/data.json", ["run", *FLAGS]),
        ("students/CWT/train.json", ["eval", "--method", "CWT"]),
        ("evals/CWT.json", ["report"]),
        ("methods/CWT.json", ["report"]),
    ],
)
def test_a_file_of_the_run_that_was_cut_short_is_named(finished, tmp_path, capsys, file, command):
    out = tmp_path / "r"
    shutil.copytree(finished, out)
    if command[0] == "eval":
        (out / "evals/CWT.json").unlink()
    whole = (out / file).read_bytes()
    (out / file).write_bytes(whole[: len(whole) // 2])
    before = contents(out)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(out)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cwt: {out / file}")
    assert "is damaged (" in said or "row 8: wanted id, question, units and answer" in said
    assert before.items() <= contents(out).items()


@pytest.mark.parametrize("change", ["changed", "missing"])
def test_a_student_of_the_run_that_changed_is_named(finished, tmp_path, capsys, change):
    out = tmp_path / "r"
    shutil.copytree(finished, out)
    weights = out / "students/CWT/model.safetensors"
    (out / "evals/CWT.json").unlink()
    if change == "missing":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    before = contents(out)
    with pytest.raises(SystemExit):
        main(["eval", "--method", "CWT", "--out", str(out)])
    said = capsys.readouterr().err
    state = {"changed": "has changed", "missing": "is missing"}[change]
    assert f"model.safetensors {state} since it was trained; put it back" in said
    assert contents(out) == before


def test_a_given_student_that_changed_under_a_run_is_named(tmp_path, capsys):
    student = tiny()
    student.save(tmp_path / "mine")
    out, flags = tmp_path / "r", [*SIZES, "--student", str(tmp_path / "mine")]
    main(["data", *flags, "--out", str(out)])
    main(["chunk", "--chunk.no-compare", "--out", str(out)])
    with torch.no_grad():
        next(student.model.parameters()).mul_(1.5)
    student.save(tmp_path / "mine")
    before = contents(out)
    with pytest.raises(SystemExit):
        main(["train", "--method", "FTT", "--out", str(out)])
    said = capsys.readouterr().err
    assert f"model.safetensors has changed since {out} made its chunks" in said
    assert contents(out) == before


def test_a_manifest_of_another_run_is_refused(finished, tmp_path, capsys):
    out = tmp_path / "r"
    shutil.copytree(finished, out)
    main(["data", *SIZES, "--task", "coin", "--seed", "7", "--out", str(tmp_path / "other")])
    shutil.copy(tmp_path / "other/config.yaml", out / "config.yaml")
    before = contents(out)
    with pytest.raises(SystemExit):
        main(["run", *FLAGS, "--task", "arithmetic", "--out", str(out)])
    assert "is the folder of another run: data.task is 'coin' there" in capsys.readouterr().err
    assert contents(out) == before


def test_no_result_depends_on_the_wall_clock():
    """So that a clock that is set back changes nothing: times are differences of steady clocks."""
    users = {
        path.relative_to(ROOT / "python/cwt").as_posix()
        for path in (ROOT / "python/cwt").rglob("*.py")
        if "time.time()" in path.read_text() or "st_mtime" in path.read_text()
    }
    assert users == {"teaching/client.py"}  # a server's Retry-After may be a date
