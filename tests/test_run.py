"""The whole line, as a user runs it: real processes, real files, a real kill."""

import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from app_fixtures import DATA, needs_data, squeezed
from cwt.cli import main
from cwt.files import read_json, read_lines
from cwt.pipeline.methods import METHODS
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = [m.name for m in METHODS.values() if m.in_default]
SIZES = ["--data.train-size", "24", "--data.validation-size", "8", "--data.test-size", "12"]
BUDGET = 600
SMALL = [*SIZES, "--budget", str(BUDGET), "--skip.rounds", "2", "--eval.max-new-tokens", "16",
         "--eval.batch-size", "12", "--eval.latency-questions", "1",
         "--train.parent", "CWT", "--skip.max-risk", "100"]  # fmt: skip


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    with redirect_stdout(StringIO()) as printed:
        main(["run", *SMALL, "--jobs", "2", "--out", str(out)])
    return out, printed.getvalue()


def test_every_method_is_in_the_table_with_every_figure(finished):
    out, printed = finished
    report = read_json(out / "report.json")
    assert [row["name"] for row in report["methods"]] == DEFAULT
    page = squeezed((out / "report.md").read_text())
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
        own = read_json(out / row["student"] / "train.json")["train_seconds"]
        assert row["train_seconds"] >= round(own, 1)  # five small steps may take no tenth
        assert own > 0
        assert row["latency_seconds"] > 0
        assert report["labels"][row["name"]] == METHODS[row["name"]].label
    rows = {row["name"]: row for row in report["methods"]}
    assert BUDGET <= rows["FTT"]["loss_tokens"] < BUDGET + 16 * 200
    assert rows["STT"]["loss_tokens"] > rows["CWT"]["loss_tokens"] >= BUDGET
    assert rows["oracle-skips"]["removal_rates"]["core"] == 0
    assert rows["random-skips"]["skipped_share"] == rows["STT"]["skipped_share"]
    assert rows["FTT"]["skipped_share"] is None


def test_costs_count_all_that_was_trained_for_a_row(finished):
    """Every student's own record, added up by hand: the parent, both rounds of STT, `continued`."""
    out, _ = finished
    spent = {p.parent.name: read_json(p) for p in (out / "students").glob("*/train.json")}
    rows = {row["name"]: row for row in read_json(out / "report.json")["methods"]}
    paths = {
        "FTT": ["FTT"],
        "CWT": ["CWT"],
        "continued": ["CWT", "continued"],
        "STT": ["CWT", "STT-round-1", "STT-round-2", "continued"],
    }
    for name, students in paths.items():
        for cost in ("loss_tokens", "processed_tokens", "optimizer_steps"):
            assert rows[name][f"total_{cost}"] == sum(spent[s][cost] for s in students)
        assert rows[name]["total_train_seconds"] >= rows[name]["train_seconds"]
    chosen = Path(rows["STT"]["student"]).name
    path = paths["STT"][: paths["STT"].index(chosen) + 1]
    assert rows["STT"]["loss_tokens"] == sum(spent[s]["loss_tokens"] for s in path)
    # As long as STT: equally many loss tokens but for the last step of each run.
    total = sum(spent[s]["loss_tokens"] for s in paths["STT"][:3])
    assert rows["continued"]["total_loss_tokens"] == pytest.approx(total, abs=3 * 4 * 120)


