"""One example in the terminal: its chunks, what each costs the student, what was skipped."""

import numpy as np
from rich.console import Console
from rich.markup import escape

from .chunking import unit_nll
from .errors import UserError
from .files import read_json, read_lines
from .stages import load_training, open_student
from .workspace import Workspace


def show_example(ws: Workspace, index: int, student: str = "") -> None:
    """Prints a training example; units that the last judged round left out are struck through."""
    examples = ws.examples("train")
    if not 0 <= index < len(examples):
        raise UserError(f"inspect: --index must be in 0..{len(examples) - 1}, got {index}.")
    if student and not ws.trained(student):
        raise UserError(f"inspect: there is no student {student!r} in {ws.out / 'students'}.")
    name = student or ("CWT" if ws.trained("CWT") else "")
    model, encoder = open_student(ws, str(ws.student(name)) if name else ws.config.student)
    example, item = examples[index], load_training(ws, encoder)[index]
    (nll,) = unit_nll(model, encoder, [item], 1)
    tokens = np.array([len(unit) for unit in item.units])
    rounds = [f"STT-round-{r}" for r in range(ws.config.rounds, 0, -1)]
    judged = next((r for r in rounds if ws.skips(r).exists()), None)
    keep = set(read_json(ws.skips(judged))["keeps"][index]) if judged else set(range(len(tokens)))
    why: dict[int, str] = {}
    for r in reversed(rounds):
        path = ws.skips(r).with_suffix(".jsonl")
        for row in read_lines(path) if path.exists() else []:
            if row["id"] == example.id:
                why[row["unit"]] = _reason(row)

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"[bold]{escape(example.id)}[/]  {escape(example.question)}")
    console.print(f"loss of {name or ws.config.student}, chunks by {ws.config.chunking}\n")
    for m, (a, b) in enumerate(zip(item.boundaries, item.boundaries[1:], strict=False)):
        cost = nll[a:b].sum() / tokens[a:b].sum()
        console.print(f"[bold]chunk {m}[/]  {cost:.3f} nats a token, {tokens[a:b].sum()} tokens")
        for u in range(a, b):
            kind = f"{example.kinds[u]:8}" if example.kinds else ""
            text = escape(example.units[u].strip())
            mark = "   " if u in keep else "-- "
            shown = text if u in keep else f"[strike dim]{text}[/]"
            console.print(
                f"  {mark}{kind} {nll[u] / tokens[u]:6.3f}  {shown}  [dim]{why.get(u, '')}[/]"
            )
    if judged:
        console.print(f"\n-- left out by {judged} ({ws.config.judge} judge)")


def _reason(row: dict[str, object]) -> str:
    flips = row["flipped"]
    if row["skipped"]:
        return "nothing later depends on it"
    assert isinstance(flips, list)
    first = flips[0]
    token = escape(repr(first["token"]))
    return (
        f"stays: {len(flips)} later tokens change, first {token} "
        f"(p {first['p_with']:.2f} -> {first['p_without']:.2f})"
    )
