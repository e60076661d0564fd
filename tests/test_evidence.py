"""`cwt evidence`: a small matrix, really run, and the statistics of its differences."""

import re

import numpy as np
import pytest
from cwt.cli import main
from cwt.evidence import _difference
from cwt.files import read_json, read_lines

SMALL = ["--train_size", "16", "--validation_size", "8", "--test_size", "10", "--budget", "600",
         "--rounds", "1", "--max_new_tokens", "24", "--eval_batch_size", "10", "--tasks", "letters",
         "--seeds", "0,1", "--methods", "FTT,CWT-adaptive,STT", "--parent", "CWT"]  # fmt: skip


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    out = tmp_path_factory.mktemp("evidence") / "e"
    main(["evidence", *SMALL, "--jobs", "2", "--out", str(out)])
    return out


def test_the_matrix_holds_every_row_of_every_run(matrix):
    found = read_json(matrix / "evidence.json")
    names = ["FTT", "CWT", "CWT-adaptive", "STT"]
    assert [(r["seed"], r["name"]) for r in found["methods"]] == [
        (seed, name) for seed in (0, 1) for name in names
    ]
    questions = [
        {row["question"] for row in read_lines(matrix / f"letters-{seed}/data/test.jsonl")}
        for seed in (0, 1)
    ]
    assert not questions[0] & questions[1]
    for row in found["summary"]:
        own = [r for r in found["methods"] if r["name"] == row["name"]]
        assert row["accuracies"] == [r["accuracy"] for r in own]
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
        assert row["generated_tokens"] == pytest.approx(
            np.mean([r["generated_tokens"] for r in own])
        )
    assert {(d["a"], d["b"]) for d in found["differences"]} == {
        ("STT", "CWT"), ("CWT", "FTT"), ("CWT-adaptive", "CWT"),
    }  # fmt: skip
    for d in found["differences"]:
        of = {r["name"]: r["accuracy"] for r in found["summary"]}
        assert d["accuracy"] == pytest.approx(of[d["a"]] - of[d["b"]])
        low, high = d["accuracy_interval"]
        assert low <= d["accuracy"] <= high
    assert {d["name"] for d in found["diagnostics"]} == {"FTT", "CWT"}
    page = (matrix / "evidence.md").read_text()
    assert all(f"| {name} |" in page for name in names)
    assert "| CWT against FTT |" in page
    command = " ".join(page.split("\n\n")[1].split())  # what makes it again
    flags = [f"{flag} {value}" for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True)]
    assert command.startswith("cwt evidence --tasks letters --seeds 0,1 ")
    assert sorted(re.findall(r"--\S+ \S+", command)) == sorted(flags)


def test_the_report_of_a_run_shows_its_diagnostics(matrix):
    out = matrix / "letters-0"
    main(["report", "--out", str(out)])
    report, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert [d["name"] for d in read_json(out / "report.json")["diagnostics"]] == ["CWT", "FTT"]
    for d in read_json(out / "report.json")["diagnostics"]:
        sharpness = f"{d['train']['top_eigenvalue']:.0f} / {d['test']['top_eigenvalue']:.0f}"
        assert f"| {sharpness} |" in report
        assert f"<td>{sharpness}</td>" in page


def test_a_rerun_trains_nothing(matrix, capsys):
    weights = matrix / "letters-1/students/CWT/model.safetensors"
    before = (weights.stat().st_mtime_ns, (matrix / "evidence.json").read_text())
    main(["evidence", *SMALL, "--jobs", "1", "--out", str(matrix)])
    assert (weights.stat().st_mtime_ns, (matrix / "evidence.json").read_text()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--tasks", "sums"], "--tasks: wanted some of arithmetic, objects, letters, coin, got"),
     (["--seeds", "one"], "--seeds must be whole numbers, got 'one'"),
     (["--seeds", ","], "--seeds must name at least one"),
     (["--budget", "601"], "is the folder of another run: budget is 600 there and 601 here")],
)  # fmt: skip
def test_bad_options(matrix, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(["evidence", *SMALL, "--out", str(matrix), *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_intervals_of_differences_cover_at_their_rate():
    """Many studies of 3 seeds x 200 questions, no seed effect: about 95 % cover the truth."""
    rng = np.random.default_rng(0)
    tokens = np.ones(200)
    covered = 0
    for _ in range(60):
        seeds = [((rng.random(200) < 0.8) * 1.0, (rng.random(200) < 0.7) * 1.0) for _ in range(3)]
        pairs = [((a, tokens), (b, 2 * tokens)) for a, b in seeds]
        found = _difference("letters", "a", "b", pairs)
        low, high = found["accuracy_interval"]
        covered += low <= 0.1 <= high
        assert found["tokens"] == pytest.approx(-0.5)
    assert covered >= 52