def test_what_stt_may_end_with_is_asked_training_questions_too(finished):
    out, _ = finished
    known = {e["id"] for e in read_lines(out / "data/train.jsonl")}
    asked = {p.name.removesuffix("-train.jsonl"): p for p in (out / "evals").glob("*-train.jsonl")}
    assert sorted(asked) == ["CWT", "STT-round-1", "STT-round-2", "continued"]
    assert all({g["id"] for g in read_lines(path)} == known for path in asked.values())
    choice = read_json(out / "choices/STT.json")
    assert "accuracy on 8 validation and 24 training questions" in choice["why"]
    for found in choice["candidates"]:
        name = found["student"]
        marks = [g["correct"] for g in read_lines(out / "evals" / f"{name}-validation.jsonl")]
        assert found["validation_accuracy"] == pytest.approx(sum(marks) / 8)
        marks += [g["correct"] for g in read_lines(asked[name])]
        assert found["accuracy"] == pytest.approx(sum(marks) / 32)


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
    assert capsys.readouterr().out.count("done before") == len(DEFAULT)
    changed = {p.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed <= {"report.json", "report.md", "report.html", "run.json", ".lock"}


def test_inspect_shows_chunks_losses_and_reasons(finished, capsys):
    out, _ = finished
    main(["inspect", "--out", str(out), "--index", "1"])
    printed = capsys.readouterr().out
    example = read_lines(out / "data/train.jsonl")[1]
    assert example["question"][:40] in printed
    assert "chunk 0" in printed
    assert "nats a token" in printed
    chosen = read_json(out / "methods/STT.json")["student"]
    judge = read_json(out / f"skips/{chosen}.json")["judge"]
    assert f"left out in {chosen} ({judge})" in printed
    flat = " ".join(printed.split())
    assert all(" ".join(unit.split())[:20] in flat for unit in example["units"])


def test_stages_one_by_one_give_the_run(finished, tmp_path):
    out, _ = finished
    (tmp_path / "small.yaml").write_text(
        f"train: {{budget: {BUDGET}, parent: CWT}}\nskip: {{rounds: 2, max_risk: 100}}\n"
        "eval: {max_new_tokens: 16, batch_size: 12, latency_questions: 1}\n"
    )
    config = ["--config", str(tmp_path / "small.yaml")]
    main(["data", *SIZES, *config, "--out", str(tmp_path / "s")])
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
        "run", *SMALL, "--methods", "STT-at-once,STT-as-judged,continued", "--train.parent", "FTT",
        "--jobs", "1", "--train.budget-unit", "processed_tokens", "--out", str(tmp_path / "f"),
    ])  # fmt: skip
    rows = {row["name"]: row for row in read_json(tmp_path / "f/report.json")["methods"]}
    assert list(rows) == ["FTT", "continued", "STT-at-once", "STT-as-judged"]
    assert 0 <= rows["FTT"]["processed_tokens"] - BUDGET < 4 * 250
    assert 0 <= rows["continued"]["processed_tokens"] - 1.4 * BUDGET < 2 * 4 * 250
    for name in ("STT-at-once", "STT-as-judged"):  # 0.2 of the budget a round
        rounds = int(rows[name]["student"][-1])
        assert 0 <= rows[name]["processed_tokens"] - (1 + 0.2 * rounds) * BUDGET < 3 * 4 * 250
        assert read_json(tmp_path / f"f/skips/{name}-round-1.json")["student"] == "FTT"
    for name, judge in (("STT-at-once", "ratify"), ("STT-as-judged", "forward")):
        second = read_json(tmp_path / f"f/skips/{name}-round-2.json")
        assert (second["judge"], second["student"]) == (judge, f"{name}-round-1")
    assert "include their parent, FTT;" in (tmp_path / "f/report.md").read_text()


def without_clock(row):
    return {key: value for key, value in row.items() if "second" not in key}


