"""The table of a run: for a terminal, and as a Markdown page."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Cells = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: its head.
        cell: the text of a row in it.
        compared: whether it is among those that people compare first.
    """

    title: str
    cell: Cells
    compared: bool = True


def _number(key: str, form: str = "{:.0f}", scale: float = 1.0) -> Cells:
    def cell(row: dict[str, Any]) -> str:
        value = row[key]
        return "-" if value is None else form.format(scale * value)

    return cell


def _interval(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * low:.1f}-{100 * high:.1f}"


COLUMNS = (
    Column("method", lambda row: str(row["name"])),
    Column("accuracy %", _number("accuracy", "{:.1f}", 100)),
    Column("95 % interval", _interval),
    Column("tokens written", _number("generated_tokens", "{:.1f}")),
    Column("ms one answer alone", _number("latency_seconds", "{:.0f}", 1000)),
    Column("skipped %", _number("skipped_share", "{:.1f}", 100)),
    Column("loss tokens", _number("total_loss_tokens", "{:,.0f}")),
    Column("processed tokens", _number("total_processed_tokens", "{:,.0f}")),
    Column("train s", _number("total_train_seconds")),
    Column("steps of the chosen student", _number("optimizer_steps", "{:,.0f}"), False),
    Column("its loss tokens", _number("loss_tokens", "{:,.0f}"), False),
    Column("its processed tokens", _number("processed_tokens", "{:,.0f}"), False),
    Column("ms an answer in batches", _number("seconds_per_answer", "{:.1f}", 1000), False),
    Column("well-formed %", _number("well_formed", "{:.1f}", 100), False),
    Column("truncated %", _number("truncated", "{:.1f}", 100), False),
)
COMPARED = tuple(column for column in COLUMNS if column.compared)
REST = (COLUMNS[0], *(column for column in COLUMNS if not column.compared))


def cells(row: dict[str, Any], columns: Sequence[Column] = COMPARED) -> list[str]:
    """Returns one line of the table as text."""
    return [column.cell(row) for column in columns]


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    from rich import box
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=10_000, color_system=None, legacy_windows=False)
    console.print(_rich_table(titles, lines, box=box.MARKDOWN))
    return [line.strip() for line in file.getvalue().splitlines() if line.strip()]


def print_table(report: dict[str, Any], title: str) -> None:
    """Prints the columns that people compare, and what a reader of them must know."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    for line in data_lines(report):
        console.print(line, highlight=False)
    lines = [cells(row) for row in report["methods"]]
    titles = [column.title for column in COMPARED]
    console.print(_rich_table(titles, lines, title=title, title_justify="left"))
    for line in notes(report):
        console.print(line, highlight=False)


def _rich_table(titles: Sequence[str], lines: Sequence[Sequence[str]], **options: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(**options)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


ABBREVIATIONS = {
    "FTT": "full-thinking training",
    "CWT": "chunk-wise training",
    "STT": "skip-thinking training",
    "AC": "average chunking: chunks of equally many sentences",
    "SBC": "search-based chunking: boundaries move as long as the student's loss falls",
    "DP": "dynamic programming: the most coherent chunks",
}


def compared_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows that the headline speaks of.

    They are skip-thinking training and the row that it goes on from; without either of them the
    most accurate row, of equally accurate ones that with the fewest tokens.
    """
    rows = {row["name"]: row for row in report["methods"]}
    pair = [rows.get("STT"), rows.get(report["config"]["train"]["parent"])]
    found = [row for row in pair if row is not None]
    if len(found) == 2:
        return found
    return [max(report["methods"], key=lambda r: (r["accuracy"], -r["generated_tokens"]))]


def headline(report: dict[str, Any]) -> str:
    """Returns who wins, by how much, in how many tokens, in one sentence.

    Compares skip-thinking training with the row that it goes on from; without either of them it
    names the most accurate row.
    """
    first, *parents = compared_rows(report)
    share, tokens = f"{100 * first['accuracy']:.1f} %", f"{first['generated_tokens']:.0f} tokens"
    if not parents:
        return (
            f"{_spelled(first['name'])} answers best: {share} of the test questions right, in "
            f"{tokens} an answer."
        )
    parent = parents[0]
    points = 100 * (first["accuracy"] - parent["accuracy"])
    ahead = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
    saved = 1 - first["generated_tokens"] / max(parent["generated_tokens"], 1e-9)
    return (
        f"{_spelled(first['name'])} answers {share} of the test questions right in {tokens} an "
        f"answer: {'level with' if abs(points) < 0.05 else ahead} "
        f"{_spelled(parent['name'], False)}, which it goes on from, in {abs(100 * saved):.0f} % "
        f"{'fewer' if saved >= 0 else 'more'} tokens."
    )


