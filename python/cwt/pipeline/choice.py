"""What skip-thinking training (STT) decides by questions: to begin, and what to keep.

It asks validation questions and, where those are few, training questions; test questions decide
nothing.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cwt.data.answers import same_answer
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.evaluation.statistics import most_behind
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
class Answers:
    """What a student answers to the questions that decide.

    Attributes:
        validation: (questions,), 1 where a validation question is answered right, else 0.
        train: the same for the training questions; may be empty.
        generated_tokens: mean per question asked.
    """

    validation: np.ndarray
    train: np.ndarray
    generated_tokens: float


@dataclass(frozen=True)
class Candidate:
    """A student that skip-thinking training may end with.

    Attributes:
        student: its name.
        skips: whether it was trained on shortened rationales.
        accuracy: share of all questions asked that it answers right.
        validation_accuracy: the same of the validation questions alone.
        generated_tokens: mean per question asked.
        risk: how far a round may be behind the students that skip nothing, as far as validation
            questions can exclude it (one-sided, 95 %), a share; None for those, and where the row
            must skip.
        admitted: whether the row may end with it: see `candidates`.
    """

    student: str
    skips: bool
    accuracy: float
    validation_accuracy: float
    generated_tokens: float
    risk: float | None = None
    admitted: bool = False


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


def asked_parts(ws: Workspace, method: Method) -> list[str]:
    """Returns the parts of the data whose questions decide what a row ends with."""
    schedule = method.skips == "schedule"
    return ["validation"] if schedule or not _missing(ws) else ["validation", "train"]


def _missing(ws: Workspace) -> int:
    """Returns how many training questions are asked beside the validation questions, at most."""
    return max(ws.config.skip.choice_questions - len(ws.examples("validation")), 0)


def training_questions(ws: Workspace) -> list[Example]:
    """Returns the training examples whose questions help to choose, drawn with the seed."""
    examples = ws.examples("train")
    number = min(_missing(ws), len(examples))
    chosen = random.Random(f"choice-{ws.config.seed}").sample(range(len(examples)), number)
    return [examples[i] for i in sorted(chosen)]


def candidates(ws: Workspace, method: Method) -> list[Candidate]:
    """Returns the students that a row may end with: its rounds that skip, or none that does.

    Those that skip nothing are `continued` and the parent, where the row may decline. A row that
    follows a schedule admits its last round.
    """
    rounds = [n for n in round_names(method.name, ws.config.skip.rounds) if _skips(ws, n)]
    whole = [CONTINUED, _parent(ws, method)] if method.may_decline else []
    parts, limits = asked_parts(ws, method), ws.config.skip
    answers = {name: _answers(ws, name, parts) for name in [*rounds, *whole]}
    tolerance, max_risk = limits.accuracy_tolerance / 100, limits.max_risk / 100
    found = admitted(answers, whole, tolerance, max_risk)
    if method.skips == "schedule":
        return [replace(c, admitted=c is found[-1]) for c in found]
    return found


def admitted(
    answers: Mapping[str, Answers], whole: Sequence[str], tolerance: float, max_risk: float
) -> list[Candidate]:
    """Returns the students that a row may end with, with those rounds admitted that it may take.

    A round is admitted if it is behind neither `continued` nor the parent, nor another such round,
    and if validation questions exclude that it is far behind. `continued` has trained on the
    training questions for at least as long as a round has, so against it all questions count; the
    parent has not, so against it validation questions alone count.

    Args:
        answers: of every student, by its name.
        whole: those that skip nothing: `continued` and the parent, in this order; none where the
            row must skip. All others are rounds.
        tolerance: how far behind is not behind, a share of the questions.
        max_risk: the risk of a round that is admitted, beyond the tolerance, at most, a share.
    """
    found = {name: _candidate(answers, name, whole) for name in answers}
    allowed = tolerance + 1e-9  # rounding must not decide
    level = [c for c in found.values() if c.skips]
    if whole:
        continued, parent = found[whole[0]], found[whole[-1]]
        level = [
            c
            for c in level
            if c.accuracy >= continued.accuracy - allowed
            and c.validation_accuracy >= parent.validation_accuracy - allowed
            and (c.risk is None or c.risk <= max_risk + allowed)
        ]
    best = max((c.accuracy for c in level), default=0.0)
    may = [c.student for c in level if c.accuracy >= best - allowed]
    return [replace(c, admitted=name in may) for name, c in found.items()]


def _candidate(answers: Mapping[str, Answers], name: str, whole: Sequence[str]) -> Candidate:
    own, skips = answers[name], name not in whole
    others = [answers[other].validation for other in whole if skips]
    return Candidate(
        student=name,
        skips=skips,
        accuracy=float(np.concatenate([own.validation, own.train]).mean()),
        validation_accuracy=float(own.validation.mean()),
        generated_tokens=own.generated_tokens,
        risk=max((most_behind(own.validation, other) for other in others), default=None),
    )


def _parent(ws: Workspace, method: Method) -> str:
    parent = parent_of(method, ws.config)
    assert parent is not None, method
    return parent


def _skips(ws: Workspace, name: str) -> bool:
    """Returns whether a round was decided, trained and evaluated on validation questions."""
    if not ws.skips(name).exists() or not ws.evaluation(name, "validation").exists():
        return False
    return bool(read_json(ws.skips(name))["judge"] != "none")


def _answers(ws: Workspace, student: str, parts: Sequence[str]) -> Answers:
    rows = {part: read_lines(ws.generations(student, part)) for part in parts}
    held_out, trained = (
        np.array([row["correct"] for row in rows.get(part, ())], float)
        for part in ("validation", "train")
    )
    tokens = [row["tokens"] for part in rows.values() for row in part]
    return Answers(held_out, trained, float(np.mean(tokens)))


def best_candidate(found: Sequence[Candidate]) -> Candidate:
    """Returns the candidate that a row ends with.

    It is the round with the fewest tokens of those admitted; where there is none, whichever of
    those that skip nothing is the more accurate on validation questions.
    """
    rounds = [c for c in found if c.admitted]
    if rounds:
        return min(rounds, key=lambda c: (c.generated_tokens, -c.accuracy))
    whole = [c for c in found if not c.skips]
    return max(whole, key=lambda c: (c.validation_accuracy, -c.generated_tokens))


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
    risk = _risk(ws, best, found)
    return f"{method.name} {verdict} ({_questions(ws, method)}): {compared}.{waited}{risk}"


def _questions(ws: Workspace, method: Method) -> str:
    """Returns by which questions candidates are described."""
    if asked_parts(ws, method) == ["validation"]:
        return "validation accuracy and tokens"
    trained, held_out = len(training_questions(ws)), len(ws.examples("validation"))
    return (
        f"accuracy on {held_out} validation and {trained} training questions, in brackets on the "
        "validation questions alone, and tokens"
    )


def _risk(ws: Workspace, best: Candidate, found: Sequence[Candidate]) -> str:
    """Returns how far the chosen round may be behind, or which round was not safe enough."""
    risks = {c.student: 100 * c.risk for c in found if c.risk is not None}
    questions, limits = len(ws.examples("validation")), ws.config.skip
    limit = limits.max_risk + limits.accuracy_tolerance
    if best.student in risks:
        return (
            f" {questions} validation questions exclude that it is more than "
            f"{risks[best.student]:.1f} points behind those that skip nothing (one-sided, 95 %)."
        )
    refused = [
        c for c in found if risks.get(c.student, 0.0) > limit and c.accuracy >= best.accuracy
    ]
    if not refused or best.skips:
        return ""
    nearest = max(refused, key=lambda c: c.accuracy).student
    return (
        f" {questions} validation questions cannot exclude that {nearest} is {risks[nearest]:.1f} "
        f"points behind those that skip nothing; --skip.max-risk allows {limits.max_risk:g}. More "
        f"validation questions tell more; students/{nearest} is kept."
    )


def _described(candidate: Candidate) -> str:
    accuracy = _percent(candidate.accuracy)
    if candidate.accuracy != candidate.validation_accuracy:
        accuracy += f" ({_percent(candidate.validation_accuracy)})"
    return f"{candidate.student} {accuracy} in {candidate.generated_tokens:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
