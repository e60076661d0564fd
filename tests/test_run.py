"""The whole line, as a user runs it: real processes, real files, a real kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from app_fixtures import DATA, needs_data
from cwt.cli import main
from cwt.files import read_json, read_lines
from cwt.methods import METHODS, VARIANTS
from cwt.report import ORDER

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--train_size", "24", "--validation_size", "8", "--test_size", "12", "--budget", "1500",
         "--rounds", "2", "--max_new_tokens", "40", "--eval_batch_size", "12",
         "--parent", "CWT"]  # fmt: skip


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def cwt(*arguments, **options):
    command = [sys.executable, "-m", "cwt", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=environment(), **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    done = cwt("run", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_method_is_in_the_table_with_every_figure(finished):
    out, printed = finished
    report = read_json(out / "report.json")
    assert [row["name"] for row in report["methods"]] == [m for m in ORDER if m not in VARIANTS]
    assert set(ORDER) == set(METHODS)
    page = (out / "report.md").read_text()
    for row in report["methods"]:
        assert row["name"][:14] in printed
        assert f"| {row['name']} | {100 * row['accuracy']:.1f} |" in page
        low, high = row["accuracy_interval"]
        assert low <= row["accuracy"] <= high
        student = row["student"].removeprefix("students/")
        rows = read_lines(out / "evals" / f"{student}.jsonl")
        assert len(rows) == 12
        assert row["accuracy"] == sum(r["correct"] for r in rows) / 12
        assert row["generated_tokens"] == pytest.approx(sum(r["tokens"] for r in rows) / 12)
        assert row["truncated"] == sum(r["truncated"] for r in rows) / 12
        assert row["seed"] == 0
        assert row["train_seconds"] > 0
    rows = {row["name"]: row for row in report["methods"]}
    assert 1500 <= rows["FTT"]["loss_tokens"] < 1500 + 16 * 200
    assert rows["STT"]["loss_tokens"] > rows["CWT"]["loss_tokens"] >= 1500
    assert rows["oracle-skips"]["removal_rates"]["core"] == 0
    assert rows["random-skips"]["skipped_share"] == rows["STT"]["skipped_share"]
    assert rows["FTT"]["skipped_share"] is None


def test_students_are_hugging_face_folders(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished[0] / "students/CWT"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() < 1_000_000
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is not None


def test_a_rerun_computes_nothing_again(finished, capsys):
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    main(["run", *SMALL, "--out", str(out)])
    assert capsys.readouterr().out.count("done before") == len(METHODS) - len(VARIANTS)
    changed = {p.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed <= {"report.json", "report.md", "report.html"}


def test_inspect_shows_chunks_losses_and_reasons(finished, capsys):
    out, _ = finished
    main(["inspect", "--out", str(out), "--index", "1"])
    printed = capsys.readouterr().out
    example = read_lines(out / "data/train.jsonl")[1]
    assert example["question"][:40] in printed
    assert "chunk 0" in printed
    assert "nats a token" in printed
    assert "left out by STT-round-2 (forward judge, ratified)" in printed
    flat = " ".join(printed.split())
    assert all(" ".join(unit.split())[:20] in flat for unit in example["units"])


def test_stages_one_by_one_give_the_run(finished, tmp_path):
    out, _ = finished
    main(["data", *SMALL, "--methods", "CWT,STT", "--out", str(tmp_path / "s")])
    for command in (
        ["chunk"], ["train", "--method", "CWT"], ["skip"], ["train", "--method", "STT"],
        ["eval", "--method", "CWT"], ["eval", "--method", "STT"], ["report"],
    ):  # fmt: skip
        main([*command, "--out", str(tmp_path / "s")])
    by_hand = {row["name"]: row for row in read_json(tmp_path / "s/report.json")["methods"]}
    at_once = {row["name"]: row for row in read_json(out / "report.json")["methods"]}
    for name in ("CWT", "STT"):
        assert without_clock(by_hand[name]) == without_clock(at_once[name])
        for file in ("data/test.jsonl", "chunks/ac.jsonl", "students/CWT/model.safetensors"):
            assert (tmp_path / "s" / file).read_bytes() == (out / file).read_bytes()


def test_stt_may_go_on_from_ftt_and_count_processed_tokens(tmp_path):
    main([
        "run", *SMALL, "--methods", "STT,STT-as-judged,continued", "--parent", "FTT", "--jobs", "1",
        "--budget_unit", "processed_tokens", "--out", str(tmp_path / "f"),
    ])  # fmt: skip
    rows = {row["name"]: row for row in read_json(tmp_path / "f/report.json")["methods"]}
    assert list(rows) == ["FTT", "continued", "STT", "STT-as-judged"]
    assert 1500 <= rows["FTT"]["processed_tokens"] < 1500 + 4 * 250
    assert 2100 <= rows["continued"]["processed_tokens"] < 2100 + 2 * 4 * 250
    for name in ("STT", "STT-as-judged"):  # 0.2 of the budget a round
        rounds = int(rows[name]["student"][-1])
        assert 0 <= rows[name]["processed_tokens"] - 1500 - 300 * rounds < 3 * 4 * 250
        assert read_json(tmp_path / f"f/skips/{name}-round-1.json")["student"] == "FTT"
    for name, judge in (("STT", "ratify"), ("STT-as-judged", "forward")):
        second = read_json(tmp_path / f"f/skips/{name}-round-2.json")
        assert (second["judge"], second["student"]) == (judge, f"{name}-round-1")
    assert "their parent, FTT." in (tmp_path / "f/report.md").read_text()


def without_clock(row):
    clock = ("seconds_per_answer", "tokens_per_second", "train_seconds", "skip_seconds")
    return {key: value for key, value in row.items() if key not in clock}


def test_killed_and_run_again_equals_never_stopped(finished, tmp_path):
    whole, _ = finished
    out = tmp_path / "k"
    command = [sys.executable, "-m", "cwt", "run", *SMALL, "--methods", "CWT,STT", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "students/CWT").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    again = cwt("run", *SMALL, "--methods", "CWT,STT", "--jobs", "1", "--out", out)
    assert again.returncode == 0, again.stderr
    rows = {row["name"]: row for row in read_json(out / "report.json")["methods"]}
    for row in read_json(whole / "report.json")["methods"]:
        if row["name"] in rows:
            assert without_clock(rows[row["name"]]) == without_clock(row)
    for name in ("CWT", "STT-round-1"):
        file = f"students/{name}/model.safetensors"
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_a_killed_worker_is_one_clear_line(tmp_path):
    out = tmp_path / "w"
    process = subprocess.Popen(
        [sys.executable, "-m", "cwt", "run", *SMALL, "--jobs", "2", "--out", str(out)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "students/CWT").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[0].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert "was killed (out of memory?); the same command goes on" in line


@needs_data
def test_real_rationales_from_file_to_table(tmp_path):
    main([
        "run", "--data", str(DATA / "svamp/SVAMP_ChatGPT_level5_ranked.json"),
        "--eval-data", str(DATA / "svamp/test.jsonl"), "--out", str(tmp_path / "r"),
        "--train_size", "60", "--validation_size", "8", "--test_size", "16", "--budget", "3000",
        "--rounds", "1", "--max_new_tokens", "40", "--methods", "FTT,CWT,STT", "--jobs", "1",
    ])  # fmt: skip
    report = read_json(tmp_path / "r/report.json")
    assert report["data"] == {
        "rationales_read": 699, "dropped": {"rationale of one unit": 5},
        "train": 60, "validation": 8, "test": 16,
    }  # fmt: skip
    for method in ("ac", "dp", "sbc", "sbc-exact"):
        rows = read_lines(tmp_path / f"r/chunks/{method}.jsonl")
        for row, example in zip(rows, read_lines(tmp_path / "r/data/train.jsonl"), strict=True):
            units = example["units"]
            cuts = row["boundaries"]
            chunks = [units[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
            assert sum(chunks, []) == units
    names = ["FTT", "FTT-small-batch", "CWT", "STT"]  # STT goes on from FTT-small-batch
    assert [row["name"] for row in report["methods"]] == names