def _spelled(name: str, starts: bool = True) -> str:
    """Returns the name of a row with its abbreviation spelled out before it."""
    long = ABBREVIATIONS.get(name.split("-")[0])
    if long is None:
        return name
    return f"{long[0].upper() if starts else long[0]}{long[1:]} ({name})"


def as_markdown(report: dict[str, Any]) -> str:
    """Returns the report as a Markdown page."""
    lines = [f"# {title(report)}", "", headline(report), "", *data_lines(report), ""]
    for columns in (COMPARED, REST):
        titles = [column.title for column in columns]
        lines += markdown_table(titles, [cells(row, columns) for row in report["methods"]])
        lines.append("")
    lines += notes(report)
    if report["diagnostics"]:
        lines += ["", *diagnostics_table(report["diagnostics"])]
    return "\n".join(lines) + "\n"


def title(report: dict[str, Any]) -> str:
    """Returns what a run was about, in a line."""
    config = report["config"]
    source = config["data"]["file"] or config["data"]["task"]
    return f"{source}, student {config['student']}, seed {config['seed']}"


DIAGNOSTICS = (
    "student",
    "gradient share over token share, core / other",
    "over-smoothing core / other (control)",
    "top eigenvalue train / test",
    "rise under noise train / test",
)


def diagnostics_cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns one line of DIAGNOSTICS: a student, its runs averaged; no roles, no core / other."""
    share = smoothing = "-"
    if all(run.get("by_role") for run in runs):
        core, other = (_by_role(runs, core) for core in (True, False))
        share = f"{core['per_token']:.2f} / {other['per_token']:.2f}"
        smoothing = (
            f"{core['smoothing']:.2f} ({core['smoothing_control']:.2f}) / "
            f"{other['smoothing']:.2f} ({other['smoothing_control']:.2f})"
        )

    def mean(part: str, key: str) -> float:
        return float(sum(run[part][key] for run in runs) / len(runs))

    top, noise = "top_eigenvalue", "rise_under_noise"
    return [
        runs[0]["name"],
        share,
        smoothing,
        f"{mean('train', top):.0f} / {mean('test', top):.0f}",
        f"{mean('train', noise):.3f} / {mean('test', noise):.3f}",
    ]


def _by_role(runs: Sequence[dict[str, Any]], core: bool) -> dict[str, float]:
    """Returns the figures of the core units of some runs, or of all others, a mean over units."""
    found = [
        row for run in runs for role, row in run["by_role"].items() if (role == "core") == core
    ]
    units = sum(row["units"] for row in found)
    return {
        key: sum(row[key] * row["units"] for row in found) / units
        for key in ("per_token", "smoothing", "smoothing_control")
    }


def diagnostics_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the diagnostics of some runs as lines of Markdown, one a student; none without."""
    if not found:
        return []
    names = dict.fromkeys(run["name"] for run in found)
    lines = [diagnostics_cells([run for run in found if run["name"] == name]) for name in names]
    return markdown_table(DIAGNOSTICS, lines)


def data_lines(report: dict[str, Any]) -> list[str]:
    """Returns what was read, and how the chunkings compare."""
    data = report["data"]
    dropped = ", ".join(f"{n} {why}" for why, n in data["dropped"].items()) or "none"
    lines = [
        f"{data['train']} training examples, {data['validation']} validation and {data['test']} "
        f"test questions; rows left out: {dropped}."
    ]
    chunking = report["chunking"]
    if chunking:
        costs = ", ".join(
            f"{name} {found['cost']:.3f}" for name, found in chunking.items() if "cost" in found
        )
        objective = report["config"]["chunk"]["objective"]
        if costs:
            lines.append(f"Chunk costs ({objective}), mean of the sums: {costs}.")
    return lines


def notes(report: dict[str, Any]) -> list[str]:
    """Returns what a reader of the table must know."""
    lines = [
        "Costs count all that was trained for a row, from the given student on: STT, continued and "
        f"the skip controls include their parent, {report['config']['train']['parent']}; STT also "
        "the rounds that were not chosen, and continued. Intervals are over the test questions "
        "of this one seed."
    ]
    for row in report["methods"]:
        if row["choice"]:
            lines.append(row["choice"])
        if row["removal_rates"]:
            rates = ", ".join(f"{100 * v:.0f} % {k}" for k, v in row["removal_rates"].items())
            lines.append(f"{row['name']} left out: {rates}.")
    return lines
