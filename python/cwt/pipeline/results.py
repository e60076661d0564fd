"""The figures and costs of every row of the table: report.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cwt.errors import UserError
from cwt.files import read_json, write_json, write_text
from cwt.pipeline.methods import METHODS, Method, lineage, trained_for
from cwt.pipeline.workspace import Workspace
from cwt.report.table import as_markdown


@dataclass(frozen=True)
class Row:
    """One row of the table.

    The cost of a row starts from the given student, so it includes the parent. Fields that begin
    with `total_` count all that was trained to get the row, also rounds of skip-thinking training
    (STT) that were not chosen. The same names without `total_` count the chosen student's path:
    the parent and the rounds up to the chosen one.

    Attributes:
        name: the method.
        seed: the seed of the run.
        accuracy: share of test questions answered right, in [0, 1].
        accuracy_interval: its 95 % interval over the test questions (Wilson).
        generated_tokens: mean per question, the end-of-sequence token included.
        tokens_per_second: throughput of generation in batches.
        seconds_per_answer: wall time of generation in batches, divided by the questions.
        latency_seconds: median wall time of one answer alone; None where it was not measured.
        well_formed: share of answers that state an answer and end by themselves.
        truncated: share of answers cut off by eval.max_new_tokens.
        skipped_share: share of middle units left out in training; None where none could be.
        removal_rates: the same by role of unit, for generated examples.
        optimizer_steps: steps on the chosen student's path.
        loss_tokens: tokens that bore loss on that path.
        processed_tokens: tokens that the model read on that path.
        train_seconds: wall time of training on that path.
        skip_seconds: wall time of deciding what to skip, in all rounds.
        total_optimizer_steps: steps of all that was trained for the row.
        total_loss_tokens: loss tokens of all that was trained for the row.
        total_processed_tokens: processed tokens of all that was trained for the row.
        total_train_seconds: wall time of all that was trained for the row.
        choice: of a row in rounds, why it ends with that student; else None.
        student: folder of the chosen student, relative to the folder of the run.
    """

    name: str
    seed: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    generated_tokens: float
    tokens_per_second: float
    seconds_per_answer: float
    latency_seconds: float | None
    well_formed: float
    truncated: float
    skipped_share: float | None
    removal_rates: dict[str, float] | None
    optimizer_steps: int
    loss_tokens: int
    processed_tokens: int
    train_seconds: float
    skip_seconds: float
    total_optimizer_steps: int
    total_loss_tokens: int
    total_processed_tokens: int
    total_train_seconds: float
    choice: str | None
    student: str


_COSTS = ("optimizer_steps", "loss_tokens", "processed_tokens", "train_seconds")


def write_report(ws: Workspace) -> dict[str, Any]:
    """Writes report.json and report.md from the files of the run; returns what report.json holds.

    Raises:
        UserError: no method of the run was evaluated yet.
    """
    rows = [_row(ws, m) for m in METHODS.values() if ws.method(m.name).exists()]
    if not rows:
        raise UserError(f"{ws.out} holds no evaluated method yet; run `cwt run` first.")
    chunks = ws.chunks_record
    report = {
        "config": asdict(ws.config),
        "data": read_json(ws.data_record),
        "chunking": read_json(chunks)["chunkings"] if chunks.exists() else {},
        "methods": [asdict(row) for row in rows],
        "labels": {row.name: METHODS[row.name].label for row in rows},
        "diagnostics": read_diagnostics(ws),
    }
    write_json(ws.report(".json"), report)
    write_text(ws.report(".md"), as_markdown(report))
    return report


def read_diagnostics(ws: Workspace) -> list[dict[str, Any]]:
    """Returns what `cwt diagnose` found for each student, without the figures of single units."""
    return [
        {"name": path.stem} | {k: v for k, v in read_json(path).items() if k != "units"}
        for path in sorted(ws.diagnostics("x").parent.glob("*.json"))
    ]


def _row(ws: Workspace, method: Method) -> Row:
    student = ws.student_of(method.name)
    score = read_json(ws.evaluation(student))
    path = lineage(method, ws.config, student)
    everything = [s for s in trained_for(method, ws.config, student) if ws.trained(s)]
    skips = [read_json(ws.skips(s)) for s in everything if ws.skips(s).exists()]
    judged = read_json(ws.skips(student)) if ws.skips(student).exists() else None
    if judged and judged["judge"] == "none":
        judged = None
    latency, choice = ws.latency(student), ws.choice(method.name)
    totals = {f"total_{name}": value for name, value in _costs(ws, everything).items()}
    return Row(
        name=method.name,
        seed=ws.config.seed,
        accuracy=score["accuracy"],
        accuracy_interval=tuple(score["accuracy_interval"]),
        generated_tokens=score["generated_tokens"],
        tokens_per_second=score["tokens_per_second"],
        seconds_per_answer=score["seconds_per_answer"],
        latency_seconds=read_json(latency)["seconds"] if latency.exists() else None,
        well_formed=score["well_formed"],
        truncated=score["truncated"],
        skipped_share=judged["skipped_share"] if judged else None,
        removal_rates=(judged["removal_rates"] or None) if judged else None,
        skip_seconds=round(sum(s["seconds"] for s in skips), 1),
        choice=read_json(choice)["why"] if choice.exists() else None,
        student=str(ws.student(student).relative_to(ws.out)),
        **_costs(ws, path),
        **totals,
    )


def _costs(ws: Workspace, students: Sequence[str]) -> dict[str, Any]:
    """Returns the summed cost of training some students."""
    spent = [read_json(ws.student(s) / "train.json") for s in students]
    return {name: round(sum(s[name] for s in spent), 1) for name in _COSTS}
