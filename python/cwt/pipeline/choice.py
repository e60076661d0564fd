"""What skip-thinking training (STT) decides on validation questions: to begin, and what to keep.

Test questions decide nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cwt.data.answers import same_answer
from cwt.errors import UserError
from cwt.evaluation.statistics import paired_difference
from cwt.files import read_json, read_lines, write_json
from cwt.pipeline.methods import CONTINUED, Method, parent_of, round_names
from cwt.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Readiness:
    """Whether a student has learned enough for its judgement to mean something.

    Attributes:
        student: its name.
        ready: whether its skill reaches skip.ready_skill, or that is 0.
        accuracy: share of validation questions that it answers right.
        chance: share that the most frequent answer of the training examples gets right.
        skill: (accuracy - chance) / (1 - chance): 0 is chance, 1 is all right.
    """

    student: str
    ready: bool
    accuracy: float
    chance: float
    skill: float


@dataclass(frozen=True)
class Candidate:
    """A student that skip-thinking training may end with.

    Attributes:
        student: its name.
        skips: whether it was trained on shortened rationales.
        accuracy: share of validation questions that it answers right.
        generated_tokens: mean per validation question.
        behind: 95 % interval of the best candidate's accuracy minus its own, paired by question.
        admitted: whether no candidate is more accurate by more than skip.accuracy_tolerance. A row
            that follows a schedule admits its last round alone.
    """

    student: str
    skips: bool
    accuracy: float
    generated_tokens: float
    behind: tuple[float, float]
    admitted: bool


def readiness(ws: Workspace, student: str) -> Readiness:
    """Returns whether skipping may begin with a student, by its answers to validation questions."""
    accuracy = read_json(ws.evaluation(student, "validation"))["accuracy"]
    chance = chance_accuracy(ws)
    skill = (accuracy - chance) / (1 - chance) if chance < 1 else 0.0
    limit = ws.config.skip.ready_skill
    return Readiness(student, limit == 0 or skill >= limit, accuracy, chance, skill)


def chance_accuracy(ws: Workspace) -> float:
    """Returns the share of validation questions that the most frequent training answer gets."""
    ((answer, _),) = Counter(e.answer for e in ws.examples("train")).most_common(1)
    questions = ws.examples("validation")
    return sum(same_answer(answer, e.answer) for e in questions) / len(questions)


def candidates(ws: Workspace, method: Method) -> list[Candidate]:
    """Returns the students that a row may end with: its rounds that skip, or none that does.

    Those that skip nothing are `continued` and the parent.
    """
    rounds = [n for n in round_names(method.name, ws.config.skip.rounds) if _skips(ws, n)]
    names = [*rounds, CONTINUED, _parent(ws, method)] if method.may_decline else rounds
    scores = {name: read_json(ws.evaluation(name, "validation")) for name in names}
    marks = {name: _marks(ws, name) for name in names}
    best = min(names, key=lambda n: (-scores[n]["accuracy"], scores[n]["generated_tokens"]))
    # Shares of questions: rounding must not decide.
    least = scores[best]["accuracy"] - ws.config.skip.accuracy_tolerance / 100 - 1e-9
    found = []
    for name, score in scores.items():
        behind = paired_difference([marks[best]], [marks[name]]).interval
        accuracy, tokens = score["accuracy"], score["generated_tokens"]
        admitted = name == names[-1] if method.skips == "schedule" else accuracy >= least
        found.append(Candidate(name, name in rounds, accuracy, tokens, behind, admitted))
    return found


def _parent(ws: Workspace, method: Method) -> str:
    parent = parent_of(method, ws.config)
    assert parent is not None, method
    return parent


def _skips(ws: Workspace, name: str) -> bool:
    """Returns whether a round was decided, trained and evaluated on validation questions."""
    if not ws.skips(name).exists() or not ws.evaluation(name, "validation").exists():
        return False
    return bool(read_json(ws.skips(name))["judge"] != "none")


def _marks(ws: Workspace, student: str) -> np.ndarray:
    """Returns which validation questions a student answers right, (questions,) float64."""
    rows = read_lines(ws.generations(student, "validation"))
    return np.array([row["correct"] for row in rows], dtype=float)


def best_candidate(found: Sequence[Candidate]) -> Candidate:
    """Returns the candidate that a row ends with.

    It is the round with the fewest tokens of those admitted; where there is none, the most accurate
    candidate.
    """
    rounds = [c for c in found if c.admitted and c.skips]
    if rounds:
        return min(rounds, key=lambda c: (c.generated_tokens, -c.accuracy))
    return max(found, key=lambda c: (c.accuracy, -c.generated_tokens))


def chosen_student(ws: Workspace, method: Method) -> str:
    """Returns the student that a row in rounds ended with.

    Raises:
        UserError: the row is not trained yet.
    """
    if not ws.choice(method.name).exists():
        raise not_trained(ws, method)
    return str(read_json(ws.choice(method.name))["student"])


def not_trained(ws: Workspace, method: Method) -> UserError:
    """Returns the error that says that a row of a run must be trained first."""
    return UserError(
        f"{ws.out} holds no {method.name} yet; run `cwt train --method {method.name} "
        f"--out {ws.out}` first."
    )


def write_choice(ws: Workspace, method: Method) -> str:
    """Writes choices/<row>.json, what was chosen among what and why; returns the student."""
    found = candidates(ws, method)
    best = best_candidate(found)
    checked = [readiness(ws, name) for name in _checked(ws, method)]
    record: dict[str, Any] = {
        "student": best.student,
        "why": _reason(ws, method, found, best, checked),
        "readiness": [asdict(r) for r in checked],
        "candidates": [asdict(c) for c in found],
    }
    write_json(ws.choice(method.name), record)
    return best.student


def _checked(ws: Workspace, method: Method) -> list[str]:
    """Returns the students whose readiness was asked for, in order."""
    if not method.may_decline:
        return []
    rounds = round_names(method.name, ws.config.skip.rounds)
    waited = [
        n for n in rounds if ws.skips(n).exists() and read_json(ws.skips(n))["judge"] == "none"
    ]
    return [_parent(ws, method), *waited]


def _reason(
    ws: Workspace,
    method: Method,
    found: Sequence[Candidate],
    best: Candidate,
    checked: Sequence[Readiness],
) -> str:
    """Returns why a row ends with a candidate, in a sentence or two."""
    if checked and not checked[-1].ready:
        last = checked[-1]
        asked = last.chance + ws.config.skip.ready_skill * (1 - last.chance)
        return (
            f"{method.name} chose not to skip: {last.student} answers {_percent(last.accuracy)} of "
            f"the validation questions right, fewer than the {_percent(asked)} at which skipping "
            f"begins (skip.ready_skill {ws.config.skip.ready_skill:g} above the "
            f"{_percent(last.chance)} of the most frequent answer). It ends with {best.student}."
        )
    others = ", ".join(_described(c) for c in found if c is not best)
    compared = f"{_described(best)}; {others}" if others else _described(best)
    verdict = "skips" if best.skips else "chose not to skip"
    waited = f" It began after {len(checked) - 1} rounds of waiting." if len(checked) > 1 else ""
    risk = _risk(ws, best, [c for c in found if not c.skips]) if best.skips else ""
    return f"{method.name} {verdict} (validation accuracy and tokens): {compared}.{waited}{risk}"


def _risk(ws: Workspace, best: Candidate, whole: Sequence[Candidate]) -> str:
    """Returns how far a round may be behind those that skip nothing, as far as is known."""
    if not whole:
        return ""
    other = best_candidate(whole).student
    marks = _marks(ws, other)
    _, most = paired_difference([marks], [_marks(ws, best.student)]).interval
    if most <= 0:
        return ""
    return (
        f" {len(marks)} questions cannot exclude that it answers up to {100 * most:.1f} points "
        f"fewer right than {other} (95 % interval); more validation questions tell more."
    )


def _described(candidate: Candidate) -> str:
    accuracy = _percent(candidate.accuracy)
    return f"{candidate.student} {accuracy} in {candidate.generated_tokens:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
