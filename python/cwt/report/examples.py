"""Examples unit by unit: their chunks, what each unit costs a student, what was skipped and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UnitView:
    """One unit: what it says, what it costs, and the decision on it.

    Attributes:
        text: its text.
        role: what it is, for generated examples.
        chunk: index of its chunk.
        tokens: its number of tokens.
        nll: its summed negative log-likelihood (NLL), given all units before it, in nats.
        kept: whether it stays in training.
        decision: the last decision on it with its evidence; None where none was made.
    """

    text: str
    role: str | None
    chunk: int
    tokens: int
    nll: float
    kept: bool
    decision: dict[str, Any] | None

    @property
    def nats_per_token(self) -> float:
        """Its mean negative log-likelihood."""
        return self.nll / self.tokens

    def reason(self) -> str:
        """Returns why the unit was kept or skipped, in a line; empty where nothing was decided."""
        if self.decision is None:
            return ""
        if not self.decision.get("searched", True):
            return "not searched: the budget of the search was spent"
        flips, skipped = self.decision["flipped"], self.decision["skipped"]
        write, go_on = self.decision["write_nll"], self.decision["pass_nll"]
        if write is not None and skipped:
            return (
                f"skipped: the student prefers the next sentence ({go_on:.2f} nats) to this one "
                f"({write:.2f} nats)"
            )
        if write is not None and go_on >= write:
            return (
                f"kept: the student prefers this sentence ({write:.2f} nats) to the next one "
                f"({go_on:.2f} nats)"
            )
        if skipped:
            return "skipped: nothing later depends on it"
        if not flips:
            rise = self.decision["answer_rise"]
            return f"kept: without it the answer's NLL rises by {rise:.2f} nats"
        first = flips[0]
        return (
            f"kept: without it {len(flips)} later tokens change, first {first['token']!r} "
            f"(p {first['p_with']:.2f} -> {first['p_without']:.2f})"
        )


@dataclass(frozen=True)
class ExampleView:
    """One training example, unit by unit."""

    id: str
    question: str
    answer: str
    units: list[UnitView]

    def chunks(self) -> list[list[UnitView]]:
        """Returns the units of every chunk."""
        return [
            [unit for unit in self.units if unit.chunk == m]
            for m in range(self.units[-1].chunk + 1)
        ]


def from_rows(rows: Sequence[dict[str, Any]]) -> list[ExampleView]:
    """Returns the views that views.json holds."""
    return [
        ExampleView(**{**row, "units": [UnitView(**unit) for unit in row["units"]]}) for row in rows
    ]


def print_example(view: ExampleView, losses_of: str, chunking: str, round_shown: str = "") -> None:
    """Prints an example; units that the shown round left out are struck through."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"[bold]{escape(view.id)}[/]  {escape(view.question)}")
    console.print(f"loss of {losses_of}, chunks by {chunking}\n")
    for m, units in enumerate(view.chunks()):
        tokens = sum(unit.tokens for unit in units)
        cost = sum(unit.nll for unit in units) / tokens
        console.print(f"[bold]chunk {m}[/]  {cost:.3f} nats a token, {tokens} tokens")
        for unit in units:
            role = f"{unit.role:8}" if unit.role else ""
            text = escape(unit.text)
            mark = "   " if unit.kept else "-- "
            shown = text if unit.kept else f"[strike dim]{text}[/]"
            console.print(
                f"  {mark}{role} {unit.nats_per_token:6.3f}  {shown}  "
                f"[dim]{escape(unit.reason())}[/]"
            )
    if round_shown:
        console.print(f"\n-- left out in {round_shown}")