def test_killed_in_the_middle_of_training_ends_with_the_same_student(tmp_path, one_thread):
    """kill -9 with a checkpoint behind it: the rerun goes on from there, to the last bit."""
    flags = [*SIZES, "--budget", "4000", "--methods", "CWT", "--train.checkpoint-seconds", "0",
             "--eval.latency-questions", "0", "--eval.max-new-tokens", "16", "--chunk.no-compare",
             "--jobs", "1"]  # fmt: skip
    main(["run", *flags, "--out", str(tmp_path / "whole")])
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "cwt", "run", *flags, "--out", str(out)], env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def steps():
        return [int(p.name.split("-")[1]) for p in out.glob("students/CWT/checkpoint-*")]

    while max(steps(), default=0) < 5:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert steps()
    assert not (out / "students/CWT/train.json").exists()
    main(["run", *flags, "--out", str(out)])
    for file in ("model.safetensors", "train_log.jsonl"):
        whole = (tmp_path / "whole/students/CWT" / file).read_bytes()
        assert (out / "students/CWT" / file).read_bytes() == whole
    rows = [read_json(o / "report.json")["methods"][0] for o in (out, tmp_path / "whole")]
    assert without_clock(rows[0]) == without_clock(rows[1])
    assert not steps()


def test_two_processes_on_one_folder_are_refused(finished, capsys):
    out, _ = finished
    with FileLock(out / ".lock"), pytest.raises(SystemExit):
        main(["report", "--out", str(out)])
    assert "another process is working on this run" in capsys.readouterr().err


def test_epochs_are_passes_over_all_rationales(tmp_path):
    flags = ["--data.train-size", "8", "--data.validation-size", "2", "--data.test-size", "2",
             "--epochs", "1.5", "--methods", "FTT,CWT", "--eval.latency-questions", "0",
             "--chunk.no-compare"]  # fmt: skip
    main(["run", *flags, "--eval.max-new-tokens", "4", "--out", str(tmp_path / "e"), "--jobs", "1"])
    tokens = read_json(tmp_path / "e/chunks/chunks.json")["tokens_per_epoch"]
    from app_fixtures import tiny

    rows = read_lines(tmp_path / "e/data/train.jsonl")
    by_hand = sum(len(tiny().ids(unit)) for row in rows for unit in row["units"]) + len(rows)
    assert tokens == by_hand  # the end-of-sequence token of each rationale too
    for row in read_json(tmp_path / "e/report.json")["methods"]:
        assert 1.5 * tokens <= row["loss_tokens"] < 1.5 * tokens + 16 * 80


@needs_data
def test_real_rationales_from_file_to_table(tmp_path):
    main([
        "run", "--data", str(DATA / "svamp/SVAMP_ChatGPT_level5_ranked.json"),
        "--eval-data", str(DATA / "svamp/test.jsonl"), "--out", str(tmp_path / "r"),
        "--data.train-size", "30", "--data.validation-size", "8", "--data.test-size", "16",
        "--budget", "1500", "--skip.rounds", "1", "--eval.max-new-tokens", "16",
        "--methods", "FTT,CWT,STT", "--jobs", "1",
    ])  # fmt: skip
    report = read_json(tmp_path / "r/report.json")
    found = report["data"]
    sizes = {name: found[name] for name in ("rationales_read", "train", "validation", "test")}
    assert sizes == {"rationales_read": 699, "train": 30, "validation": 8, "test": 16}
    assert found["dropped"] == {
        "rationale of one unit": 5,
        "beyond the wanted training samples": 699 - 5 - 30 - 8,
        "test question not drawn": 300 - 16,
    }
    dropped = read_lines(tmp_path / "r/data/dropped.jsonl")
    assert len(dropped) == sum(found["dropped"].values())
    assert {Path(row["file"]).name for row in dropped} == {
        "SVAMP_ChatGPT_level5_ranked.json", "test.jsonl",
    }  # fmt: skip
    for method in ("ac", "dp", "sbc", "sbc-exact"):
        rows = read_lines(tmp_path / f"r/chunks/{method}.jsonl")
        for row, example in zip(rows, read_lines(tmp_path / "r/data/train.jsonl"), strict=True):
            units = example["units"]
            cuts = row["boundaries"]
            chunks = [units[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
            assert sum(chunks, []) == units
    names = ["FTT", "FTT-small-batch", "CWT", "continued", "STT"]  # what STT needs, too
    assert [row["name"] for row in report["methods"]] == names
