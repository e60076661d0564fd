"""The rows of the table: what each trains, from which student, and which of them a run asks for."""

from collections.abc import Callable

from .errors import UserError
from .files import write_json
from .stages import (
    best_round,
    evaluate_student,
    find_skips,
    quiet,
    run_stt,
    train_base,
    train_on_skips,
)
from .train import Progress
from .workspace import Workspace

Stage = Callable[[Workspace, Progress], str]  # returns the name of the student to evaluate


def _base(method: str) -> Stage:
    def stage(ws: Workspace, progress: Progress) -> str:
        train_base(ws, method, progress)
        return method

    return stage


def _control(name: str, judge: str, like_stt: bool = False) -> Stage:
    def stage(ws: Workspace, progress: Progress) -> str:
        start = ws.config.parent
        keeps = find_skips(ws, name, judge, start, best_round(ws) if like_stt else None)
        train_on_skips(ws, name, start, keeps, ws.config.rounds, progress)
        return name

    return stage


def _stt(row: str) -> Stage:
    def stage(ws: Workspace, progress: Progress) -> str:
        run_stt(ws, row, progress)
        return best_round(ws, row)

    return stage


# CWT with other chunks or another schedule than configured.
CWT_VARIANTS = ("CWT-sbc", "CWT-sbc-exact", "CWT-dp", "CWT-by-index", "CWT-adaptive")
VARIANTS = (*CWT_VARIANTS, "STT-as-judged")  # rows only where they are asked for

PARENT = "parent"  # in METHODS: what config.parent names

# The rows of the table: what must be there before, and what is done.
METHODS: dict[str, tuple[str | None, Stage]] = {
    "CWT": (None, _base("CWT")),
    "answer-only": (None, _base("answer-only")),
    "FTT": (None, _base("FTT")),
    "FTT-small-batch": (None, _base("FTT-small-batch")),
    "FTT-sentence-dropout": (None, _base("FTT-sentence-dropout")),
    "CWT-sentence-dropout": (None, _base("CWT-sentence-dropout")),
    "STT": (PARENT, _stt("STT")),
    "STT-as-judged": (PARENT, _stt("STT-as-judged")),
    "continued": (PARENT, _control("continued", "none")),
    "literal-skips": (PARENT, _control("literal-skips", "literal")),
    "oracle-skips": (PARENT, _control("oracle-skips", "oracle")),
    "random-skips": ("STT", _control("random-skips", "random", like_stt=True)),
    **{name: (None, _base(name)) for name in CWT_VARIANTS},
}


def run_method(ws: Workspace, name: str, progress: Progress = quiet) -> None:
    """Trains one row of the table and evaluates it on the test questions."""

    def training(share: float, text: str) -> None:
        progress(0.9 * share, text)

    def evaluation(share: float, text: str) -> None:
        progress(0.9 + 0.09 * share, text)

    student = METHODS[name][1](ws, training)
    evaluate_student(ws, student, "test", evaluation)
    write_json(ws.out / "methods" / f"{name}.json", {"name": name, "student": student})


def needed(ws: Workspace, name: str) -> str | None:
    """Returns the row that must be there before this one."""
    before = METHODS[name][0]
    if before != PARENT:
        return before
    parent = ws.config.parent
    if parent not in METHODS or METHODS[parent][0] or parent == "answer-only":
        known = ", ".join(m for m, (of, _) in METHODS.items() if not of and m != "answer-only")
        raise UserError(f"parent: wanted one of {known}, got {parent!r}.")
    return parent


def selected_methods(ws: Workspace) -> list[str]:
    """Returns the rows of the table that the configuration asks for, in the table's order."""
    possible = [m for m in METHODS if m != "oracle-skips" or not ws.config.data]
    if ws.config.methods == "all":
        return [m for m in possible if m not in VARIANTS]
    asked = [name.strip() for name in ws.config.methods.split(",") if name.strip()]
    for name in asked:
        if name not in METHODS:
            raise UserError(f"methods: wanted some of {', '.join(METHODS)}, got {name!r}.")
        if name not in possible:
            raise UserError(f"methods: {name} needs generated data, whose core steps are labelled.")
    need = list(asked)
    for name in need:
        before = needed(ws, name)
        if before and before not in need:
            need.append(before)
    return [name for name in METHODS if name in need]
