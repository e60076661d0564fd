"""Tables and points of the figure from what rivals.py measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cwt.evaluation.statistics import paired_difference
from cwt.pipeline.methods import METHODS
from cwt.report.table import markdown_table
from page_figure import Point

PARENT = "FTT-small-batch"


def table(rows: Sequence[dict[str, Any]], task: str, share: float) -> list[str]:
    """Returns a line a row: means over seeds, each seed, and the difference to two rows."""
    of = {(r["name"], r["seed"]): r for r in rows if r["task"] == task and r["share"] == share}
    lines = []
    for name in METHODS:
        own = [of[key] for key in sorted(of) if key[0] == name]
        if not own:
            continue
        skipped = [100 * r["skipped_share"] for r in own if r["skipped_share"] is not None]
        each = ", ".join(f"{100 * r['accuracy']:.1f}" for r in own)
        lines.append([
            f"`{name}`", f"{np.mean([100 * r['accuracy'] for r in own]):.1f} ({each})",
            f"{np.mean([r['generated_tokens'] for r in own]):.0f}",
            f"{np.mean(skipped):.0f}" if skipped else "-",
            against(of, name, "random-skips"), against(of, name, "STT"),
        ])  # fmt: skip
    titles = ["row", "accuracy %", "tokens", "skipped %", "points against `random-skips`",
              "points against `STT`"]  # fmt: skip
    return markdown_table(titles, lines)


def points(rows: Sequence[dict[str, Any]], task: str) -> list[Point]:
    """Returns a mark for every row at every share of skips: means over seeds."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["task"] == task and (not row["share"] or row["name"] != PARENT):
            found.setdefault((row["name"], row["share"]), []).append(row)
    return [
        Point(
            name,
            float(np.mean([r["generated_tokens"] for r in own])),
            100 * float(np.mean([r["accuracy"] for r in own])),
        )
        for (name, _), own in found.items()
    ]


def against(of: dict[tuple[str, int], dict[str, Any]], name: str, other: str) -> str:
    """Returns the paired difference of two rows in points, with its 95 % interval."""
    seeds = [s for n, s in of if n == name and (other, s) in of]
    if not seeds or name == other:
        return "-"
    a, b = ([np.array(list(of[n, s]["marks"]), dtype=float) for s in seeds] for n in (name, other))
    found = paired_difference(a, b)
    low, high = found.interval
    return f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
