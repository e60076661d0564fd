"""Rival judges: each leaves out a given number of units of every example, so that they compare.

They rank the middle units; the student that judges is the scorer wherever the source has another
model. docs/methods.md names the sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from cwt.data.example import Example
from cwt.progress import Progress, quiet
from cwt.skipping.criterion import Decision, SkipCriterion
from cwt.skipping.judge import sure_tokens
from cwt.skipping.scoring import (
    Places,
    TokenScores,
    answer_nll,
    nll,
    score_tokens,
    unit_entropies,
)
from cwt.students.student import Student
from cwt.students.tokenized import TokenizedExample

Decided = tuple[list[Example], list[Decision]]


def matched_counts(examples: Sequence[Example], share: float = 0.0) -> list[int]:
    """Returns how many units a judge leaves out of each example.

    Args:
        examples: with the units that the matched row keeps.
        share: of all middle units, in [0, 1]; the counts add up to it, to the nearest unit. 0: as
            many as the matched row leaves out.
    """
    if not share:
        return [len(e.units) - len(e.kept) for e in examples]
    return _shared_out([len(e.middle_units) for e in examples], share)


def matched_token_counts(
    student: Student, examples: Sequence[Example], share: float = 0.0
) -> list[int]:
    """Returns the same in tokens: those of the units left out, or a share of the middle units'."""
    tokenized = [student.tokenize(e) for e in examples]
    if not share:
        return [
            sum(len(unit) for u, unit in enumerate(x.units) if u not in x.example.kept)
            for x in tokenized
        ]
    middle = [sum(len(x.units[u]) for u in x.example.middle_units) for x in tokenized]
    return _shared_out(middle, share)


def _shared_out(sizes: Sequence[int], share: float) -> list[int]:
    """Returns whole numbers, at most the sizes, whose running sums follow those of the share."""
    counts, total, given = [], 0, 0
    for size in sizes:
        total += size
        counts.append(min(size, max(0, round(share * total) - given)))
        given += counts[-1]
    return counts


def first_units(examples: Sequence[Example], counts: Sequence[int]) -> list[Example]:
    """Returns the examples without their first middle units."""
    pairs = zip(examples, counts, strict=True)
    return [_without(e, list(e.middle_units)[:n]) for e, n in pairs]


def last_units(examples: Sequence[Example], counts: Sequence[int]) -> list[Example]:
    """Returns the examples without their last middle units: truncation before the answer."""
    pairs = zip(examples, counts, strict=True)
    return [_without(e, list(reversed(e.middle_units))[:n]) for e, n in pairs]


def _without(example: Example, gone: Sequence[int]) -> Example:
    return example.keeping(frozenset(range(len(example.units))) - frozenset(gone))


def _whole(student: Student, examples: Sequence[Example]) -> list[TokenizedExample]:
    return [student.tokenize(e.keeping(None)) for e in examples]


def lowest_entropy_units(
    student: Student,
    examples: Sequence[Example],
    counts: Sequence[int],
    batch_size: int = 32,
    progress: Progress = quiet,
) -> Decided:
    """Returns the examples without the units of the lowest step entropy, and why.

    A unit's step entropy is the sum over its tokens of the entropy of the student's prediction,
    given the question and all units before, in nats.
    """
    whole = _whole(student, examples)
    found, decisions = [], []
    for x, n, entropies in zip(
        whole, counts, unit_entropies(student, whole, batch_size), strict=True
    ):
        ranked = sorted(x.example.middle_units, key=lambda u: (entropies[u], u))
        gone = set(ranked[:n])
        for u in x.example.middle_units:
            decisions.append(_decision(student, x, u, u in gone, entropies[u]))
        found.append(_without(x.example, ranked[:n]))
    progress(1.0, "entropies")
    return found, decisions


Cost = Callable[[int, TokenizedExample, TokenScores], float]  # of example i, without some units


def least_perplexity_units(
    student: Student,
    examples: Sequence[Example],
    counts: Sequence[int],
    batch_size: int = 32,
    progress: Progress = quiet,
) -> Decided:
    """Returns the examples without the units whose absence raises the answer's NLL least, and why.

    One unit at a time goes, and what is left is scored again.
    """
    whole = _whole(student, examples)
    return _greedy(
        student, whole, counts, lambda _, x, scores: answer_nll(x, scores), batch_size, progress
    )


