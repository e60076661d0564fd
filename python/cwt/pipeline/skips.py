"""Who decides which units of the training examples stay: one function for every kind of row."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from cwt.data.example import Example
from cwt.data.marks import with_skip_marks
from cwt.pipeline.fit import generation_limits
from cwt.pipeline.methods import Method
from cwt.pipeline.workspace import Workspace
from cwt.processes import Shares, from_all
from cwt.progress import Progress
from cwt.skipping.controls import oracle_skips, random_skips
from cwt.skipping.criterion import Decision
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.skipping.rewriting import shortest_correct
from cwt.skipping.rivals import (
    first_units,
    last_units,
    least_perplexity_units,
    least_surprising_tokens,
    least_upset_units,
    lowest_entropy_units,
    matched_counts,
    matched_token_counts,
)
from cwt.students.student import Student

T = TypeVar("T")

OpenStudent = Callable[[], Student]  # opens the student that judges


@dataclass(frozen=True)
class Decided:
    """What a student trains on.

    Attributes:
        examples: the training examples with the units that stay.
        decisions: the evidence, where a student decided.
        rewritten: whether units have other texts than the teacher's.
    """

    examples: list[Example]
    decisions: list[Decision] = field(default_factory=list)
    rewritten: bool = False


def decide_skips(
    ws: Workspace,
    method: Method,
    open_student: OpenStudent,
    examples: Sequence[Example],
    ratify: bool,
    part: float,
    progress: Progress,
) -> Decided:
    """Returns the training examples with the units that stay for a row.

    Args:
        ws: the run.
        method: the row, which says who decides.
        open_student: opens the student that judges; not called where none does.
        examples: with the units that stay for the student before, or for the matched row.
        ratify: whether the student decides again what was decided in the round before.
        part: of the units to go, for a row that takes them away step by step.
        progress: called with the share done and what is being done.
    """
    skip = ws.config.skip
    whole = [e.keeping(None) for e in examples]
    if method.skips in ("judge", "literal"):
        criterion = replace(skip, judge="literal") if method.skips == "literal" else skip
        decide = ratify_skips if ratify else find_skips
        student = open_student()
        return _by_all(examples, lambda some: decide(student, some, criterion, progress=progress))
    if method.skips == "oracle":
        return Decided(oracle_skips(examples))
    if method.skips == "marked":
        return Decided(with_skip_marks(examples), rewritten=True)
    if method.skips == "sampled":
        student, unit = open_student(), ws.config.data.unit
        limit = generation_limits(ws, student, whole).max_new_tokens
        written, _ = shortest_correct(
            student, whole, skip.samples, limit, skip.sample_temperature,
            ws.config.seed, unit, progress=progress,
        )  # fmt: skip
        return Decided(written, rewritten=True)
    if method.skips == "surprisal":
        student = open_student()
        tokens = matched_token_counts(student, examples, skip.matched_share)
        pairs = list(zip(whole, tokens, strict=True))
        left = Shares(pairs).map(
            lambda mine: least_surprising_tokens(student, *_unzip(mine), progress=progress)
        )
        return Decided(left, rewritten=True)
    if method.is_matched:
        counts = matched_counts(examples, skip.matched_share)
        return _matched(ws, method, open_student, whole, counts, part, progress)
    return Decided(list(examples))  # as the student before, or the matched row


def _matched(
    ws: Workspace,
    method: Method,
    open_student: OpenStudent,
    whole: Sequence[Example],
    counts: Sequence[int],
    part: float,
    progress: Progress,
) -> Decided:
    """Returns the examples without so many units each, by the judge of a row."""
    if method.skips == "random":
        return Decided(random_skips(whole, ws.config.seed, counts))
    if method.skips == "schedule":
        return Decided(first_units(whole, [round(part * n) for n in counts]))
    if method.skips == "truncation":
        return Decided(last_units(whole, counts))
    student, pairs = open_student(), list(zip(whole, counts, strict=True))
    rival: Callable[..., tuple[list[Example], list[Decision]]] = lowest_entropy_units
    if method.skips == "perplexity":
        rival = least_perplexity_units
    if method.skips == "upset":
        rival = partial(least_upset_units, criterion=ws.config.skip)
    return _by_all(pairs, lambda mine: rival(student, *_unzip(mine), progress=progress))


def _unzip(pairs: Sequence[tuple[Example, int]]) -> tuple[list[Example], list[int]]:
    return [example for example, _ in pairs], [count for _, count in pairs]


def _by_all(
    items: Sequence[T], decide: Callable[[list[T]], tuple[list[Example], list[Decision]]]
) -> Decided:
    """Lets every process decide on its share; the decisions stand example by example.

    Args:
        items: an example each, or one with more.
        decide: returns the shortened examples and the decisions of some items.
    """
    shares = Shares(items)
    found, mine = decide(shares.mine) if shares.mine else ([], [])
    examples = shares.gather(found)
    place = {e.id: i for i, e in enumerate(examples)}
    decisions = itertools.chain.from_iterable(from_all(mine))
    return Decided(examples, sorted(decisions, key=lambda d: place[d.id]))
