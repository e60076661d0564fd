"""Ratified rounds: the student that a judge's decisions trained decides every unit again."""

from collections.abc import Sequence

from cwt.data.example import Example
from cwt.progress import Progress, quiet
from cwt.skipping.criterion import Decision, SkipCriterion
from cwt.skipping.scoring import (
    Place,
    Places,
    TokenScores,
    answer_nll,
    nll,
    places_of,
    removable_parts,
    score_tokens,
)
from cwt.students.student import Student
from cwt.students.tokenized import TokenizedExample


def ratify_skips(
    student: Student,
    examples: Sequence[Example],
    criterion: SkipCriterion = SkipCriterion(),  # noqa: B008 - frozen
    batch_size: int = 32,
    progress: Progress = quiet,
) -> tuple[list[Example], list[Decision]]:
    """Returns the examples with the units that the student itself would write, and why.

    A judge sees what follows a unit; a student that writes sees only what came before. Where
    similar units are left out of one example and kept in another, for reasons that the student
    cannot see, it learns to skip them in both. So every unit is decided once more, left to right:
    skip it if the student gives the opening tokens of the next unit a higher probability than the
    unit's own, and leaving it out does not raise the answer's NLL by more than the limit. The same
    number of tokens of both units is compared, starting where they first differ.

    Args:
        student: was trained on the units kept in `examples`.
        examples: with the units that the judge kept.
        criterion: only max_answer_nll_rise, granularity and lookahead_tokens are used.
        batch_size: rows of one forward pass.
        progress: called with the share done and what is being done.

    Returns:
        The examples with their kept_units, and a decision for every middle unit.
    """
    kept = [student.tokenize(e) for e in examples]
    decisions: list[Decision] = []
    scores = score_tokens(student, kept, batch_size)
    parts = [removable_parts(criterion.granularity, e) for e in examples]
    most = max(map(len, parts))
    for n in range(most):
        asked = [i for i in range(len(kept)) if n < len(parts[i])]
        others = [_toggled(kept[i], parts[i][n]) for i in asked]
        passes = score_tokens(student, others, batch_size)
        for i, other, found in zip(asked, others, passes, strict=True):
            here, there = (kept[i], scores[i]), (other, found)
            fuller = len(kept[i].example.kept) > len(other.example.kept)
            written, passed = (here, there) if fuller else (there, here)
            skipped, part, evidence = _decide(criterion, written, passed)
            kept[i], scores[i] = passed if skipped else written
            for u in sorted(part):
                text = student.text(kept[i].units[u]).strip()
                decisions.append(Decision(examples[i].id, u, text, skipped, [], *evidence))
        progress((n + 1) / most, f"part {n + 1}")
    return [e.keeping(x.example.kept) for e, x in zip(examples, kept, strict=True)], decisions


def _toggled(tokenized: TokenizedExample, part: frozenset[int]) -> TokenizedExample:
    """Returns the example without a part if it has it, else with it."""
    kept = tokenized.example.kept
    return tokenized.keeping(kept - part if kept & part else kept | part)


Scored = tuple[TokenizedExample, TokenScores]


def _decide(
    criterion: SkipCriterion, written: Scored, passed: Scored
) -> tuple[bool, frozenset[int], tuple[float, float, float]]:
    """Returns whether a part is skipped, the part, and (answer's rise, write NLL, pass NLL)."""
    part = written[0].example.kept - passed[0].example.kept
    following = min(u for u in passed[0].example.kept if u > max(part))
    opening, next_opening = _openings(
        criterion, _tokens(written[0], min(part)), _tokens(passed[0], following)
    )
    write, go_on = nll(written[1], opening), nll(passed[1], next_opening)
    rise = answer_nll(*passed) - answer_nll(*written)
    skipped = go_on < write and rise <= criterion.max_answer_nll_rise
    return skipped, part, (round(rise, 4), round(write, 4), round(go_on, 4))


Tokens = list[tuple[Place, int]]  # (place, id) of the tokens of a unit


def _tokens(tokenized: TokenizedExample, unit: int) -> Tokens:
    tokens = zip(places_of(tokenized), tokenized.written.ids, strict=True)
    return [(place, token) for place, token in tokens if place[0] == unit]


def _openings(criterion: SkipCriterion, a: Tokens, b: Tokens) -> tuple[Places, Places]:
    """Returns the opening tokens of two units: equally many, from where they first differ."""
    pairs = list(zip(a, b, strict=False))
    start = next((p for p, (x, y) in enumerate(pairs) if x[1] != y[1]), len(pairs) - 1)
    window = pairs[start : start + criterion.lookahead_tokens]
    return [x[0] for x, _ in window], [y[0] for _, y in window]
