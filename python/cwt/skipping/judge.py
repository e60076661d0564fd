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
    answer_value,
    places_of,
    removable_parts,
    score_tokens,
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
    start = [student.tokenize(e) for e in examples]
    kept = list(start)
    decisions: list[Decision] = []
    reference = score_tokens(student, start, batch_size)
    checked = [_checked(criterion, r, x) for r, x in zip(reference, start, strict=True)]
    values = [answer_nll(x, r) for x, r in zip(start, reference, strict=True)]
    parts = [removable_parts(criterion.granularity, e) for e in examples]
    most = max(map(len, parts))
    for n in range(most):
        asked = [
            (i, kept[i].example.kept & parts[i][n])
            for i in range(len(examples))
            if n < len(parts[i]) and kept[i].example.kept & parts[i][n] and checked[i]
        ]
        base = kept if criterion.cumulative else start
        without = [base[i].keeping(base[i].example.kept - gone) for i, gone in asked]
        after = score_tokens(student, without, batch_size)
        for (i, gone), left, scores in zip(asked, without, after, strict=True):
            upset = _upset(criterion, checked[i], reference[i], scores, max(gone))
            tokens = dict(zip(places_of(start[i]), start[i].written.ids, strict=True))
            flips = [
                {"token": student.text([tokens[place]]), "unit": place[0], **evidence}
                for place, evidence in upset.items()
            ]
            rise = answer_nll(left, scores) - values[i]
            skipped = not flips and rise <= criterion.max_answer_nll_rise
            for u in sorted(gone):
                text = student.text(start[i].units[u]).strip()
                decision = Decision(examples[i].id, u, text, skipped, flips, round(rise, 4))
                decisions.append(decision)
            if skipped:
                kept[i] = kept[i].keeping(kept[i].example.kept - gone)
        progress((n + 1) / most, f"part {n + 1}")
    return [e.keeping(x.example.kept) for e, x in zip(examples, kept, strict=True)], decisions


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
        if u > after
        and (u, p) in scores
        and (not scores[u, p][0] or scores[u, p][1] < criterion.min_probability_after)
    }
