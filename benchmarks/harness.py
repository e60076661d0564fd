"""Times works in turns and compares them: one statistics for pytest-benchmark and for `main`.

A ratio is the median over the rounds of the paired ratios: in every round the two works run one
right after the other, so that what else the machine does meanwhile weighs on both. This file knows
no operator, no rival and no shape: those are in cases.py and in the bench_<feature>.py.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

WALL, CPU = 0, 1
CLOCKS = (time.perf_counter, time.process_time)


# name of a work -> (wall, CPU) seconds of each round
Times = dict[str, list[tuple[float, float]]]


class Unavailable(Exception):
    """A rival cannot run here; the message is the reason that is printed."""


@dataclass(frozen=True)
class Work:
    """Something to time: `run(*prepare())`, of which only `run` is timed."""

    run: Callable[..., None]
    prepare: Callable[[], tuple[Any, ...]] = tuple


class Ratio(NamedTuple):
    median: float
    low: float  # first quartile
    high: float  # third quartile


def timed(work: Work, clocks=CLOCKS) -> tuple[float, float]:
    """Returns (wall, CPU) seconds of one run."""
    arguments = work.prepare()
    wall_clock, cpu_clock = clocks
    cpu, wall = cpu_clock(), wall_clock()
    work.run(*arguments)
    return wall_clock() - wall, cpu_clock() - cpu


def measure(works: Mapping[str, Work], rounds: int, clocks=CLOCKS) -> Times:
    """Returns name -> (wall, CPU) seconds of each round, the works run in turns.

    One round more is run, first, to warm up: it is dropped.
    """
    times: Times = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(timed(work, clocks))
    return {name: values[1:] for name, values in times.items()}


def quartiles(values: Sequence[float]) -> Ratio:
    """Returns the median and the quartiles, interpolated linearly as numpy's percentiles are."""
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(middle, low, high)


def ratio(numerators: Iterable[float], denominators: Iterable[float]) -> Ratio:
    """Returns median and quartiles of the paired ratios."""
    return quartiles([a / b for a, b in zip(numerators, denominators, strict=True)])


def ratio_of(
    times: Mapping[str, Sequence[tuple[float, float]]], a: str, b: str, kind: int
) -> Ratio:
    """Returns ratio() of two works of `measure`, of wall (WALL) or CPU time."""
    return ratio((t[kind] for t in times[a]), (t[kind] for t in times[b]))


def count_rounds(seconds: float, budget: float, least: int, most: int) -> int:
    """Returns how many rounds of so many seconds fit into the budget, within the limits."""
    return max(least, min(most, int(budget / max(seconds, 1e-9))))


def paired_rounds(
    benchmark: Any,
    rival: Work,
    references: Mapping[str, Work],
    limits: tuple[float, int, int],
    clocks=CLOCKS,
) -> dict[str, list[float]] | None:
    """Times a rival with pytest-benchmark, and before each of its rounds every reference once.

    One round more is run, first, to warm up: it tells how long a round takes, and is dropped.

    Args:
        benchmark: the fixture.
        rival: what the fixture times.
        references: ours, copy_.
        limits: seconds for all rounds together, fewest rounds, most rounds.

    Returns:
        name -> wall seconds of each round; that of the rival is called "rival". None where
        pytest-benchmark is disabled: everything has run then, and nothing was measured.
    """
    start = clocks[WALL]()
    for work in (*references.values(), rival):
        timed(work, clocks)
    rounds = count_rounds(clocks[WALL]() - start, *limits)
    times: dict[str, list[float]] = {name: [] for name in references}

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, work in references.items():
            times[name].append(timed(work, clocks)[WALL])
        return rival.prepare(), {}

    def run(*arguments: Any) -> None:  # returns nothing: pytest-benchmark would keep it
        rival.run(*arguments)

    benchmark.pedantic(run, setup=prepare, rounds=rounds)
    if not benchmark.enabled:
        return None
    return {**times, "rival": list(benchmark.stats.stats.data)}


