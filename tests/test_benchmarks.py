"""The benchmarks: their statistics and cases, and that the rivals do the same work."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import bench_chunk_loss
import bench_chunk_loss_gpu
import bench_linear_chunk_loss
import bench_segment
import bench_training_step
import cases
import check_measured
import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import CPU, WALL, Figure, Ratio, Work

import cwt_ext

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


class FakeTime:
    """Clocks that move only when a work is told to take time; CPU time passes twice as fast."""

    def __init__(self):
        self.now = 0.0
        self.calls = []
        self.clocks = (lambda: self.now, lambda: 2 * self.now)

    def work(self, name, seconds, prepare=0.0):
        durations = iter(seconds)

        def prepared():
            self.now += prepare
            return (name,)

        def run(given):
            self.calls.append(given)
            self.now += next(durations)

        return Work(run, prepared)


def test_works_run_in_turns_and_the_first_round_is_dropped():
    time = FakeTime()
    works = {"a": time.work("a", [100, 1, 2, 4], prepare=50), "b": time.work("b", [100, 2, 6, 16])}
    times = harness.measure(works, 3, time.clocks)
    assert time.calls == ["a", "b"] * 4
    assert times == {"a": [(1, 2), (2, 4), (4, 8)], "b": [(2, 4), (6, 12), (16, 32)]}


def test_a_ratio_is_the_median_of_the_paired_ratios_not_the_ratio_of_the_medians():
    time = FakeTime()
    # The machine becomes ten times slower after the first round: the pairs do not care.
    works = {"ours": time.work("ours", [9, 1, 10, 10]), "rival": time.work("rival", [9, 2, 30, 40])}
    times = harness.measure(works, 3, time.clocks)
    assert harness.ratio_of(times, "rival", "ours", WALL) == Ratio(3, 2.5, 3.5)
    assert harness.ratio_of(times, "rival", "ours", CPU) == Ratio(3, 2.5, 3.5)
    assert harness.ratio_of(times, "ours", "rival", WALL).median == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="zip"):
        harness.ratio([1, 2], [1])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10])
def test_quartiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    expected = np.percentile(values, [50, 25, 75])
    np.testing.assert_allclose(harness.quartiles(values), expected, rtol=1e-12)


class FakeBenchmark:
    """As much of pytest-benchmark's fixture as the harness uses."""

    enabled = True

    def __init__(self, time):
        self.time = time
        self.stats = self  # the fixture has stats.stats.data
        self.data = []

    def pedantic(self, run, setup, rounds):
        for _ in range(rounds):
            arguments, options = setup()
            start = self.time.now
            run(*arguments, **options)
            self.data.append(self.time.now - start)


def test_before_each_round_of_a_rival_ours_and_copy_are_timed():
    time = FakeTime()
    benchmark = FakeBenchmark(time)
    rival = time.work("rival", [90, 6, 60, 90], prepare=10)
    references = {
        "copy": time.work("copy", [50, 1, 10, 10]),
        "ours": time.work("ours", [50, 2, 20, 45]),
    }
    times = harness.paired_rounds(benchmark, rival, references, (700, 1, 30), time.clocks)
    assert time.calls == ["copy", "ours", "rival"] * 4  # a round of 200 first, then 700 / 200
    assert times == {"copy": [1, 10, 10], "ours": [2, 20, 45], "rival": [6, 60, 90]}
    figures = harness.compare(times, size=600, copy_bytes=200)
    assert figures["times_ours"] == 3
    assert figures["times_ours_quartiles"] == [2.5, 3]
    assert figures["gigabytes_per_second"] == pytest.approx(10e-9)
    assert figures["copy_share"] == pytest.approx(600 / 200 / 6)
    alone = harness.compare({"copy": [1, 1], "rival": [2, 4]}, 200, 200)
    assert (alone["times_ours"], alone["copy_share"]) == (1, 0.375)