def least_upset_units(
    student: Student,
    examples: Sequence[Example],
    counts: Sequence[int],
    criterion: SkipCriterion = SkipCriterion(),  # noqa: B008 - frozen
    batch_size: int = 32,
    progress: Progress = quiet,
) -> Decided:
    """Returns the examples without the units that `forward` misses least, and why.

    The tokens that the student is sure of are those of the judge `forward`. A unit's cost is the
    rise of their summed NLL, over those that are left; one unit at a time goes.
    """
    whole = _whole(student, examples)
    reference = score_tokens(student, whole, batch_size)
    sure = [sorted(sure_tokens(criterion, scores)) for scores in reference]

    def cost(i: int, _: TokenizedExample, scores: TokenScores) -> float:
        left: Places = [place for place in sure[i] if place in scores]
        return nll(scores, left) - nll(reference[i], left)

    return _greedy(student, whole, counts, cost, batch_size, progress)


def _greedy(
    student: Student,
    whole: Sequence[TokenizedExample],
    counts: Sequence[int],
    cost: Cost,
    batch_size: int,
    progress: Progress,
) -> Decided:
    """Leaves out the unit of the lowest cost, scores what is left, and so on; the first of equals.

    The decisions stand in the order in which units went; those that stay follow.
    """
    kept = list(whole)
    decisions: list[Decision] = []
    last: dict[tuple[int, int], float] = {}
    most = max(counts, default=0)
    for n in range(most):
        asked = [
            (i, u)
            for i, x in enumerate(kept)
            if n < counts[i]
            for u in x.example.middle_units
            if u in x.example.kept
        ]
        rows = [kept[i].keeping(kept[i].example.kept - {u}) for i, u in asked]
        found = score_tokens(student, rows, batch_size)
        scored = zip(asked, rows, found, strict=True)
        costs = {at: cost(at[0], x, scores) for at, x, scores in scored}
        last |= costs
        for i in dict.fromkeys(i for i, _ in asked):
            _, u = min((at for at in costs if at[0] == i), key=lambda at: (costs[at], at[1]))
            kept[i] = kept[i].keeping(kept[i].example.kept - {u})
            decisions.append(_decision(student, whole[i], u, True, costs[i, u]))
        progress((n + 1) / most, f"unit {n + 1}")
    for i, x in enumerate(kept):
        for u in x.example.middle_units:
            if u in x.example.kept:
                decisions.append(_decision(student, x, u, False, last.get((i, u))))
    return [x.example for x in kept], decisions


def _decision(
    student: Student, x: TokenizedExample, u: int, skipped: bool, score: float | None
) -> Decision:
    text = student.text(x.units[u]).strip()
    rounded = None if score is None else round(score, 4)
    return Decision(x.example.id, u, text, skipped, [], None, score=rounded)


def least_surprising_tokens(
    student: Student,
    examples: Sequence[Example],
    counts: Sequence[int],
    batch_size: int = 32,
    progress: Progress = quiet,
) -> list[Example]:
    """Returns the examples without the tokens of middle units that surprise the student least.

    A token's surprisal is its NLL given the question and everything before it. What is left is no
    longer sentences. Units without a token left are no longer kept.

    Args:
        student: the scorer.
        examples: what they keep is not used.
        counts: how many tokens go, for each example.
        batch_size: rows of one forward pass.
        progress: called with the share done and what is being done.
    """
    whole = _whole(student, examples)
    found = []
    for x, n, scores in zip(whole, counts, score_tokens(student, whole, batch_size), strict=True):
        middle = [place for place in scores if place[0] in x.example.middle_units]
        gone = set(sorted(middle, key=lambda place: (-scores[place][1], place))[:n])
        left = [
            [token for p, token in enumerate(unit) if (u, p) not in gone]
            for u, unit in enumerate(x.units)
        ]
        texts = [
            x.example.units[u] if len(ids) == len(x.units[u]) else student.text(ids)
            for u, ids in enumerate(left)
        ]
        kept = frozenset(u for u, ids in enumerate(left) if ids)
        found.append(replace(x.example, units=tuple(texts), kept_units=kept))
    progress(1.0, "surprisals")
    return found