def compare(times: Mapping[str, list[float]], size: int, copy_bytes: int) -> dict[str, Any]:
    """Returns what the rounds of paired_rounds say about a rival.

    Args:
        times: "rival", "copy", and "ours" unless the rival is itself what it is compared with.
        size: bytes that the work needs.
        copy_bytes: bytes that copy_ moves.
    """
    against = ratio(times["rival"], times.get("ours", times["rival"]))
    return {
        "times_ours": against.median,
        "times_ours_quartiles": [against.low, against.high],
        "gigabytes_per_second": size / statistics.median(times["rival"]) / 1e9,
        "copy_share": ratio(times["copy"], times["rival"]).median * size / copy_bytes,
    }


def paired_tables(feature: Any, inputs: Callable, about: str, rounds: int) -> None:
    """The `main` of a feature: every rival in turns, a table a shape, dtype and kind of work.

    Args:
        feature: of cases.py; its `published` grid is measured.
        inputs: (shape, dtype) -> what has work(rival name, work).
        about: the text of --help.
        rounds: default of --rounds.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    options = parser.parse_args()
    grid = feature.published
    if options.quick:
        grid = replace(grid, shapes=grid.shapes[:1])
    tables: dict[tuple[str, str], list[Any]] = {}
    for case in feature.grid_cases(grid):
        tables.setdefault((case.title, case.work), []).append(case)
    print(f"load {os.getloadavg()}")
    for (title, work), cases in tables.items():
        works = {}
        for case in cases:
            try:
                works[case.rival.name] = inputs(case.shape, case.dtype).work(case.rival.name, work)
            except Unavailable as reason:
                print(f"not measured: {reason}")
        against = {case.rival.name: case.rival.against for case in cases}
        print("\n".join(paired_table(f"{title}, {work}", measure(works, options.rounds), against)))
    print(f"load {os.getloadavg()}")


def paired_table(title: str, times: Times, against: Mapping[str, str]) -> list[str]:
    """Returns the lines of one table of `measure`'s times, each name compared `against` another."""
    lines = [f"\n| {title} | ms | ms of CPU | x ours (quartiles) | of CPU time |", "|-|-|-|-|-|"]
    for name, values in times.items():
        wall, cpu = (statistics.median(v[kind] for v in values) * 1e3 for kind in (WALL, CPU))
        walls = ratio_of(times, name, against[name], WALL)
        cpus = ratio_of(times, name, against[name], CPU)
        label = name if against[name] == "ours" else f"{name} (x: {against[name]})"
        lines.append(
            f"| {label} | {wall:.1f} | {cpu:.1f} | {walls.median:.2f} "
            f"({walls.low:.2f}..{walls.high:.2f}) | {cpus.median:.2f} |"
        )
    return lines


@dataclass(frozen=True)
class Figure:
    """One measured cell of a feature's table."""

    title: str  # of the block: shape and dtype
    work: str
    rival: str
    against: str  # which of ours the rival is compared with
    seconds: float  # median
    times_ours: float  # of `against`; more than 1: slower than ours
    copy_share: float  # bytes a second, in units of copy_'s


def feature_table(feature: str, works: Sequence[str], figures: Sequence[Figure]) -> list[str]:
    """Returns the lines of one table: a block a shape and dtype, a row a rival."""
    present = {figure.work for figure in figures}
    works = [work for work in works if work in present]
    width = max(len(_label(figure)) for figure in figures) + 2
    lines = []
    blocks: dict[str, dict[str, dict[str, Figure]]] = {}
    for figure in figures:
        rows = blocks.setdefault(figure.title, {})
        rows.setdefault(_label(figure), {})[figure.work] = figure
    for title, rows in blocks.items():
        lines += ["", f"{feature} {title}"]
        lines.append(" " * width + "".join(f"{work:>30}" for work in works))
        lines.append(" " * width + f"{'ms':>12}{'x ours':>9}{'of copy':>9}" * len(works))
        for label, cells in rows.items():
            lines.append(f"{label:{width}}" + "".join(_cells(cells.get(work)) for work in works))
    return lines


def _label(figure: Figure) -> str:
    return figure.rival + ("" if figure.against == "ours" else f" [x: {figure.against}]")


def _cells(figure: Figure | None) -> str:
    if figure is None:
        return f"{'-':>12}{'-':>9}{'-':>9}"
    percent = 100 * figure.copy_share
    share = f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
    return f"{figure.seconds * 1e3:12.3f}{figure.times_ours:9.2f}{share:>9}"
