"""report.html: table, curves and examples of a run in one file that needs no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwt.files import write_text
from cwt.report.examples import ExampleView, from_rows
from cwt.report.table import (
    COMPARED,
    DIAGNOSTICS,
    REST,
    cells,
    data_lines,
    diagnostics_cells,
    headline,
    notes,
    title,
)

TEMPLATE = Path(__file__).parent / "report.html.j2"
POINTS = 60  # of a curve


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
        report: what report.json holds.
        views: what views.json holds.
        followed: the student whose training the curves show.
        log: its training log; each point of a curve is the mean of a stretch of steps.
    """
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    rows, examples = report["methods"], from_rows(views["examples"])
    figures = [_accuracy_figure(rows), *_curves(log)]
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    text = environment.get_template(TEMPLATE.name).render(
        title=title(report),
        headline=headline(report),
        facts=[*data_lines(report), *notes(report)],
        columns=[column.title for column in COMPARED],
        rows=[cells(row) for row in rows],
        more_columns=[column.title for column in REST],
        more_rows=[cells(row, REST) for row in rows],
        plotlyjs=get_plotlyjs(),
        figures=[_div(figure, f"figure-{i}") for i, figure in enumerate(figures)],
        diagnostics=[diagnostics_cells([run]) for run in report["diagnostics"]],
        diagnostics_columns=DIAGNOSTICS,
        followed=followed,
        student=views["losses_of"],
        examples=[(view, _heats(view)) for view in examples],
        roles=sorted({u.role for v in examples for u in v.units if u.role}),
    )
    write_text(path, text)


def _heats(view: ExampleView) -> list[float]:
    """Returns how strongly each unit is coloured, in [0, 1]: its loss a token, up to 3 nats."""
    return [round(min(1.0, unit.nats_per_token / 3), 3) for unit in view.units]


def _div(figure: Any, name: str) -> str:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#888", "size": 13},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        height=380,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    return str(
        figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config={"responsive": True}
        )
    )


def _accuracy_figure(rows: Sequence[dict[str, Any]]) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure(layout={"title": "Accuracy against what is written for it"})
    for row in rows:
        low, high = (100 * v for v in row["accuracy_interval"])
        accuracy = 100 * row["accuracy"]
        figure.add_scatter(
            x=[row["generated_tokens"]],
            y=[accuracy],
            error_y={"array": [high - accuracy], "arrayminus": [accuracy - low]},
            mode="markers",
            marker={"size": 10},
            name=row["name"],
        )
    figure.update_xaxes(title="tokens written a question", rangemode="tozero")
    figure.update_yaxes(title="accuracy, % (95 % interval)", range=[0, 102])
    return figure


def _curves(log: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns loss, gradient share and over-smoothing of each chunk index over training."""
    from plotly import graph_objects as go

    loss = go.Figure(layout={"title": "Loss by chunk"})
    share = go.Figure(layout={"title": "Share of the gradient by chunk"})
    smooth = go.Figure(layout={"title": "Over-smoothing by chunk"})
    chunks = len(log[0]["chunk_tokens"])
    size = max(1, len(log) // POINTS)
    stretches = [log[i : i + size] for i in range(0, len(log), size)]
    total = [sum(sum(row["chunk_grad_norm"]) for row in part) for part in stretches]
    x = [part[-1]["loss_tokens"] for part in stretches]
    for m in range(chunks):
        name = "answer" if m == chunks - 1 else f"chunk {m}"
        tokens = [sum(row["chunk_tokens"][m] for row in part) for part in stretches]
        nll = [sum(row["chunk_nll"][m] for row in part) for part in stretches]
        norm = [sum(row["chunk_grad_norm"][m] for row in part) for part in stretches]
        ratios = [
            [r for row in part if (r := _smoothing(row, m)) is not None] for part in stretches
        ]
        loss.add_scatter(x=x, y=_divided(nll, tokens), name=name, connectgaps=True)
        share.add_scatter(x=x, y=_divided(norm, total), name=name, stackgroup="one")
        means = [sum(r) / len(r) if r else None for r in ratios]
        smooth.add_scatter(x=x, y=means, name=name, connectgaps=True)
    loss.update_yaxes(title="nats a token", rangemode="tozero")
    share.update_yaxes(title="share of the sum of norms", range=[0, 1])
    smooth.update_yaxes(title="||mean g|| / mean ||g||", rangemode="tozero")
    for figure in (loss, share, smooth):
        figure.update_xaxes(title="loss tokens")
    return [loss, share, smooth]


def _smoothing(row: dict[str, Any], m: int) -> float | None:
    """Returns the over-smoothing ratio of a chunk where the step measured it."""
    means = row.get("chunk_mean_grad_norm")
    if not means or not row["chunk_grad_norm"][m]:
        return None
    return float(means[m] * row["chunk_tokens"][m] / row["chunk_grad_norm"][m])


def _divided(above: Sequence[float], below: Sequence[float]) -> list[float | None]:
    return [a / b if b else None for a, b in zip(above, below, strict=True)]