def test_the_paired_table_compares_each_rival_with_its_own_counterpart():
    times = {
        "ours": [(0.010, 0.02), (0.020, 0.04)],
        "ours, 1 of 8": [(0.001, 0.002), (0.001, 0.002)],
        "eager": [(0.020, 0.02), (0.060, 0.04)],
        "rows": [(0.002, 0.004), (0.002, 0.004)],
    }
    against = {"ours": "ours", "ours, 1 of 8": "ours", "eager": "ours", "rows": "ours, 1 of 8"}
    lines = harness.paired_table("title", times, against)
    assert lines[2:] == [
        "| ours | 15.0 | 30.0 | 1.00 (1.00..1.00) | 1.00 |",
        "| ours, 1 of 8 | 1.0 | 2.0 | 0.08 (0.06..0.09) | 0.08 |",
        "| eager | 40.0 | 30.0 | 2.50 (2.25..2.75) | 1.00 |",
        "| rows (x: ours, 1 of 8) | 2.0 | 4.0 | 2.00 (2.00..2.00) | 2.00 |",
    ]


def test_rounds_fill_the_budget_within_the_limits():
    assert harness.count_rounds(0.1, 1.05, 3, 30) == 10
    assert harness.count_rounds(5.0, 1.0, 3, 30) == 3
    assert harness.count_rounds(0.0, 1.0, 3, 30) == 30


def test_the_table_of_a_feature_has_a_row_a_rival_and_a_column_a_work():
    figures = [
        Figure("2 x 3 float32", "forward", "ours", "ours", 0.001, 1.0, 0.5),
        Figure("2 x 3 float32", "both", "ours", "ours", 0.002, 1.0, 0.051),
        Figure("2 x 3 float32", "both", "rows", "ours, 1 of 8", 0.004, 2.0, 12.5),
    ]
    lines = harness.feature_table("loss", ["forward", "backward", "both"], figures)
    assert lines[1] == "loss 2 x 3 float32"
    assert lines[2].split() == ["forward", "both"]
    assert lines[3].split() == ["ms", "x", "ours", "of", "copy"] * 2
    assert lines[4].split() == ["ours", "1.000", "1.00", "50", "%", "2.000", "1.00", "5.1", "%"]
    assert lines[5].split()[-4:] == ["4.000", "2.00", "1250", "%"]
    assert lines[5].startswith("rows [x: ours, 1 of 8]")
    assert lines[5].count(" - ") == 3


@pytest.mark.parametrize("quick", [True, False])
def test_cases_are_distinct_and_every_rival_has_its_counterpart(quick):
    declared = cases.declared(quick)
    ids = [case.id for case in declared]
    assert len(set(ids)) == len(ids)
    assert {case.feature for case in declared} == set(cases.FEATURES)
    rows = {(case.feature, case.rival.name) for case in declared}
    assert rows == {(f.name, r.name) for f in cases.FEATURES.values() for r in f.rivals}
    for case in declared:
        assert case.id.replace(f"-{case.rival.name}", f"-{case.rival.against}") in ids, case.id


def results(**changes):
    """The JSON of a run in which everything was measured but `skipped`."""
    extra = {"times_ours": 1.0, "bytes": 8, "copy_share": 0.5}
    measured = {"stats": {"median": 0.1}, "extra_info": {"case": "a", **extra, **changes}}
    return {"benchmarks": [measured], "skipped": {"b": "not installed", "c": " "}}


def test_what_was_not_measured_is_found():
    assert check_measured.problems(results(), ["a", "b"]) == []
    found = check_measured.problems(results(), ["a", "c", "d"])
    assert found == ["c: skipped without a reason", "d: neither measured nor skipped"]
    for changes in ({"times_ours": float("nan")}, {"bytes": 0}, {"copy_share": -1.0}):
        (problem,) = check_measured.problems(results(**changes), ["a"])
        assert problem.startswith("a: not all of median, times_ours, bytes, copy_share > 0")


BENCH_WARNS = """
import warnings
import cases
from harness import Unavailable, Work

FEATURE = cases.SEGMENT


class Inputs:
    def work(self, rival, work):
        if rival == "ruptures KernelCPD":
            raise Unavailable("no such package")
        return Work(lambda: warnings.warn("old", DeprecationWarning))

    def copied(self):
        return Work(lambda: bytes(1000)), 2000

    def size(self, work):
        return "2 n", 2000


def test_it(case, measure):
    if case.rival.name == "ours, norm" and case.shape[0] == 200:
        return  # measures nothing
    measure(Inputs())
"""


