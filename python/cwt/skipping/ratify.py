"""Ratified rounds: the student that a judge's decisions trained decides every unit again."""

from collections.abc import Sequence
from functools import partial

from cwt.data.example import Example
from cwt.progress import Progress, quiet
from cwt.skipping.criterion import Decision, SkipCriterion
from cwt.skipping.scoring import (
    Place,
    Places,
    TokenScores,
    answer_nll_if_known,
    answer_value,
    nll,
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
    searches = [_ratified(student, criterion, student.tokenize(e)) for e in examples]
    return with_decisions(examples, run_searches(student, searches, batch_size, progress))


def _ratified(
    student: Student, criterion: SkipCriterion, tokenized: TokenizedExample
) -> Search[Found]:
    """Asks for the trials of one example, one part after another."""
    decisions: list[tuple[int, Decision]] = []
    kept = Trial(tokenized, wanted=frozenset(answer_value(tokenized)))
    scores = yield kept
    budget = Budget(criterion.search_passes, kept)
    parts = removable_parts(criterion.granularity, tokenized.example)
    for n, part in enumerate(parts):
        now = kept.tokenized
        if budget.spent_up:
            decisions += [(n, unsearched(student, now, u)) for u in sorted(part)]
            continue
        other = _toggled(now, part)
        fuller = len(now.example.kept) > len(other.example.kept)
        written, passed = (now, other) if fuller else (other, now)
        toggled, opening, next_opening = _openings(criterion, written, passed)
        here, there = (opening, next_opening) if fuller else (next_opening, opening)
        if missing := frozenset(here) - scores.keys():
            again = Trial(now, n, missing, base=kept, share=n / len(parts))
            scores = scores | (yield again)
            budget.take(again)
        trial = Trial(other, n, frozenset(there).union(answer_value(other)), base=kept)
        trial.share = n / len(parts)
        if fuller:
            trial.settles = partial(_not_likelier, next_opening, nll(scores, opening))
        found = yield trial
        budget.take(trial)
        without = found if fuller else scores
        write, go_on = nll(scores if fuller else found, opening), nll(without, next_opening)
        rise = _rise(written, scores if fuller else found, passed, without)
        skipped = go_on < write and rise is not None and rise <= criterion.max_answer_nll_rise
        if skipped == fuller:
            kept, scores = trial, found
        evidence = (None if rise is None else round(rise, 4), round(write, 4), round(go_on, 4))
        for u in sorted(toggled):
            text = student.text(tokenized.units[u]).strip()
            decision = Decision(tokenized.example.id, u, text, skipped, [], *evidence)
            decisions.append((n, decision))
    return kept.tokenized.example.kept, decisions


def _toggled(tokenized: TokenizedExample, part: frozenset[int]) -> TokenizedExample:
    """Returns the example without a part if it has it, else with it."""
    kept = tokenized.example.kept
    return tokenized.keeping(kept - part if kept & part else kept | part)


def _not_likelier(opening: Places, than: float, scores: TokenScores) -> bool:
    """Returns whether an opening is known to be no likelier than one of this NLL, in nats."""
    return all(place in scores for place in opening) and nll(scores, opening) >= than


def _rise(
    written: TokenizedExample,
    written_scores: TokenScores,
    passed: TokenizedExample,
    passed_scores: TokenScores,
) -> float | None:
    """Returns how much the answer's NLL rises without a part; None where it was not read."""
    before = answer_nll_if_known(written, written_scores)
    after = answer_nll_if_known(passed, passed_scores)
    return None if before is None or after is None else after - before


Tokens = list[tuple[Place, int]]  # (place, id) of the tokens of a unit


def _tokens(tokenized: TokenizedExample, unit: int) -> Tokens:
    tokens = zip(places_of(tokenized), tokenized.written.ids, strict=True)
    return [(place, token) for place, token in tokens if place[0] == unit]


def _openings(
    criterion: SkipCriterion, written: TokenizedExample, passed: TokenizedExample
) -> tuple[frozenset[int], Places, Places]:
    """Returns the part that one text lacks, and the opening tokens of it and of what follows it.

    Of both equally many, from where they first differ.
    """
    part = written.example.kept - passed.example.kept
    following = min(u for u in passed.example.kept if u > max(part))
    pairs = list(zip(_tokens(written, min(part)), _tokens(passed, following), strict=False))
    start = next((p for p, (x, y) in enumerate(pairs) if x[1] != y[1]), len(pairs) - 1)
    window = pairs[start : start + criterion.lookahead_tokens]
    return part, [x[0] for x, _ in window], [y[0] for _, y in window]
