"""The table of a run: report.json for machines, report.md and the terminal for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .errors import UserError
from .files import read_json, write_json, write_text
from .methods import CWT_VARIANTS, METHODS
from .workspace import Workspace

COLUMNS = (
    ("method", "method"),
    ("accuracy", "accuracy %"),
    ("interval", "95 % interval"),
    ("generated_tokens", "tokens written"),
    ("seconds_per_answer", "ms an answer"),
    ("well_formed", "well-formed %"),
    ("truncated", "truncated %"),
    ("skipped_share", "skipped %"),
    ("optimizer_steps", "steps"),
    ("loss_tokens", "loss tokens"),
    ("processed_tokens", "processed tokens"),
    ("train_seconds", "train s"),
)


@dataclass(frozen=True)
class Row:
    """One method. Costs are those of the whole way from the given student, the parent included.

    Attributes:
        accuracy: share of test questions answered right, in [0, 1].
        accuracy_interval: 95 %, Wilson, over the test questions.
        generated_tokens: mean per question, with the end-of-sequence token.
        seconds_per_answer: wall time of batched generation over the questions.
        skipped_share: share of middle units left out in training; None where nothing was judged.
        removal_rates: the same by kind of unit, for generated examples.
    """

    name: str
    seed: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    generated_tokens: float
    tokens_per_second: float
    seconds_per_answer: float
    well_formed: float
    truncated: float
    skipped_share: float | None
    removal_rates: dict[str, float] | None
    optimizer_steps: int
    loss_tokens: int
    processed_tokens: int
    train_seconds: float
    skip_seconds: float
    student: str


def make_report(ws: Workspace) -> dict[str, Any]:
    """Writes report.json and report.md from what the run holds, and returns the former."""
    rows = [_row(ws, name) for name in METHODS if (ws.out / "methods" / f"{name}.json").exists()]
    if not rows:
        raise UserError(f"{ws.out} holds no evaluated method yet; run `cwt run` first.")
    rows.sort(key=lambda row: ORDER.index(row.name))
    chunks = ws.out / "chunks" / "chunks.json"
    report = {
        "config": asdict(ws.config),
        "data": read_json(ws.out / "data" / "data.json"),
        "chunking": read_json(chunks) if chunks.exists() else {},
        "methods": [asdict(row) for row in rows],
        "diagnostics": read_diagnostics(ws),
    }
    write_json(ws.out / "report.json", report)
    write_text(ws.out / "report.md", as_markdown(report))
    return report


ORDER = (
    "answer-only", "FTT", "FTT-small-batch", "FTT-sentence-dropout", "CWT", *CWT_VARIANTS,
    "CWT-sentence-dropout", "continued", "STT", "STT-as-judged", "literal-skips", "random-skips",
    "oracle-skips",
)  # fmt: skip


def _row(ws: Workspace, name: str) -> Row:
    student = read_json(ws.out / "methods" / f"{name}.json")["student"]
    score = read_json(ws.evaluation(student))
    spent = [read_json(ws.student(s) / "train.json") for s in _way(ws, name, student)]
    skips = [read_json(ws.skips(s)) for s in _way(ws, name, student) if ws.skips(s).exists()]
    judged = skips[-1] if skips and skips[-1]["judge"] != "none" else None
    return Row(
        name=name,
        seed=ws.config.seed,
        accuracy=score["accuracy"],
        accuracy_interval=tuple(score["accuracy_interval"]),
        generated_tokens=score["generated_tokens"],
        tokens_per_second=score["tokens_per_second"],
        seconds_per_answer=score["seconds_per_answer"],
        well_formed=score["well_formed"],
        truncated=score["truncated"],
        skipped_share=judged["skipped_share"] if judged else None,
        removal_rates=(judged["removal_rates"] or None) if judged else None,
        optimizer_steps=sum(s["optimizer_steps"] for s in spent),
        loss_tokens=sum(s["loss_tokens"] for s in spent),
        processed_tokens=sum(s["processed_tokens"] for s in spent),
        train_seconds=round(sum(s["train_seconds"] for s in spent), 1),
        skip_seconds=round(sum(s["seconds"] for s in skips), 1),
        student=str(ws.student(student).relative_to(ws.out)),
    )


def _way(ws: Workspace, name: str, student: str) -> list[str]:
    """Returns the students trained one after the other on the way to this one."""
    if METHODS[name][0] is None:
        return [student]
    if not name.startswith("STT"):
        return [ws.config.parent, student]
    rounds = ws.rounds(name)
    return [ws.config.parent, *rounds[: rounds.index(student) + 1]]


def cells(row: dict[str, Any]) -> list[str]:
    """Returns one line of the table as text, in the order of COLUMNS."""
    low, high = row["accuracy_interval"]
    skipped = row["skipped_share"]
    return [
        row["name"],
        f"{100 * row['accuracy']:.1f}",
        f"{100 * low:.1f}-{100 * high:.1f}",
        f"{row['generated_tokens']:.1f}",
        f"{1000 * row['seconds_per_answer']:.1f}",
        f"{100 * row['well_formed']:.1f}",
        f"{100 * row['truncated']:.1f}",
        "-" if skipped is None else f"{100 * skipped:.1f}",
        str(row["optimizer_steps"]),
        str(row["loss_tokens"]),
        str(row["processed_tokens"]),
        f"{row['train_seconds']:.0f}",
    ]


def as_markdown(report: dict[str, Any]) -> str:
    """Returns the report as a Markdown page."""
    titles = [title for _, title in COLUMNS]
    lines = [
        f"# {report['config']['data'] or report['config']['task']}, student "
        f"{report['config']['student']}, seed {report['config']['seed']}",
        "",
        *data_lines(report),
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(cells(row)) + " |" for row in report["methods"]),
        "",
        *notes(report),
    ]
    if report["diagnostics"]:
        lines += ["", *diagnostics_table(report["diagnostics"])]
    return "\n".join(lines) + "\n"


def read_diagnostics(ws: Workspace) -> list[dict[str, Any]]:
    """Returns what `cwt diagnose` found of each student, but for the single units."""
    return [
        {"name": path.stem} | {k: v for k, v in read_json(path).items() if k != "units"}
        for path in sorted((ws.out / "diagnostics").glob("*.json"))
    ]


DIAGNOSTICS = (
    "student", "gradient share over token share, core / other",
    "over-smoothing core / other (control)", "top eigenvalue train / test",
    "rise under noise train / test",
)  # fmt: skip


def diagnostics_cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns one line of DIAGNOSTICS: a student, its runs averaged; no kinds, no core / other."""

    def kinds(key: str, core: bool) -> float:
        found = [
            (v[key], v["units"])
            for run in runs
            for kind, v in run["by_kind"].items()
            if (kind == "core") == core
        ]
        return float(sum(v * n for v, n in found) / sum(n for _, n in found))

    def mean(part: str, key: str) -> float:
        return float(sum(run[part][key] for run in runs) / len(runs))

    share = smoothing = "-"
    if all(run.get("by_kind") for run in runs):
        share = f"{kinds('per_token', True):.2f} / {kinds('per_token', False):.2f}"
        smoothing = (
            f"{kinds('smoothing', True):.2f} ({kinds('smoothing_control', True):.2f}) / "
            f"{kinds('smoothing', False):.2f} ({kinds('smoothing_control', False):.2f})"
        )
    top, noise = "top_eigenvalue", "rise_under_noise"
    return [
        runs[0]["name"],
        share,
        smoothing,
        f"{mean('train', top):.0f} / {mean('test', top):.0f}",
        f"{mean('train', noise):.3f} / {mean('test', noise):.3f}",
    ]


def diagnostics_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the diagnostics of some runs as lines of Markdown, one a student; none without."""
    if not found:
        return []
    lines = ["| " + " | ".join(DIAGNOSTICS) + " |", "|" + "---|" * len(DIAGNOSTICS)]
    for name in dict.fromkeys(run["name"] for run in found):
        line = diagnostics_cells([run for run in found if run["name"] == name])
        lines.append("| " + " | ".join(line) + " |")
    return lines


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
        costs = ", ".join(f"{name} {found['cost']:.3f}" for name, found in chunking.items())
        lines.append(f"Chunk costs ({report['config']['objective']}), mean of the sums: {costs}.")
    return lines


def notes(report: dict[str, Any]) -> list[str]:
    """Returns what a reader of the table must know."""
    lines = [
        "Budgets count from the given student; STT, continued and the skip controls include "
        f"their parent, {report['config']['parent']}. Intervals are over the test questions of "
        "this one seed."
    ]
    for row in report["methods"]:
        if row["removal_rates"]:
            rates = ", ".join(f"{100 * v:.0f} % {k}" for k, v in row["removal_rates"].items())
            lines.append(f"{row['name']} left out: {rates}.")
    return lines
