"""`cwt sweep`: a small one, really run."""

import re
import shutil

import numpy as np
import pytest
from app_fixtures import squeezed
from cwt.cli import main
from cwt.files import read_json, read_lines
from filelock import FileLock

SMALL = ["--data.train-size", "12", "--data.validation-size", "4", "--data.test-size", "10",
         "--budget", "300", "--skip.rounds", "1", "--eval.max-new-tokens", "12",
         "--eval.batch-size", "10", "--eval.latency-questions", "1", "--tasks", "letters",
         "--seeds", "0,1", "--methods", "FTT,CWT-adaptive,STT",
         "--train.parent", "CWT"]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "s"
    main(["sweep", *SMALL, "--jobs", "2", "--out", str(out)])
    return out


def test_a_sweep_holds_every_row_of_every_run(swept):
    found = read_json(swept / "sweep.json")
    names = ["FTT", "CWT", "CWT-adaptive", "continued", "STT"]
    assert [(r["seed"], r["name"]) for r in found["methods"]] == [
        (seed, name) for seed in (0, 1) for name in names
    ]
    questions = [
        {row["question"] for row in read_lines(swept / f"letters-{seed}/data/test.jsonl")}
        for seed in (0, 1)
    ]
    assert not questions[0] & questions[1]
    for row in found["summary"]:
        own = [r for r in found["methods"] if r["name"] == row["name"]]
        assert row["accuracies"] == [r["accuracy"] for r in own]
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
        for key in ("generated_tokens", "latency_seconds", "total_loss_tokens"):
            assert row[key] == pytest.approx(np.mean([r[key] for r in own]))
    assert {(d["a"], d["b"]) for d in found["differences"]} == {
        ("STT", "CWT"), ("STT", "continued"), ("CWT", "FTT"), ("CWT-adaptive", "CWT"),
    }  # fmt: skip
    for d in found["differences"]:
        of = {r["name"]: r["accuracy"] for r in found["summary"]}
        assert d["accuracy"] == pytest.approx(of[d["a"]] - of[d["b"]])
        low, high = d["accuracy_interval"]
        assert low <= d["accuracy"] <= high
    assert {d["name"] for d in found["diagnostics"]} == {"FTT", "CWT"}


def test_its_page_begins_with_the_command_that_makes_it_again(swept):
    page = (swept / "sweep.md").read_text()
    assert all(f"| {name} |" in squeezed(page) for name in ("FTT", "CWT", "CWT-adaptive", "STT"))
    assert "| CWT against FTT |" in squeezed(page)
    command = squeezed(page.split("\n\n")[1])
    flags = [f"{flag} {value}" for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True)]
    assert command.startswith("cwt sweep --tasks letters --seeds 0,1 ")
    assert sorted(re.findall(r"--\S+ \S+", command)) == sorted(flags)


def test_the_report_of_a_run_shows_its_diagnostics(swept):
    out = swept / "letters-0"
    main(["report", "--out", str(out)])
    report, page = squeezed((out / "report.md").read_text()), (out / "report.html").read_text()
    found = read_json(out / "report.json")["diagnostics"]
    assert [d["name"] for d in found] == ["CWT", "FTT"]
    for d in found:
        sharpness = f"{d['train']['top_eigenvalue']:.0f} / {d['test']['top_eigenvalue']:.0f}"
        assert f"| {sharpness} |" in report
        assert f"<td>{sharpness}</td>" in page


def test_a_rerun_trains_nothing(swept):
    weights = swept / "letters-1/students/CWT/model.safetensors"
    before = (weights.stat().st_mtime_ns, (swept / "sweep.json").read_text())
    main(["sweep", *SMALL, "--jobs", "1", "--out", str(swept)])
    assert (weights.stat().st_mtime_ns, (swept / "sweep.json").read_text()) == before


def test_a_run_that_fails_is_named_and_the_others_are_compared(swept, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(swept, out)
    whole = read_json(out / "sweep.json")
    with FileLock(out / "letters-1/.lock"), pytest.raises(SystemExit) as stopped:
        main(["sweep", *SMALL, "--jobs", "1", "--out", str(out)])
    assert stopped.value.code == 2
    reason = f"letters-1 failed (exit status 2): --out {out}/letters-1: another process is working"
    error = squeezed(capsys.readouterr().err)
    assert f"cwt: sweep: 1 of 2 cells have no result. {reason} on this run. {out}/sweep" in error
    found = read_json(out / "sweep.json")
    assert found["methods"] == [row for row in whole["methods"] if row["seed"] == 0]
    assert {len(row["accuracies"]) for row in found["summary"]} == {1}
    assert {len(d["by_seed"]) for d in found["differences"]} == {1}
    assert found["failed"]["letters-1"]["status"] == 2
    assert f"- No result: {reason}" in (out / "sweep.md").read_text()
    main(["sweep", *SMALL, "--jobs", "1", "--out", str(out)])
    assert read_json(out / "sweep.json") == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--tasks", "sums"], "wanted some of arithmetic, objects, letters, coin, stock, got"),
     (["--seeds", "one"], "--seeds must be whole numbers, got 'one'"),
     (["--seeds", ","], "--seeds must name at least one"),
     (["--jobs", "-1"], "--jobs must not be negative, got -1"),
     (["--gpus", "1"], "--gpus is what Ray gives a run; it needs --cluster auto or"),
     (["--cluster", "slurm"], "--cluster: wanted auto, local or ray://HOST:PORT, got 'slurm'"),
     (["--data", "x.jsonl"], "takes generated tasks; --data is for `cwt run`"),
     (["--budget", "301"], "folder of another run: train.budget is 300 there and 301 here")],
)  # fmt: skip
def test_bad_options(swept, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *SMALL, "--out", str(swept), *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
