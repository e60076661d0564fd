"""The judges `forward` and `literal`: may a unit be left out, given what follows it?"""

from collections.abc import Sequence
from typing import Any

from cwt.data.example import Example
from cwt.progress import Progress, quiet
from cwt.skipping.criterion import Decision, SkipCriterion
from cwt.skipping.scoring import (
    Place,
    TokenScores,
    answer_nll,
    answer_nll_if_known,
    answer_value,
    places_of,
    removable_parts,
)
from cwt.skipping.search import (
    Budget,
    Found,
    Search,
    Trial,
    run_searches,
    unsearched,
    with_decisions,
)
from cwt.students.student import Student
from cwt.students.tokenized import TokenizedExample


def find_skips(
    student: Student,
    examples: Sequence[Example],
    criterion: SkipCriterion = SkipCriterion(),  # noqa: B008 - frozen
    batch_size: int = 32,
    progress: Progress = quiet,
) -> tuple[list[Example], list[Decision]]:
    """Returns the examples with the units that the student cannot do without, and why.

    Units that earlier rounds left out stay out.

    Args:
        student: the student that judges.
        examples: with the units that earlier rounds kept.
        criterion: when a unit may be left out.
        batch_size: rows of one forward pass.
        progress: called with the share done and what is being done.

    Returns:
        The examples with their kept_units, and a decision for every middle unit that was there.

    Example:
        >>> import cwt
        >>> examples = cwt.generate_examples("arithmetic", [2], seed=0)[0]
        >>> shorter, decisions = find_skips(cwt.load_student("tiny"), examples)
        >>> [0 in e.kept_units for e in shorter]
        [True, True]
    """
    searches = [_judged(student, criterion, student.tokenize(e)) for e in examples]
    found = run_searches(student, searches, batch_size, progress)
    return with_decisions(examples, found)


def _judged(
    student: Student, criterion: SkipCriterion, tokenized: TokenizedExample
) -> Search[Found]:
    """Asks for the trials of one example, one part after another."""
    decisions: list[tuple[int, Decision]] = []
    base = Trial(tokenized)
    reference = yield base
    budget = Budget(criterion.search_passes, base)
    checked, value = _checked(criterion, reference, tokenized), answer_nll(tokenized, reference)
    tokens = dict(zip(places_of(tokenized), tokenized.written.ids, strict=True))
    left = tokenized.example.kept
    parts = removable_parts(criterion.granularity, tokenized.example) if checked else []
    for n, part in enumerate(parts):
        gone = part & left
        if not gone:
            continue
        if budget.spent_up:
            decisions += [(n, unsearched(student, tokenized, u)) for u in sorted(gone)]
            continue
        trial = _trial(criterion, base, gone, checked)
        trial.part, trial.share = n, n / len(parts)
        scores = yield trial
        budget.take(trial)
        flips = [
            {"token": student.text([tokens[place]]), "unit": place[0], **evidence}
            for place, evidence in _upset(criterion, checked, reference, scores, max(gone)).items()
        ]
        after = answer_nll_if_known(trial.tokenized, scores)
        rise = None if after is None else after - value
        skipped = not flips and rise is not None and rise <= criterion.max_answer_nll_rise
        for u in sorted(gone):
            text = student.text(tokenized.units[u]).strip()
            rounded = None if rise is None else round(rise, 4)
            decision = Decision(tokenized.example.id, u, text, skipped, flips, rounded)
            decisions.append((n, decision))
        if skipped:
            left -= gone
            base = trial if criterion.cumulative else base
    return left, decisions


def _trial(
    criterion: SkipCriterion, base: Trial, gone: frozenset[int], checked: set[Place]
) -> Trial:
    """Returns the trial of a text without some units: it ends with the first token that is upset.

    Asked are the checked tokens after the units, and the answer's value.
    """
    item = base.tokenized.keeping(base.tokenized.example.kept - gone)
    after = max(gone)
    later = frozenset(place for place in checked if place[0] > after)

    def settles(scores: TokenScores) -> bool:
        return any(
            place in later and not _still_predicted(criterion, score)
            for place, score in scores.items()
        )

    return Trial(item, wanted=later.union(answer_value(item)), base=base, settles=settles)


def _checked(
    criterion: SkipCriterion, reference: TokenScores, tokenized: TokenizedExample
) -> set[Place]:
    """Returns the tokens that must still be predicted after a skip.

    For `literal` they are the answer's, at any probability. If the student does not predict the
    answer in the reference pass there are none, and all units stay.
    """
    if criterion.judge == "literal":
        value = answer_value(tokenized)
        return set(value) if all(reference[place][0] for place in value) else set()
    return sure_tokens(criterion, reference)


def sure_tokens(criterion: SkipCriterion, reference: TokenScores) -> set[Place]:
    """Returns the tokens that the student is sure of in a reference pass.

    A token that the whole text has not is none of them: it has no place to be found by.
    """
    return {
        (u, p)
        for (u, p), (right, probability) in reference.items()
        if right
        and probability >= criterion.min_probability
        and (p > 0 or (p == 0 and criterion.check_unit_starts))
    }


def _upset(
    criterion: SkipCriterion,
    checked: set[Place],
    reference: TokenScores,
    scores: TokenScores,
    after: int,
) -> dict[Place, dict[str, Any]]:
    """Returns the checked tokens after a unit that are no longer predicted, with evidence."""
    return {
        (u, p): {
            "p_with": round(reference[u, p][1], 4),
            "p_without": round(scores[u, p][1], 4),
        }
        for u, p in sorted(checked)
        if u > after and (u, p) in scores and not _still_predicted(criterion, scores[u, p])
    }


def _still_predicted(criterion: SkipCriterion, score: tuple[bool, float]) -> bool:
    return score[0] and score[1] >= criterion.min_probability_after
