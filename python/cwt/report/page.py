"""report.html: headline, figures, table and examples of a run in one file.

The figures are SVG (Scalable Vector Graphics) written into the page: plot.py computes them as plain
geometry, plot.svg.j2 draws them. A plotting library was here before. Its script made every page
5 MB, laid legends over curves on wide screens, and left the figures empty without JavaScript; the
libraries that write SVG files know neither the colour scheme of the reader nor names that keep
clear of each other. Now a page is a few hundred kB, nearly all of it the examples; its script
filters them and tells values.

The page needs no network and may use none: its Content-Security-Policy allows nothing but its own
style sheet and the one script whose hash it names. All text from data is escaped.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwt.files import write_text
from cwt.report.examples import ExampleView, from_rows
from cwt.report.plot import scatter, training_curves
from cwt.report.table import (
    ABBREVIATIONS,
    COMPARED,
    DIAGNOSTICS,
    REST,
    cells,
    compared_rows,
    data_lines,
    diagnostics_cells,
    headline,
    notes,
    title,
)

ROOM = Path(__file__).parent  # of the templates, the style sheet and the script


def write_page(
    path: Path,
    report: dict[str, Any],
    views: dict[str, Any],
    followed: str,
    log: Sequence[dict[str, Any]],
) -> None:
    """Writes report.html.

    Args:
        path: of the page.
        report: what report.json holds; `labels`, one line of explanation a row, may be missing.
        views: what views.json holds.
        followed: the student whose training the curves show.
        log: its training log; an empty one has no curves.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rows, examples = report["methods"], from_rows(views["examples"])
    labels = report.get("labels", {})
    strong = [row["name"] for row in compared_rows(report)]
    script = (ROOM / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("report.html.j2").render(
        policy=_policy(script),
        css=(ROOM / "report.css").read_text(encoding="utf-8"),
        script=script,
        title=title(report),
        headline=headline(report),
        scatters=[scatter(rows, *size, strong, _said) for size in ((1120, 420), (360, 440))],
        labels=labels,
        strong=strong,
        columns=[column.title for column in COMPARED],
        rows=[cells(row) for row in rows],
        abbreviations=ABBREVIATIONS,
        facts=[*data_lines(report), *notes(report)],
        more_columns=[column.title for column in REST],
        more_rows=[cells(row, REST) for row in rows],
        diagnostics=[diagnostics_cells([run]) for run in report["diagnostics"]],
        diagnostics_columns=DIAGNOSTICS,
        followed=followed,
        curves=training_curves(log),
        student=views["losses_of"],
        examples=[(view, _heats(view)) for view in examples],
        roles=sorted({u.role for v in examples for u in v.units if u.role}),
    )
    write_text(path, text.lstrip())


def _policy(script: str) -> str:
    """Returns the Content-Security-Policy under which the page runs this script and nothing else.

    Styles may stand anywhere: the colour of a sentence is a style of its own.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _said(row: dict[str, Any]) -> str:
    """Returns what a reader is told who points at a row in the figure."""
    low, high = (100 * v for v in row["accuracy_interval"])
    return (
        f"{row['name']}: {100 * row['accuracy']:.1f} % right (95 % interval {low:.1f} to "
        f"{high:.1f}), {row['generated_tokens']:.1f} tokens an answer."
    )


def _heats(view: ExampleView) -> list[float]:
    """Returns how strongly each unit is coloured, in [0, 1]: its loss a token, up to 3 nats."""
    return [round(min(1.0, unit.nats_per_token / 3), 3) for unit in view.units]
