"""Draws docs/figures/bench-*.svg from the tables of benchmarks/README.md.

    python docs/figures_of_benchmarks.py

A figure is one bar for each row of one table: FIGURES says which table, which column, what the
rows are called. Needs the standard library alone.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "benchmarks" / "README.md"


@dataclass(frozen=True)
class Figure:
    """One figure: bars of one column of a table.

    Attributes:
        title: what the bars show, with the machine's side of it.
        table: the first cells of the table's header, which name it.
        column: of the table, by its header.
        bars: name of a bar, by the first cells of its row.
        unit: after each number.
        reference: name and length of a bar that no row has, such as ours = 1.
        ours: beginnings of the names of bars that are ours.
    """

    title: str
    table: tuple[str, ...]
    column: str
    bars: dict[tuple[str, ...], str]
    unit: str = ""
    reference: tuple[str, float] | None = None
    ours: tuple[str, ...] = field(default=("cwt_ext", "chunk_loss", "linear_chunk_loss"))


LOSS = ("measure", "wanted")
FIGURES = {
    "bench-chunk-loss": Figure(
        "Loss and gradient, 512 x 49152 float32: time in units of chunk_loss",
        LOSS,
        "512 x 49152 fp32",
        {
            ("THP eager `F.cross_entropy` / ours",): "F.cross_entropy, huge pages",
            ("`torch.compile(F.cross_entropy)` / ours",): "F.cross_entropy, torch.compile",
            ("eager `F.cross_entropy` / ours",): "F.cross_entropy, eager",
            ("eager, cheapest statistics / ours",): "eager, cheapest statistics",
            ("eager with the same statistics / ours",): "eager with the same statistics",
        },
        "x",
        ("chunk_loss, with statistics", 1.0),
    ),
    "bench-linear-chunk-loss": Figure(
        "From hidden states, 1024 x 256 x 32000 float32: time in units of linear_chunk_loss",
        ("", "ratio to linear_chunk_loss"),
        "ratio to linear_chunk_loss",
        {
            ("linear_chunk_loss, 1 of 8 chunks active",): "linear_chunk_loss, 1 of 8 chunks",
            ("linear_chunk_loss",): "linear_chunk_loss",
            ("chunk_loss(h @ w.T, inplace=True), holds the logits",): "chunk_loss(h @ w.T)",
            ("F.cross_entropy(h @ w.T)",): "F.cross_entropy(h @ w.T)",
            ("F.linear_cross_entropy",): "F.linear_cross_entropy",
        },
        "x",
    ),
    "bench-segment": Figure(
        "Exact segmentation, one thread: how many times faster than ruptures",
        ("case", "cwt_ext", "ruptures"),
        "ratio (quartiles)",
        {
            ("rationales, n = 12..40, each",): "cwt_ext, rationales of 12 to 40 units",
            ("n = 200, K = 10",): "cwt_ext, n = 200, 10 chunks",
            ("n = 1000, K = 20",): "cwt_ext, n = 1000, 20 chunks",
            ("n = 4000, K = 40",): "cwt_ext, n = 4000, 40 chunks",
        },
        "x",
        ("ruptures KernelCPD", 1.0),
    ),
    "bench-segment-quality": Figure(
        "Seams of joined GSM8K solutions: error Pk in percent, lower is better",
        ("k is", "method"),
        "Pk %",
        {
            ("given", "even chunks"): "k given: even chunks",
            ("given", "LangChain-like (a line with both neighbours)"): "k given: LangChain-like",
            ("given", "ruptures KernelCPD cosine"): "k given: ruptures",
            ("given", "cwt_ext norm"): "cwt_ext, k given",
            ("chosen", "LangChain-like, 95th percentile"): "k chosen: LangChain-like",
            ("chosen", "cwt_ext norm, penalty auto"): "cwt_ext, k chosen (penalty auto)",
        },
        " %",
    ),
}


def tables(text: str) -> list[list[list[str]]]:
    """Returns the tables of a page in Markdown: rows of cells, the header first."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if len(rows) > 2]


def lengths(figure: Figure, text: str) -> dict[str, float]:
    """Returns the length of each bar, in the order of the figure.

    Raises:
        ValueError: there is not exactly one such table, or it lacks the column, a row or a number.
    """
    width = len(figure.table)
    candidates = [table for table in tables(text) if tuple(table[0][:width]) == figure.table]
    if len(candidates) != 1:
        raise ValueError(f"wanted one table {figure.table}, found {len(candidates)}.")
    header, *rows = candidates[0]
    if figure.column not in header:
        raise ValueError(f"table {figure.table}: wanted a column {figure.column!r}, got {header}.")
    at = header.index(figure.column)
    found = dict([figure.reference] if figure.reference else [])
    for key, name in figure.bars.items():
        cells = [row[at] for row in rows if tuple(row[: len(key)]) == key]
        number = re.match(r"\**([\d.]+)", cells[0]) if len(cells) == 1 else None
        if number is None:
            raise ValueError(
                f"table {figure.table}: wanted one row {key} with a number, got {cells}."
            )
        found[name] = float(number[1])
    return found


WIDTH, LEFT, TOP, STEP, BAR = 800, 268, 52, 32, 20
STYLE = """
    .page { fill: #ffffff; } .strong { fill: #1c2731; font-weight: 600; } .text { fill: #1c2731; }
    .axis { stroke: #8894a0; } .other { fill: #8fb0d3; } .ours { fill: #2f9466; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; } .strong, .text { fill: #e6edf3; } .axis { stroke: #6b7885; }
      .other { fill: #4a6f99; } .ours { fill: #4fbf8b; }
    }
"""


def draw(figure: Figure, text: str) -> str:
    """Returns the SVG of a figure, from the text of the page with its table."""
    bars = lengths(figure, text)
    scale = (WIDTH - LEFT - 90) / max(bars.values())
    height = TOP + STEP * len(bars) + 12
    parts = []
    for i, (name, value) in enumerate(bars.items()):
        y = TOP + STEP * i
        kind = "ours" if name.startswith(figure.ours) else "other"
        end = LEFT + scale * value
        at = f'x="{LEFT - 10}" y="{y + 15}"'
        parts += [
            f'<text class="text" {at} text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{scale * value:.1f}" height="{BAR}"/>',
            f'<text class="text" x="{end + 8:.1f}" y="{y + 15}">{value:g}{figure.unit}</text>',
        ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
            ' font-family="system-ui, -apple-system, Helvetica, Arial, sans-serif"'
            ' font-size="13">',
            f"  <title>{escape(figure.title)}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
            f'  <text class="strong" x="24" y="30">{escape(figure.title)}</text>',
            *(f"  {part}" for part in parts),
            f'  <line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP - 6}" y2="{height - 12}"/>',
            "</svg>\n",
        ]
    )


def main() -> None:
    """Writes every figure."""
    text = SOURCE.read_text(encoding="utf-8")
    for name, figure in FIGURES.items():
        path = ROOT / "docs" / "figures" / f"{name}.svg"
        path.write_text(draw(figure, text), encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
