"""The probability that a student gives to every token of the units that stay, in batches."""

import itertools
import math
import re
from collections.abc import Sequence

from cwt.data.example import Example
from cwt.skipping.criterion import Granularity
from cwt.students.student import Student, iterate_passes
from cwt.students.tokenized import TokenizedExample, whole_sequence

Place = tuple[int, int]  # (unit, place in the unit, as in students.tokenized.Written)
Places = list[Place]
TokenScores = dict[Place, tuple[bool, float]]  # -> (is the arg-max, p)


def score_tokens(
    student: Student, examples: Sequence[TokenizedExample], batch_size: int
) -> list[TokenScores]:
    """Returns for each example and token that stays: is it the arg-max, and its probability."""
    results: list[TokenScores] = [{} for _ in examples]
    rows = [whole_sequence(x) for x in examples]
    for part, _, loss in iterate_passes(student, rows, batch_size, student.token_loss):
        found = loss.rows
        assert found is not None
        tokens = zip((found.correct > 0).tolist(), (-found.nll).exp().tolist(), strict=True)
        for i in part:  # of one row after another
            places = places_of(examples[i])
            results[i] = dict(zip(places, itertools.islice(tokens, len(places)), strict=True))
    return results


def unit_entropies(
    student: Student, examples: Sequence[TokenizedExample], batch_size: int
) -> list[list[float]]:
    """Returns for each example and unit the summed entropy of the predictions of its tokens, nats.

    All units of the examples must stay.
    """
    results: list[list[float]] = [[] for _ in examples]
    rows = [whole_sequence(x) for x in examples]
    for part, _, loss in iterate_passes(student, rows, batch_size, student.token_loss):
        found = loss.rows
        assert found is not None
        entropies = iter(found.entropy.tolist())
        for i in part:  # of one row after another
            results[i] = [sum(itertools.islice(entropies, len(unit))) for unit in examples[i].units]
    return results


def nll(scores: TokenScores, places: Places) -> float:
    """Returns the summed negative log-likelihood of the tokens at some places, in nats."""
    return -sum(math.log(max(scores[place][1], 1e-30)) for place in places)


def places_of(tokenized: TokenizedExample) -> Places:
    """Returns the place of every token that stays."""
    return list(zip(tokenized.written.units, tokenized.written.places, strict=True))


def answer_value(tokenized: TokenizedExample) -> Places:
    """Returns the places of the answer's value: in the last unit, after "The answer is"."""
    last = len(tokenized.units) - 1
    marker = re.search(r"answer (?:is|should be)\b:?", tokenized.example.units[last], re.IGNORECASE)
    begin = marker.end() if marker else 0
    starts = tokenized.written.starts
    places = enumerate(places_of(tokenized)[:-1])  # without the token that ends the sequence
    return [place for i, place in places if place[0] == last and starts[i] >= begin]


def answer_nll(tokenized: TokenizedExample, scores: TokenScores) -> float:
    """Returns the negative log-likelihood of the answer's value, in nats."""
    return nll(scores, answer_value(tokenized))


def answer_nll_if_known(tokenized: TokenizedExample, scores: TokenScores) -> float | None:
    """Returns the same; None where the value was not read to its end."""
    known = all(place in scores for place in answer_value(tokenized))
    return answer_nll(tokenized, scores) if known else None


def removable_parts(granularity: Granularity, example: Example) -> list[frozenset[int]]:
    """Returns the groups of units that may be left out together, in order."""
    middle = frozenset(example.middle_units)
    if granularity == "unit":
        return [frozenset({u}) for u in sorted(middle)]
    spans = itertools.pairwise(example.boundaries or (0, len(example.units)))
    return [part for a, b in spans if (part := frozenset(range(a, b)) & middle)]
