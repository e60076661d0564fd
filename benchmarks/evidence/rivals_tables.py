"""Tables and points of the figure from what rivals.py measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cwt.evaluation.statistics import paired_difference
from cwt.pipeline.methods import METHODS
from cwt.report.table import markdown_table
from page_figure import Point

PARENT = "FTT-small-batch"
CHUNKS = (
    "CWT", "CWT-one-pass", "CWT-stage-marks", "CWT-sbc", "CWT-sbc-repeated",
    "CWT-sbc-exact-repeated", "CWT-sbc-repeated-marks",
)  # fmt: skip
RECIPES = ("STT-mixed", "STT-skip-marks", "shortest-correct")
TRAINING = (*CHUNKS, *RECIPES)  # ways to train, not to choose what is skipped
PAIRS = (  # what each way to train changes, and against what
    ("CWT", PARENT), ("CWT-one-pass", PARENT), ("CWT-stage-marks", "CWT"), ("CWT-sbc", "CWT"),
    ("CWT-sbc-repeated", "CWT-sbc"), ("CWT-sbc-exact-repeated", "CWT-sbc"),
    ("STT-in-one-piece", "STT"), ("STT-mixed", "STT-in-one-piece"),
    ("STT-skip-marks", "STT-in-one-piece"), ("shortest-correct", "continued"),
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]], task: str, share: float) -> list[str]:
    """Returns a line a judge: means over seeds, each seed, the differences to two rows."""
    names = [name for name in METHODS if name not in TRAINING]
    found = [r for r in rows if r["task"] == task and r["share"] == share]
    return _table(found, names, ("random-skips", "STT"))


def training_table(rows: Sequence[dict[str, Any]], task: str) -> list[str]:
    """Returns the same for the ways to train, and what each reads."""
    found = [r for r in rows if r["task"] == task and not r["share"]]
    return _table(found, [PARENT, "continued", *TRAINING, "STT"], (PARENT, "STT"), costs=True)


def methods_table(rows: Sequence[dict[str, Any]], task: str) -> list[str]:
    """Returns the main methods beside what they are compared with, and what each reads."""
    found = [r for r in rows if r["task"] == task and not r["share"]]
    names = [PARENT, "CWT", "continued", "STT", "random-skips"]
    return _table(found, names, (PARENT, "continued"), costs=True)


def together_table(tasks: dict[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Returns what each way to train changes: in points, of all tasks together and of each.

    Args:
        tasks: the rows of every task.
    """
    each = {
        task: {(r["name"], r["seed"]): r for r in rows if not r["share"]}
        for task, rows in tasks.items()
    }
    together = {
        (name, f"{task} {seed}"): row
        for task, of in each.items()
        for (name, seed), row in of.items()
    }
    lines = [
        [f"`{a}` against `{b}`", *(against(of, a, b) for of in (together, *each.values()))]
        for a, b in PAIRS
    ]
    return markdown_table(["points", "all together", *tasks], lines)


def _table(
    rows: Sequence[dict[str, Any]], names: Sequence[str], others: Sequence[str], costs: bool = False
) -> list[str]:
    of = {(r["name"], r["seed"]): r for r in rows}
    lines = []
    for name in names:
        own = [of[key] for key in sorted(of) if key[0] == name]
        if not own:
            continue
        skipped = [100 * r["skipped_share"] for r in own if r["skipped_share"] is not None]
        each = ", ".join(f"{100 * r['accuracy']:.1f}" for r in own)
        read = f"{np.mean([r['total_processed_tokens'] for r in own]) / 1000:,.0f}"
        lines.append([
            f"`{name}`", f"{np.mean([100 * r['accuracy'] for r in own]):.1f} ({each})",
            f"{np.mean([r['generated_tokens'] for r in own]):.0f}",
            f"{np.mean(skipped):.0f}" if skipped else "-",
            *(against(of, name, other) for other in others), *([read] if costs else []),
        ])  # fmt: skip
    titles = ["row", "accuracy %", "tokens", "skipped %"]
    titles += [f"points against `{other}`" for other in others]
    return markdown_table(titles + ["thousand tokens read, whole"] * costs, lines)


def title(share: float) -> str:
    """Returns how many units the rows of a share leave out, in words."""
    return f"{100 * share:.0f} % of the middle units" if share else "as many skips as STT"


def panels(rows: Sequence[dict[str, Any]], task: str) -> list[tuple[str, list[Point]]]:
    """Returns a panel for every share of skips: a mark for every row, means over seeds."""
    shares = sorted({row["share"] for row in rows if row["task"] == task})
    return [(f"{task}, {title(share)}", _points(rows, task, share)) for share in shares]


def _points(rows: Sequence[dict[str, Any]], task: str, share: float) -> list[Point]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["task"], row["share"]) == (task, share) and row["name"] not in TRAINING:
            found.setdefault(row["name"], []).append(row)
    return [
        Point(
            name,
            float(np.mean([r["generated_tokens"] for r in own])),
            100 * float(np.mean([r["accuracy"] for r in own])),
        )
        for name, own in found.items()
    ]


def against(of: Mapping[tuple[str, Any], dict[str, Any]], name: str, other: str) -> str:
    """Returns the paired difference of two rows in points, with its 95 % interval."""
    seeds = [s for n, s in of if n == name and (other, s) in of]
    if not seeds or name == other:
        return "-"
    a, b = ([np.array(list(of[n, s]["marks"]), dtype=float) for s in seeds] for n in (name, other))
    found = paired_difference(a, b)
    low, high = found.interval
    return f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
