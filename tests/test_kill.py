"""kill -9 in every stage: the same commands go on, and end with the files of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from cwt.files import read_json, read_lines
from teach_server import BadServer, plain_template, right, write_questions

ROOT = Path(__file__).resolve().parents[1]
_PATHS = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(_PATHS), "OMP_NUM_THREADS": "1"}
SMALL = ["--data.train-size", "10", "--data.validation-size", "4", "--data.test-size", "4"]
COMMANDS = [
    ["data", *SMALL, "--config"],  # and the file of options
    ["chunk"],
    ["train", "--method", "CWT"],
    ["skip", "--round", "1"],
    ["train", "--method", "STT"],
    ["eval", "--method", "CWT"],
    ["eval", "--method", "STT"],
    ["report"],
]
TRIES = {"data": 0, "chunk": 1, "train": 5, "skip": 1, "eval": 1, "report": 1}
OPTIONS = """
train: {budget: 600, batch_size: 4, parent: CWT, checkpoint_seconds: 0}
skip: {rounds: 2, ready_skill: 0, budget_share: 0.5}
eval: {max_new_tokens: 8, batch_size: 4, latency_questions: 1}
"""


def killed(tmp_path, commands, **plan):
    """What the worker did: the kills, and the folders of the runs that suffered them."""
    plan = {"root": str(tmp_path), "commands": commands, **plan}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/kill_worker.py", json.dumps(plan)],
        capture_output=True, text=True, timeout=3000,
        env={**os.environ, **ENVIRONMENT, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["kills"], [Path(folder) for folder in found["folders"]]


def without_clock(value):
    """What a JSON file holds, without times."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if "second" not in k}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def results(folder):
    """Every file of a run; JSON without its times, pages (which show them) by their name."""
    found = {}
    for path in (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"):
        name = path.relative_to(folder).as_posix()
        if name in ("report.md", "report.html"):
            found[name] = None
        elif path.suffix == ".json" and "latency" not in name:
            found[name] = without_clock(read_json(path))
        elif path.suffix != ".json":
            found[name] = path.read_bytes()
    return found


def check_runs(tmp_path, kills, folders):
    straight = results(tmp_path / "straight")
    for folder in folders:
        assert results(folder) == straight, folder
    return Counter(kill["stage"] for kill in kills)


def commands_of(tmp_path, options=OPTIONS):
    (tmp_path / "options.yaml").write_text(options)
    return [[*COMMANDS[0], str(tmp_path / "options.yaml")], *COMMANDS[1:]]


@pytest.mark.ci
def test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been(tmp_path):
    commands = commands_of(tmp_path, OPTIONS + "chunk: {compare: false}\n")
    kills, folders = killed(tmp_path, commands, kills=8, behind=5, tries=TRIES, clock=False, seed=0)
    assert (folders[0] / "students/STT-round-2/model.safetensors").exists()
    assert set(check_runs(tmp_path, kills, folders)) >= {"chunk", "train", "skip", "eval"}
    assert sum(kill["steps"] > 0 for kill in kills) >= 5


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path):
    kills, folders = killed(
        tmp_path,
        commands_of(tmp_path),
        kills=60,
        behind=20,
        tries=dict.fromkeys(TRIES, 6),
        clock=True,
        seed=1,
    )
    assert (folders[0] / "students/STT-round-2/model.safetensors").exists()
    stages = check_runs(tmp_path, kills, folders)
    assert min(stages[s] for s in ("data", "chunk", "train", "skip", "eval", "report")) > 0, stages
    assert any("die_after" in kill for kill in kills)


def teach_command(tmp_path, server, n):
    return [
        "teach", "--questions", str(write_questions(tmp_path, n)), "--model", "model",
        "--base-url", server.url, "--style", str(plain_template(tmp_path)),
        "--concurrency", "2", "--max-tokens", "50",
    ]  # fmt: skip


def teach_runs(tmp_path, n, **plan):
    """Kills `cwt teach`; returns (kills, folders, how often each question was asked)."""
    with BadServer(lambda call: right(call.question)) as server:
        command = teach_command(tmp_path, server, n)
        kills, folders = killed(tmp_path, [command], **plan)
        return kills, folders, Counter(call.question for call in server.calls)


def check_teaching(tmp_path, n, kills, folders, asked):
    wanted = sorted(map(str, read_lines(tmp_path / "straight/rationales.jsonl")))
    assert len(wanted) == n
    for folder in folders:
        assert sorted(map(str, read_lines(folder / "rationales.jsonl"))) == wanted
        rows = [r for r in read_lines(folder / "journal.jsonl") if r["event"] == "completion"]
        done = Counter((row["id"], row["style"], row["sample"]) for row in rows)
        assert max(done.values()) == 1
        assert read_json(folder / "teach.json")["stopped"] == "finished"
    # Asked again was only what was in flight: two workers, a kill each.
    assert sum(asked.values()) <= n * (1 + len(folders)) + 2 * len(kills)


@pytest.mark.slow
def test_teaching_that_is_killed_loses_nothing_and_asks_nothing_twice(tmp_path):
    found = teach_runs(tmp_path, 30, kills=20, behind=0, tries={"teach": 5}, clock=True, seed=2)
    check_teaching(tmp_path, 30, *found)


def test_teaching_killed_a_few_times(tmp_path):
    found = teach_runs(tmp_path, 8, kills=3, behind=0, tries={"teach": 3}, clock=True, seed=3)
    check_teaching(tmp_path, 8, *found)


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.ci)]
)
def test_teaching_that_is_told_to_stop_keeps_what_it_has(tmp_path, signum):
    def behave(call):
        time.sleep(0.05)
        return right(call.question)

    with BadServer(behave) as server:
        command = [*teach_command(tmp_path, server, 200), "--out", str(tmp_path / "out")]
        process = subprocess.Popen(
            [sys.executable, "-m", "cwt", *command],
            env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(server.calls) < 10:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum, errors
    assert errors.startswith("cwt: stopped; the same command goes on from here: cwt teach ")
    rows = [r for r in read_lines(tmp_path / "out/journal.jsonl") if r["event"] == "completion"]
    assert len(server.calls) - 2 <= len(rows) <= len(server.calls)
    assert read_json(tmp_path / "out/teach.json")["stopped"] == "interrupted"
    assert len(read_lines(tmp_path / "out/rationales.jsonl")) == len(rows)
