"""Examples to look at: their chunks, what each unit costs a student, what was skipped and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from .chunking import unit_nll
from .errors import UserError
from .files import read_json, read_lines
from .stages import load_training, open_student
from .workspace import Workspace


@dataclass(frozen=True)
class UnitView:
    """One unit: what it says, what it costs, and the decision on it, None where none was made."""

    text: str
    kind: str | None
    chunk: int
    tokens: int
    nll: float
    kept: bool
    decision: dict[str, Any] | None

    @property
    def nats_per_token(self) -> float:
        return self.nll / self.tokens

    def reason(self) -> str:
        """Returns why the unit stays or goes, in a line; empty where nothing was decided."""
        if self.decision is None:
            return ""
        flips, skipped = self.decision["flipped"], self.decision["skipped"]
        write, go_on = self.decision["write_nll"], self.decision["pass_nll"]
        if write is not None and (skipped or go_on >= write):
            return (
                f"{'goes' if skipped else 'stays'}: beginning it costs the student {write:.2f} "
                f"nats, going on without it {go_on:.2f}"
            )
        if skipped:
            return "nothing later depends on it"
        if not flips:
            return f"stays: the answer's NLL rises by {self.decision['answer_rise']:.2f} nats"
        first = flips[0]
        return (
            f"stays: {len(flips)} later tokens change, first {first['token']!r} "
            f"(p {first['p_with']:.2f} -> {first['p_without']:.2f})"
        )


@dataclass(frozen=True)
class ExampleView:
    """One training example, unit by unit."""

    id: str
    question: str
    answer: str
    units: tuple[UnitView, ...]

    def chunks(self) -> list[list[UnitView]]:
        return [
            [unit for unit in self.units if unit.chunk == m]
            for m in range(self.units[-1].chunk + 1)
        ]


def last_round(ws: Workspace) -> str | None:
    """Returns the last round of STT that was decided, None before the first."""
    return next((r for r in reversed(ws.rounds()) if ws.skips(r).exists()), None)


def view_examples(
    ws: Workspace, indices: Sequence[int], student: str = ""
) -> tuple[list[ExampleView], str]:
    """Returns some training examples, and the student whose losses they show.

    Args:
        ws: the run.
        indices: of the training examples.
        student: of the run; by default the parent of STT or, before that is trained, the given one.
    """
    name = student or (ws.config.parent if ws.trained(ws.config.parent) else "")
    model, encoder = open_student(ws, str(ws.student(name)) if name else ws.config.student)
    examples, items = ws.examples("train"), load_training(ws, encoder)
    nlls = unit_nll(model, encoder, [items[i] for i in indices], 16)
    judged = last_round(ws)
    keeps = read_json(ws.skips(judged))["keeps"] if judged else None
    decisions: dict[tuple[str, int], dict[str, Any]] = {}
    for name_of_round in ws.rounds():
        path = ws.skips(name_of_round).with_suffix(".jsonl")
        for row in read_lines(path) if path.exists() else []:
            decisions[row["id"], row["unit"]] = row
    views = []
    for i, nll in zip(indices, nlls, strict=True):
        example, of_unit = examples[i], items[i].chunk_of_units()
        units = tuple(
            UnitView(
                text=text.strip(),
                kind=example.kinds[u] if example.kinds else None,
                chunk=of_unit[u],
                tokens=len(items[i].units[u]),
                nll=float(nll[u]),
                kept=keeps is None or u in keeps[i],
                decision=decisions.get((example.id, u)),
            )
            for u, text in enumerate(example.units)
        )
        views.append(ExampleView(example.id, example.question, example.answer, units))
    return views, name or ws.config.student


def show_example(ws: Workspace, index: int, student: str = "") -> None:
    """Prints a training example; units that the last judged round left out are struck through."""
    count = len(ws.examples("train"))
    if not 0 <= index < count:
        raise UserError(f"inspect: --index must be in 0..{count - 1}, got {index}.")
    if student and not ws.trained(student):
        raise UserError(f"inspect: there is no student {student!r} in {ws.out / 'students'}.")
    (view,), name = view_examples(ws, [index], student)
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"[bold]{escape(view.id)}[/]  {escape(view.question)}")
    console.print(f"loss of {name}, chunks by {ws.config.chunking}\n")
    for m, units in enumerate(view.chunks()):
        tokens = sum(unit.tokens for unit in units)
        cost = sum(unit.nll for unit in units) / tokens
        console.print(f"[bold]chunk {m}[/]  {cost:.3f} nats a token, {tokens} tokens")
        for unit in units:
            kind = f"{unit.kind:8}" if unit.kind else ""
            text = escape(unit.text)
            mark = "   " if unit.kept else "-- "
            shown = text if unit.kept else f"[strike dim]{text}[/]"
            console.print(
                f"  {mark}{kind} {unit.nats_per_token:6.3f}  {shown}  "
                f"[dim]{escape(unit.reason())}[/]"
            )
    if judged := last_round(ws):
        ratified = ", ratified" if read_json(ws.skips(judged))["judge"] == "ratify" else ""
        console.print(f"\n-- left out by {judged} ({ws.config.judge} judge{ratified})")
