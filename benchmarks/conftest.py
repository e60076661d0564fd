"""Runs the cases of cases.py under pytest-benchmark, and prints one table a feature.

A bench_<feature>.py says `FEATURE = cases.X` and offers one test that takes `case` and `measure`:

    def test_x(case, measure):
        measure(make_inputs(case.shape, case.dtype))

What it passes has work(rival name, work) -> Work, size(work) -> (formula, bytes that the work
needs) and copied() -> (Work, bytes): a copy_ that shows how fast the memory is.

Before each timed round of a rival, ours and copy_ run once, timed too: the ratios are paired.
"""

import os
import statistics
from pathlib import Path

import pytest
import torch
from cases import FEATURES
from harness import Figure, Unavailable, compare, feature_table, paired_rounds

# No tests: run by hand.
collect_ignore = ["bench_chunk_cost.py", "bench_chunk_loss_gpu.py", "bench_segment_quality.py"]
# (seconds for the rounds of a case, fewest rounds, most rounds)
FULL, QUICK = (0.6, 3, 20), (0.2, 3, 10)
SKIPPED = pytest.StashKey[dict[str, str]]()
FIGURES = pytest.StashKey[dict[str, list[Figure]]]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small shapes: see cases.py")


def pytest_configure(config):
    config.stash[SKIPPED], config.stash[FIGURES] = {}, {}
    # pytest-benchmark warns outside of any test, for instance of a comparison across machines.
    config.addinivalue_line(
        "filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning"
    )


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = list(metafunc.module.FEATURE.cases(metafunc.config.getoption("quick")))
        ids = [case.id.removeprefix(f"{case.feature}-") for case in cases]
        metafunc.parametrize("case", cases, ids=ids)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:  # the tests' own files stay under `error`
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def measure(benchmark, case, request):
    """Returns f(inputs), which measures the case or skips it with the rival's reason."""

    def run(inputs):
        benchmark.group = f"{case.feature} {case.title} {case.work}"
        benchmark.name = case.rival.name
        benchmark.extra_info["case"] = case.id
        try:
            rival = inputs.work(case.rival.name, case.work)
        except Unavailable as reason:
            request.config.stash[SKIPPED][case.id] = str(reason)
            pytest.skip(str(reason))
        copy, copy_bytes = inputs.copied()
        references = {"copy": copy}
        if case.rival.name != case.rival.against:
            references["ours"] = inputs.work(case.rival.against, case.work)
        limits = QUICK if request.config.getoption("quick") else FULL
        times = paired_rounds(benchmark, rival, references, limits)
        if times is None:
            return
        formula, size = inputs.size(case.work)
        figures = compare(times, size, copy_bytes)
        benchmark.extra_info.update(
            figures,
            work=case.work,
            rival=case.rival.name,
            against=case.rival.against,
            bytes=size,
            bytes_formula=formula,
            threads=torch.get_num_threads(),
        )
        request.config.stash[FIGURES].setdefault(case.feature, []).append(
            Figure(
                case.title,
                case.work,
                case.rival.name,
                case.rival.against,
                statistics.median(times["rival"]),
                figures["times_ours"],
                figures["copy_share"],
            )
        )

    return run


def pytest_benchmark_update_json(config, output_json):
    output_json["quick"] = config.getoption("quick")
    output_json["skipped"] = config.stash[SKIPPED]


LEGEND = """
ms: median of the rounds. x ours: median of the ratios to ours, which ran just before each round;
above 1 ours is faster. of copy: bytes a second, as a share of what copy_ moves; the bytes are those
that the work needs, whoever does it (formula in extra_info of the JSON). Ours forms the gradient in
the forward pass, so that little is left for the backward pass: compare `both`."""


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter, config):
    write = terminalreporter.write_line
    for name, figures in config.stash[FIGURES].items():
        terminalreporter.section(name)
        order = [rival.name for rival in FEATURES[name].rivals]
        figures.sort(key=lambda figure: order.index(figure.rival))
        for line in feature_table(name, FEATURES[name].works, figures):
            write(line)
    if config.stash[FIGURES]:
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        for line in LEGEND.splitlines():
            write(line)
        write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}")
    reasons: dict[str, list[str]] = {}
    for case, reason in config.stash[SKIPPED].items():
        reasons.setdefault(reason, []).append(case)
    for reason, skipped in reasons.items():
        write(f"not measured ({len(skipped)} cases): {reason}")
