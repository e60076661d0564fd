"""Writes the README's table and figure of the demo from the report of a run.

    make demo
    python docs/figures.py runs/default/report.json

The figure is docs/figures/demo.svg: accuracy against tokens written, for the four main rows. The
table replaces what stands between the two `demo table` markers of README.md, and is printed.
Needs the standard library alone.
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- demo table -->", "<!-- end of demo table -->"
Row = dict[str, Any]

MAIN_ROWS = {
    "FTT": "full-thinking training",
    "FTT-small-batch": "FTT in smaller batches",
    "CWT": "chunk-wise training",
    "STT": "skip-thinking training",
}


def _number(row: Row, key: str, form: str = "{:.1f}", scale: float = 1.0) -> str:
    return "-" if row[key] is None else form.format(scale * row[key])


def _interval(row: Row) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * low:.1f}-{100 * high:.1f}"


COLUMNS = {
    "method": lambda row: row["name"],
    "accuracy %": lambda row: _number(row, "accuracy", scale=100),
    "95 % interval": _interval,
    "tokens written": lambda row: _number(row, "generated_tokens"),
    "ms, one answer alone": lambda row: _number(row, "latency_seconds", "{:.0f}", 1000),
    "skipped %": lambda row: _number(row, "skipped_share", scale=100),
    "loss tokens, all training": lambda row: _number(row, "total_loss_tokens", "{:,.0f}"),
    "processed tokens, all training": lambda row: _number(row, "total_processed_tokens", "{:,.0f}"),
    "loss tokens, chosen student": lambda row: _number(row, "loss_tokens", "{:,.0f}"),
}


def table(report: dict[str, Any]) -> str:
    """Returns the table of a report in Markdown, led by the sentence that says what it shows."""
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
        *(
            "| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |"
            for row in report["methods"]
        ),
    ]
    sentences = [_headline(report)]
    if all(row["latency_seconds"] is None for row in report["methods"]):
        sentences.append("This run did not measure the latency of one answer alone.")
    return "\n\n".join([textwrap.fill(" ".join(sentences), 120), "\n".join(lines)])


def _headline(report: dict[str, Any]) -> str:
    rows = {row["name"]: row for row in report["methods"]}
    config = report["config"]
    stt, parent = rows["STT"], rows[config["train"]["parent"]]
    share = stt["generated_tokens"] / parent["generated_tokens"]
    return (
        f"STT answers {100 * stt['accuracy']:.1f} % of {report['data']['test']} held-out "
        f"{config['data']['task']} questions right and writes {stt['generated_tokens']:.0f} tokens "
        f"an answer. The student that it starts from, {parent['name']}, answers "
        f"{100 * parent['accuracy']:.1f} % right and writes {parent['generated_tokens']:.0f} "
        f"tokens: STT needs {100 * share:.0f} % of them. One seed ({config['seed']}), student "
        f"`{config['student']}`."
    )


WIDTH, HEIGHT = 800, 350
LEFT, RIGHT, TOP, BOTTOM = 64, 500, 56, 290  # edges of the plot
GAP = 38  # between two labels

STYLE = """
    .page { fill: #ffffff; } .grid { stroke: #dfe5ea; } .axis { stroke: #8894a0; }
    .strong { fill: #1c2731; font-weight: 600; } .note { fill: #54626f; font-size: 12px; }
    .lead { stroke: #8894a0; stroke-width: 1; fill: none; }
    .other { fill: #5b86b5; stroke: #5b86b5; } .skip { fill: #2f9466; stroke: #2f9466; }
    .whisker { stroke-width: 2; opacity: 0.55; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; } .grid { stroke: #27313b; } .axis, .lead { stroke: #6b7885; }
      .strong { fill: #e6edf3; } .note { fill: #9aa9b7; }
      .other { fill: #7fa8d6; stroke: #7fa8d6; } .skip { fill: #4fbf8b; stroke: #4fbf8b; }
    }
"""


def figure(report: dict[str, Any]) -> str:
    """Returns the SVG of accuracy against tokens written, for the rows of MAIN_ROWS.

    Raises:
        ValueError: the report lacks one of them.
    """
    found = {row["name"]: row for row in report["methods"]}
    if missing := [name for name in MAIN_ROWS if name not in found]:
        raise ValueError(f"the figure needs the rows {list(MAIN_ROWS)}, {missing} are not there.")
    rows = [found[name] for name in MAIN_ROWS]
    floor = 10 * int(10 * min(row["accuracy_interval"][0] for row in rows))
    most = 20 * (1 + int(max(row["generated_tokens"] for row in rows) // 20))

    def x(tokens: float) -> float:
        return LEFT + (RIGHT - LEFT) * tokens / most

    def y(percent: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (percent - floor) / (100 - floor)

    parts = [*_axes(floor, most, x, y), *_points(rows, x, y)]
    title = f"Accuracy against tokens written, {report['data']['test']} held-out questions"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
            ' font-family="system-ui, -apple-system, Helvetica, Arial, sans-serif"'
            ' font-size="13">',
            f"  <title>{title}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
            f'  <text class="strong" x="{LEFT - 40}" y="28">{title}</text>',
            *(f"  {part}" for part in parts),
            "</svg>\n",
        ]
    )


def _axes(floor: int, most: int, x: Any, y: Any) -> list[str]:
    parts = []
    step = 5 if 100 - floor <= 30 else 10 if 100 - floor <= 60 else 20
    for percent in range(floor, 101, step):
        at = f'y1="{y(percent):.1f}" y2="{y(percent):.1f}"'
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" {at}/>')
        parts.append(_text("note", LEFT - 8, y(percent) + 4, f"{percent} %", "end"))
    for tokens in range(0, most + 1, 20):
        parts.append(_text("note", x(tokens), BOTTOM + 18, str(tokens), "middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    caption = "tokens written per answer (mean)"
    parts.append(_text("note", (LEFT + RIGHT) / 2, BOTTOM + 40, caption, "middle"))
    caption = "bars: 95 % interval over the questions"
    return [*parts, _text("note", WIDTH - 24, BOTTOM + 40, caption, "end")]


def _points(rows: list[Row], x: Any, y: Any) -> list[str]:
    """Returns the points with their intervals, and a label beside the plot or beside the point."""
    parts, beside = [], []
    for row in rows:
        px, py = x(row["generated_tokens"]), y(100 * row["accuracy"])
        low, high = (y(100 * share) for share in row["accuracy_interval"])
        kind = "skip" if row["name"] == "STT" else "other"
        parts.append(
            f'<line class="{kind} whisker" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" '
            f'y2="{high:.1f}"/>'
        )
        parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="5"/>')
        if px < (LEFT + RIGHT) / 2:
            parts += _label(row, px + 12, py)
        else:
            beside.append((py, px, row))
    for (py, px, row), at in zip(sorted(beside, key=lambda b: b[0]), _spread(beside), strict=True):
        line = f"M{px + 7:.1f} {py:.1f} L{RIGHT + 4} {at:.1f} H{RIGHT + 12}"
        parts.append(f'<path class="lead" d="{line}"/>')
        parts += _label(row, RIGHT + 16, at)
    return parts


def _spread(labels: list[tuple[float, float, Row]]) -> list[float]:
    """Returns heights for some labels, in order, at least GAP apart and around their points."""
    heights = sorted(label[0] for label in labels)
    middle = sum(heights) / max(1, len(heights))
    first = max(TOP, middle - GAP * (len(heights) - 1) / 2)
    return [first + GAP * i for i in range(len(heights))]


def _label(row: Row, x: float, y: float) -> list[str]:
    name = f"{row['name']}: {100 * row['accuracy']:.1f} %, {row['generated_tokens']:.0f} tokens"
    return [
        _text("strong", x, y - 1, name),
        _text("note", x, y + 14, MAIN_ROWS[row["name"]]),
    ]


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def with_table(page: str, report: dict[str, Any]) -> str:
    """Returns a page with the table of a report between its two markers.

    Raises:
        ValueError: the page does not hold each marker once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise ValueError(f"wanted the markers {BEGIN} and {END}, once each and in this order.")
    return f"{before}{BEGIN}\n{table(report)}\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Writes the figure and the table of one report."""
    if len(arguments) != 1:
        raise SystemExit("usage: python docs/figures.py runs/default/report.json")
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    svg, readme = ROOT / "docs" / "figures" / "demo.svg", ROOT / "README.md"
    page = with_table(readme.read_text(encoding="utf-8"), report)
    svg.write_text(figure(report), encoding="utf-8")
    readme.write_text(page, encoding="utf-8")
    print(table(report))
    print(f"\n{svg.relative_to(ROOT)}, {readme.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