def test_a_warning_fails_nothing_and_a_missing_case_is_found(tmp_path):
    for name in ("conftest.py", "harness.py", "cases.py", "check_measured.py"):
        shutil.copy(BENCHMARKS / name, tmp_path)
    (tmp_path / "bench_warns.py").write_text(BENCH_WARNS)
    root = BENCHMARKS.parent
    command = [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "--rootdir", root]
    command += ["-p", "no:cacheprovider", "--benchmark-only", "--quick"]
    command += ["--benchmark-json=out.json", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not measured (2 cases): no such package" in done.stdout
    assert "segment 200 x 10 float32" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["quick"] is True
    wanted = [case.id for case in cases.SEGMENT.cases(quick=True)]
    missing = "segment-200x10-float32-call-ours, norm"
    assert check_measured.problems(found, wanted) == [f"{missing}: neither measured nor skipped"]
    done = subprocess.run(
        [sys.executable, "check_measured.py", "out.json"], capture_output=True, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert missing in done.stderr


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile warns when it is imported, and takes long: the function itself stands in."""
    for module in (bench_chunk_loss, bench_linear_chunk_loss):
        monkeypatch.setattr(module, "compiled", lambda function: function)


def available(feature):
    return [r for r in feature.rivals if r.name not in ("Liger", "quack", "copy_", "copy_, fresh")]


def gradients(inputs, rival):
    loss, leaves = inputs.graph(rival)()
    return loss, torch.autograd.grad(loss, leaves)


def names(rivals):
    return [rival.name for rival in rivals]


@pytest.mark.parametrize("dtype", cases.BOTH_DTYPES)
@pytest.mark.parametrize("rival", names(available(cases.CHUNK_LOSS)))
@pytest.mark.usefixtures("uncompiled")
def test_every_rival_of_chunk_loss_computes_the_same(rival, dtype):
    inputs = bench_chunk_loss.Logits(40, 23, dtype)
    x = inputs.x.detach().double().requires_grad_()
    rows = inputs.ids == 3 if rival.endswith("1 of 8") else slice(None)
    expected = F.cross_entropy(x[rows], inputs.y[rows])
    (gradient,) = torch.autograd.grad(expected, x)
    if rival == "ours, in place":
        inputs.buffer.copy_(inputs.x.detach())
    if rival == "eager, cheapest statistics":
        loss, leaves = inputs.eager_rows()
        found = torch.autograd.grad(loss, leaves)
        inputs.cheapest_statistics(found)
    else:
        loss, found = gradients(inputs, rival)
    tolerance = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[0].double(), gradient, rtol=tolerance, atol=tolerance / 10)


def test_the_statistics_that_eager_computes_are_ours():
    inputs = bench_chunk_loss.Logits(40, 23, "float32")
    stats = cwt_ext.chunk_loss(inputs.x, inputs.y, inputs.ids, mean_grad_norm=True).stats
    ours = torch.stack(stats[:6])  # tokens, nll, correct, entropy, norm, squared norm
    inputs.eager_statistics(mean=True)
    torch.testing.assert_close(inputs.statistics, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs.mean_grad_norm, stats.mean_grad_norm, rtol=1e-5, atol=1e-6)
    loss, leaves = inputs.eager_rows()
    inputs.cheapest_statistics(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(inputs.statistics, ours[[0, 1, 4, 5]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rival", names(available(cases.LINEAR_CHUNK_LOSS)))
@pytest.mark.usefixtures("uncompiled")
def test_every_rival_of_linear_chunk_loss_computes_the_same(rival):
    inputs = bench_linear_chunk_loss.Hidden(64, 8, 23, "float32")
    h, w = (t.detach().double().requires_grad_() for t in (inputs.h, inputs.w))
    rows = inputs.ids == 3 if rival.endswith("1 of 8") else slice(None)
    expected = F.cross_entropy(h[rows] @ w.T, inputs.y[rows])
    try:
        loss, found = gradients(inputs, rival)
    except harness.Unavailable as reason:
        pytest.skip(str(reason))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, right in zip(found, torch.autograd.grad(expected, (h, w)), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["CWT", "FTT"])
@pytest.mark.parametrize("rival", names(cases.TRAINING_STEP.rivals))
def test_every_training_step_has_the_same_gradients(rival, kind):
    inputs = bench_training_step.Batch("tiny", kind, 2, 40)
    assert inputs.rows.sum() == {"CWT": 2 * 2, "FTT": 2 * 20}[kind]

    def gradient(loss_of):
        model = copy.deepcopy(inputs.model)
        loss_of(model).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    try:
        loss_of = inputs.loss_of(rival)
    except harness.Unavailable as reason:
        pytest.skip(str(reason))
    right = gradient(lambda model: plain(inputs, model))
    assert right.norm() > 0.1
    torch.testing.assert_close(gradient(loss_of), right, rtol=1e-4, atol=1e-5)


def plain(inputs, model):
    """The mean loss of the tokens of the active chunks, one sequence at a time."""
    losses = []
    for tokens, rows in zip(inputs.tokens, inputs.rows, strict=True):
        log_p = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        losses += [-log_p[t, tokens[t + 1]] for t in torch.nonzero(rows).flatten().tolist()]
    return torch.stack(losses).mean()


def test_a_training_step_trains_a_copy_of_its_own(monkeypatch):
    inputs = bench_training_step.Batch("gpt2-50k", "CWT", 1, 32)
    before = inputs.ours(inputs.model).item()
    steps = inputs.work("ours", cases.STEP)
    steps.run()
    assert inputs.ours(inputs.model).item() == before
    monkeypatch.setattr(bench_training_step.copy, "deepcopy", lambda model: model)
    steps = inputs.work("ours", cases.STEP)
    for _ in range(3):
        steps.run()
    assert inputs.ours(inputs.model).item() < before - 0.01


def test_the_size_of_a_training_step_counts_the_parameters():
    inputs = bench_training_step.Batch("tiny", "CWT", 1, 32)
    formula, size = inputs.size(cases.STEP)
    assert formula.startswith("40 P")
    assert size == 40 * sum(p.numel() for p in inputs.model.parameters())


def test_the_segmenters_are_compared_on_the_same_problem():
    texts = bench_segment.Texts([30, 17], [4, 3])
    for ours, rival in zip(texts.ours("ls", threads=2), texts.rival(), strict=True):
        assert ours.boundaries[1:].tolist() == list(rival)
    assert texts.size(cases.CALL)[1] == 4 * 47 * bench_segment.D


def test_on_a_gpu_a_rival_that_does_not_import_is_listed_with_its_reason(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "broken_rival.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(harness.Unavailable) as raised:
        bench_chunk_loss_gpu.load("broken_rival", "Broken")
    reason = "broken_rival: ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert str(raised.value) == reason
    with pytest.raises(harness.Unavailable, match="the package not_there_at_all is not installed"):
        bench_chunk_loss_gpu.load("not_there_at_all.part", "Absent")

    fixed = ("loss", (8, 32), "bfloat16")
    measured = {"quartiles": (0.9, 1.1), "peak_bytes": 3 << 20}
    results = [
        bench_chunk_loss_gpu.Result(*fixed, "Broken", 512, None, reason=reason),
        bench_chunk_loss_gpu.Result(*fixed, "slow", 512, 2.0, copy_share=0.25, **measured),
        bench_chunk_loss_gpu.Result(*fixed, "cwt_ext", 512, 0.5, copy_share=1.0, **measured),
    ]
    bench_chunk_loss_gpu.print_table(results)
    title, *rows = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("loss, 8 x 32 bfloat16")
    assert [row.split()[0] for row in rows] == ["cwt_ext", "slow", "Broken"]
    assert "4.00 x ours" in rows[1]
    assert "25.0%" in rows[1]
    assert rows[2].endswith(f"not measured: {reason}")
