"""Options that suit a student: the preset `real`, what the data and the device decide, the plan."""

import json

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.cli import _parse, main
from cwt.commands import Begins
from cwt.config import load_config
from cwt.files import read_json, read_lines
from cwt.pipeline.fit import token_lengths, written_tokens
from cwt.pipeline.workspace import open_workspace
from cwt.progress import Bars, duration
from cwt.students.tokenized import TokenizedExample, whole_sequence


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 rationales, five of them not usable, and 11 questions with an answer alone."""
    folder = tmp_path_factory.mktemp("data")
    some = examples(71)
    rows = [
        {"question": e.question, "rationale": e.rationale, "answer": e.answer} for e in some[:60]
    ]
    for row in rows[:5]:
        row["rationale"] = ""
    questions = [{"question": e.question, "answer": e.answer} for e in some[60:]]
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps(questions))
    return folder


def options(*flags) -> Begins:
    return _parse("run", [str(flag) for flag in flags])


def test_another_student_than_tiny_has_the_preset_real(mine, tmp_path):
    ours, theirs = options().options, options("--student", mine).options
    assert (ours.train.learning_rate, ours.dtype, ours.train.budget) == (2e-3, "float32", 400_000)
    assert (ours.train.epochs, ours.eval.max_new_tokens, ours.batches) == (0.0, 256, "rows")
    assert (theirs.train.learning_rate, theirs.dtype, theirs.train.epochs) == (0.0, "auto", 3.0)
    assert (theirs.data.train_size, theirs.eval.max_new_tokens) == (0, 0)
    assert (theirs.chunk.method, theirs.batches, theirs.train.validations) == (
        "length",
        "tokens",
        6,
    )
    assert str(options("--student", mine).out) == "runs/real"
    assert options("--student=tiny").options == ours
    file = tmp_path / "mine.yaml"
    file.write_text(f"student: {mine}\ntrain:\n  patience: 5\n")
    from_file = options("--config", file).options
    assert (from_file.train.patience, from_file.train.epochs) == (5, 3.0)


def test_a_budget_that_is_given_holds(mine, tmp_path):
    assert options("--student", mine, "--budget", "9000").options.train.epochs == 0.0
    both = options("--student", mine, "--budget", "9000", "--epochs", "2").options.train
    assert (both.epochs, both.budget) == (2.0, 9000)
    quick = options("--student", mine, "--preset", "quick").options
    assert (quick.train.epochs, quick.train.budget, quick.dtype) == (0.0, 40_000, "auto")
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  budget: 700\n")
    from_file = options("--student", mine, "--config", file).options.train
    assert (from_file.epochs, from_file.budget) == (0.0, 700)


def run(mine, data, out, *flags):
    main([
        "run", "--student", str(mine), "--data", str(data / "train.json"), "--eval-data",
        str(data / "test.json"), "--eval.latency-questions", "0", "--out", str(out), *flags,
    ])  # fmt: skip


def test_a_run_of_ones_own_uses_every_row_and_says_what_it_will_do(mine, data, tmp_path, capsys):
    out = tmp_path / "r"
    flags = ("--train.learning-rate", "1e-3", "--train.patience", "6")
    run(mine, data, out, "--methods", "answer-only,FTT,CWT,continued", *flags)
    printed = capsys.readouterr().out
    plan = read_json(out / "run.json")
    whole = [tiny().tokenize(e) for e in open_workspace(load_config(out / "config.yaml"), out)
             .examples("train")]  # fmt: skip
    record = plan["data"]
    assert (record["train"], record["validation"], record["test"]) == (42, 13, 11)
    assert sum(record["dropped"].values()) == 5
    assert all(len(digest) == 64 for digest in record["files"].values())
    assert "42 training rationales, 13 validation and 11 test questions" in printed
    assert "rows left out: 5 " in printed
    tokens = sum(len(unit) for x in whole for unit in x.units)
    assert plan["lengths"]["rationale_tokens"] == tokens
    assert f"{tokens:,} in rationales" in printed
    assert plan["versions"]["torch"] == torch.__version__
    assert plan["student"]["parameters"] == sum(p.numel() for p in tiny().model.parameters())
    rows = {row["name"]: row for row in plan["rows"]}
    assert list(rows) == ["answer-only", "FTT", "FTT-small-batch", "CWT", "continued"]
    for name in ("FTT", "CWT", "continued", "answer-only"):
        spent = read_json(out / f"students/{name}/train.json")
        row, step = rows[name], spent["loss_tokens"] / spent["optimizer_steps"]
        assert spent["loss_tokens"] == pytest.approx(row["loss_tokens"], rel=0.1, abs=step), name
        assert spent["optimizer_steps"] == pytest.approx(row["steps"], rel=0.1, abs=2), name
        wanted = pytest.approx(row["processed_tokens"], rel=0.25)
        assert spent["processed_tokens"] == wanted, name
        assert f"{name} " in printed
    assert rows["FTT"]["passes"] == 3.0
    assert rows["continued"]["passes"] == pytest.approx(3 * 4 * 0.2, abs=0.02)
    assert len(read_json(out / "students/FTT/train.json")["validation"]) == 7
    assert "validation" not in read_json(out / "students/continued/train.json")
    # Chunks are as equal in tokens as units allow, and no other chunking was computed.
    assert sorted(p.stem for p in (out / "chunks").glob("*.jsonl")) == ["length"]
    limit = plan["max_new_tokens"]
    assert limit >= 1.25 * plan["lengths"]["rationale_99"] > limit - 32
    assert all(row["tokens"] <= limit for row in read_lines(out / "evals/FTT.jsonl"))


def test_a_student_with_few_positions_trains_on_what_fits(data, tmp_path):
    from test_families import family

    longest = max(len(whole_sequence(tiny().tokenize(e)).ids) for e in examples(60)[5:])
    family("gpt2", positions=longest - 60).save(tmp_path / "s")
    run(tmp_path / "s", data, tmp_path / "b", "--methods", "CWT", "--epochs", "1",
        "--train.validations", "0", "--dtype", "float32")  # fmt: skip
    record = read_json(tmp_path / "b/students/CWT/train.json")
    assert record["recipe"]["max_length"] == longest - 60
    assert record["shortened"] > 0
    plan = read_json(tmp_path / "b/run.json")
    assert plan["student"]["positions"] == longest - 60


@pytest.mark.parametrize("method", ["STT", "entropy-skips"])
def test_rows_that_a_judge_cannot_read_are_left_out_and_listed(method, data, tmp_path, capsys):
    from test_families import family

    lengths = [len(whole_sequence(tiny().tokenize(e)).ids) for e in examples(60)[5:]]
    config, out = tmp_path / "config.yaml", tmp_path / "r"
    config.write_text(f"methods: {method}\nchunk:\n  method: length\n  compare: false\n")

    def read(positions, out):
        family("gpt2", positions=positions).save(tmp_path / "s")
        main(["data", "--config", str(config), "--student", str(tmp_path / "s"),
              "--data", str(data / "train.json"), "--out", str(out)])  # fmt: skip

    limit = max(lengths) - 10
    read(limit, out)
    reason = f"longer than the student's {limit} positions"
    left_out = [row for row in read_lines(out / "data/dropped.jsonl") if row["reason"] == reason]
    assert len(left_out) == sum(n > limit for n in lengths) > 0
    assert f"{len(left_out)} {reason}" in " ".join(capsys.readouterr().out.split())
    main(["chunk", "--out", str(out)])
    assert read_json(out / "chunks/chunks.json")["lengths"]["longest_row"] <= limit
    with pytest.raises(SystemExit):
        read(min(lengths) - 1, tmp_path / "none")
    told = " ".join(capsys.readouterr().err.split())
    assert "every question with its rationale is longer" in told
    assert not (tmp_path / "none/data").exists()


def test_epochs_are_a_unit_of_the_budget(mine, data, tmp_path, capsys):
    out = tmp_path / "r"
    main(
        [
            "data",
            "--student",
            str(mine),
            "--data",
            str(data / "train.json"),
            "--out",
            str(out),
        ]
    )
    main(["chunk", "--out", str(out)])
    capsys.readouterr()
    tokens = read_json(out / "chunks/chunks.json")["tokens_per_epoch"]
    flags = ["--budget", "2", "--train.budget-unit", "epochs", "--train.validations", "0"]
    main(["train", "--method", "FTT", *flags, "--out", str(out)])
    spent = read_json(out / "students/FTT/train.json")
    assert 2 * tokens <= spent["loss_tokens"] < 2 * tokens + 16 * 200
    recipe = spent["recipe"]
    assert (recipe["budget"], recipe["budget_unit"]) == (2 * tokens, "loss_tokens")
    assert recipe["learning_rate"] == 2e-5


def test_lengths_are_those_of_the_examples():
    (example,) = examples(1)
    items = [
        TokenizedExample(example, (1,) * p, ((2,) * a, (3,) * b))
        for p, a, b in [(4, 10, 1), (2, 30, 2), (9, 5, 5)]
    ]
    assert token_lengths(items) == {
        "rationale_tokens": 53, "answer_tokens": 8, "prompt_tokens": 15, "median_rationale": 11,
        "rationale_99": 32, "longest_rationale": 32, "longest_prompt": 9, "longest_row": 34,
    }  # fmt: skip
    assert written_tokens({"rationale_99": 32}) == 64
    assert written_tokens({"rationale_99": 25}) == 32


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (9000, "2.5 h")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_lines_of_a_log_say_what_is_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cwt.progress.time.monotonic", lambda: now[0])
    bars = Bars(log_seconds=30.0)
    for share in (0.0, 0.25, 0.5):
        bars.watch("FTT", share, "loss 1.0")
        now[0] += 40.0
    # A quarter takes 40 s, so what is left after a half takes 80 s.
    assert "  FTT: 50 %, loss 1.0, 80 s left\n" in capsys.readouterr().out
