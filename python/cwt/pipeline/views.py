"""Examples unit by unit, for people: what each unit costs a student, what was skipped and why."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cwt.errors import UserError
from cwt.files import read_json, read_lines, write_json
from cwt.pipeline.fit import open_student
from cwt.pipeline.methods import METHODS, lineage, round_names
from cwt.pipeline.workspace import Workspace
from cwt.report.examples import ExampleView, UnitView
from cwt.students.memory import shape_of
from cwt.students.tokenized import whole_sequence
from cwt.training.chunking import unit_nll

SHOWN = 60  # examples of the report


def decided_rounds(ws: Workspace) -> list[str]:
    """Returns the rounds of STT up to the chosen one; while none is chosen, all rounds so far."""
    if ws.method("STT").exists():
        rounds = lineage(METHODS["STT"], ws.config, ws.student_of("STT"))[1:]
    else:
        rounds = round_names("STT", ws.config.skip.rounds)
    return [name for name in rounds if ws.skips(name).exists()]


def write_views(ws: Workspace) -> dict[str, Any]:
    """Writes views.json, the first training examples unit by unit; returns its contents.

    The views are made again when another student or another round is to be shown.
    """
    losses_of = ws.config.train.parent if ws.trained(ws.config.train.parent) else ""
    rounds = decided_rounds(ws)
    wanted = {"losses_of": losses_of or ws.config.student, "rounds": rounds}
    if ws.views.exists():
        views = dict(read_json(ws.views))
        if {key: views[key] for key in wanted} == wanted:
            return views
    indices = range(min(SHOWN, len(ws.examples("train"))))
    examples = [asdict(view) for view in view_examples(ws, indices, losses_of)]
    views = {**wanted, "examples": examples}
    write_json(ws.views, views)
    return views


def view_examples(ws: Workspace, indices: Sequence[int], losses_of: str = "") -> list[ExampleView]:
    """Returns some training examples, unit by unit; those longer than the student are left out.

    Args:
        ws: the run.
        indices: which training examples.
        losses_of: the student whose losses are shown, by default the given one.

    Raises:
        UserError: no such example, or no such student.
    """
    whole = ws.training_examples()
    for i in indices:
        if not 0 <= i < len(whole):
            raise UserError(f"inspect: --index must be in 0..{len(whole) - 1}, got {i}.")
    if losses_of and not ws.trained(losses_of):
        raise UserError(f"inspect: there is no student {losses_of!r} in {ws.out / 'students'}.")
    student = open_student(ws, losses_of)
    rows = {i: student.tokenize(whole[i]) for i in indices}
    positions = shape_of(student.model).positions
    lengths = {i: len(whole_sequence(x).ids) for i, x in rows.items()}
    indices = [i for i in indices if not positions or lengths[i] <= positions]
    if not indices:
        return []
    tokenized = [rows[i] for i in indices]
    nlls = unit_nll(student, tokenized, 16)
    rounds = decided_rounds(ws)
    shortened = ws.with_skips(whole, rounds[-1]) if rounds else whole
    decisions: dict[tuple[str, int], dict[str, Any]] = {}
    for name in rounds:
        decisions |= {(row["id"], row["unit"]): row for row in read_lines(ws.decisions(name))}
    views = []
    for i, x, nll in zip(indices, tokenized, nlls, strict=True):
        example, of_unit = shortened[i], shortened[i].chunk_of_units()
        units = [
            UnitView(
                text=text.strip(),
                role=example.roles[u] if example.roles else None,
                chunk=of_unit[u],
                tokens=len(x.units[u]),
                nll=float(nll[u]),
                kept=u in example.kept,
                decision=decisions.get((example.id, u)),
            )
            for u, text in enumerate(example.units)
        ]
        views.append(ExampleView(example.id, example.question, example.answer, units))
    return views
