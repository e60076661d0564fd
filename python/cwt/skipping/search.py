"""Runs searches, each of which asks for one trial after another, for many examples at once.

A search is a generator: it yields what it asks of the student and is sent the answer. Short rows
are read whole. Long ones are read in pieces: what a trial begins with in common with the text
before it is not read again, and reading ends as soon as the search knows enough.
"""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch

from cwt.data.example import Example
from cwt.errors import UserError
from cwt.progress import Progress
from cwt.skipping.criterion import Decision
from cwt.skipping.scoring import Place, TokenScores, places_of, score_tokens
from cwt.students.memory import cache_tokens, shape_of
from cwt.students.prefix_cache import Reading, cannot_share, read, reading_after
from cwt.students.student import Student, group_by_tokens
from cwt.students.tokenized import TokenizedExample

SHARED_FROM = 512  # tokens of a row from which on it is read in pieces
_FIRST_PIECE, _LARGEST_PIECE = 32, 512  # tokens
_HELD_TOKENS = 8192  # padded tokens of the rows in memory, where the student has no pass_tokens


@dataclass(eq=False)
class Trial:
    """What a search asks of the student: the probabilities of some tokens of one text.

    Attributes:
        tokenized: the example with the units that stay in this text.
        part: the search's own count of what it decides; short rows of one part are read together.
        wanted: the tokens asked about, where they are in the text; None: all.
        base: an earlier trial, whose text has most in common with this one.
        settles: tells from the scores so far whether the others are not needed; None: all are.
        share: of the search that is done, in [0, 1].
        spent: tokens that were read for it.
    """

    tokenized: TokenizedExample
    part: int = -1
    wanted: frozenset[Place] | None = None
    base: "Trial | None" = None
    settles: Callable[[TokenScores], bool] | None = None
    share: float = 0.0
    spent: int = 0
    memory: Reading | None = field(default=None, repr=False)  # of the tokens that were read

    @property
    def row(self) -> list[int]:
        """The ids of prompt and text."""
        return [*self.tokenized.prompt, *self.tokenized.written.ids]

    @property
    def asked(self) -> list[tuple[int, Place]]:
        """The tokens asked about, in order: where in the row each is, and its place."""
        places = enumerate(places_of(self.tokenized), len(self.tokenized.prompt))
        return [(at, p) for at, p in places if self.wanted is None or p in self.wanted]


class Budget:
    """The tokens that the search of one example may read.

    Args:
        passes: so many times those of its first trial; 0: no limit.
        first: which has been read.
    """

    def __init__(self, passes: float, first: Trial) -> None:
        self.left = passes * len(first.row) if passes else math.inf
        self.take(first)

    def take(self, trial: Trial) -> None:
        """Counts a trial."""
        self.left -= trial.spent

    @property
    def spent_up(self) -> bool:
        """Whether no further trial may be read."""
        return self.left <= 0


def search_cost(items: Sequence[TokenizedExample]) -> dict[str, int]:
    """Returns what judging every middle unit of some examples takes, at most.

    It is what a search reads that gives up no unit and never knows enough before the end.

    Args:
        items: whole examples in tokens.

    Returns:
        trials: passes that each leave out one unit. tokens: read by them and by the pass before.
        whole_tokens: the same if each read its whole text. row_tokens: of one pass over all.
    """
    cost = dict.fromkeys(("trials", "tokens", "whole_tokens", "row_tokens"), 0)
    for x in items:
        sizes = [len(unit) for unit in x.units]
        row, middle = len(x.prompt) + sum(sizes), list(x.example.middle_units)
        later = list(itertools.accumulate(reversed(sizes)))[::-1]  # of a unit and all after it
        whole = sum(row - sizes[u] for u in middle)
        shared = sum(later[u + 1] for u in middle) if row >= SHARED_FROM else whole
        cost["trials"] += len(middle)
        cost["tokens"] += row + shared
        cost["whole_tokens"] += row + whole
        cost["row_tokens"] += row
    return cost


Found = tuple[frozenset[int], list[tuple[int, Decision]]]  # what stays; decisions with their part


def with_decisions(
    examples: Sequence[Example], found: Sequence[Found]
) -> tuple[list[Example], list[Decision]]:
    """Returns the examples with what stays of them, and all decisions, the first parts first."""
    numbered = [(n, i, d) for i, (_, made) in enumerate(found) for n, d in made]
    decisions = [d for _, _, d in sorted(numbered, key=lambda of: of[:2])]
    return [e.keeping(kept) for e, (kept, _) in zip(examples, found, strict=True)], decisions


def unsearched(student: Student, tokenized: TokenizedExample, unit: int) -> Decision:
    """Returns the decision on a unit that the budget did not reach: it stays as it is."""
    example, text = tokenized.example, student.text(tokenized.units[unit]).strip()
    return Decision(example.id, unit, text, unit not in example.kept, [], None, searched=False)


Result = TypeVar("Result")
Search = Generator[Trial, TokenScores, Result]


def run_searches(
    student: Student,
    searches: Sequence[Search[Result]],
    batch_size: int,
    progress: Progress,
) -> list[Result]:
    """Returns the results of some searches.

    Args:
        student: is asked.
        searches: of one example each, which ask at least once; the first trial is the whole text.
        batch_size: rows of one forward pass, where the student has no pass_tokens.
        progress: called with the share done and what is being done.
    """
    student.model.eval()
    running = _Running(searches, progress)
    lengths = [len(running.waiting[i].row) for i in range(len(searches))]
    long = [i for i, n in enumerate(lengths) if n >= SHARED_FROM]
    if long:
        longest = running.waiting[max(long, key=lambda i: lengths[i])]
        if reason := cannot_share(student, longest.row):
            warnings.warn(f"every trial reads its whole text: {reason}.", stacklevel=2)
            long = []
    _read_whole(student, running, set(running.waiting) - set(long), batch_size)
    held = min(student.pass_tokens or _HELD_TOKENS, _memory_tokens(student) if long else 0)
    rows = 0 if student.pass_tokens else batch_size
    for group in group_by_tokens([lengths[i] for i in long], held, rows):
        _read_in_pieces(student, running, {long[g] for g in group})
    return [running.results[i] for i in range(len(searches))]


class _Running(Generic[Result]):
    """Searches that have begun.

    Attributes:
        waiting: the trial that each search waits for, by the number of the search.
        results: of those that have ended.
        shares: how much of each is done.
    """

    def __init__(self, searches: Sequence[Search[Result]], progress: Progress) -> None:
        self.searches, self.progress = searches, progress
        self.waiting: dict[int, Trial] = {}
        self.results: dict[int, Result] = {}
        self.shares = dict.fromkeys(range(len(searches)), 0.0)
        for i, search in enumerate(searches):
            self._go_on(i, partial(next, search))

    def answer(self, i: int, scores: TokenScores) -> None:
        """Sends a search the scores that it waits for."""
        self.waiting[i].base = None  # whose keys and values are then free
        self._go_on(i, partial(self.searches[i].send, scores))

    def _go_on(self, i: int, step: Callable[[], Trial]) -> None:
        try:
            self.waiting[i] = step()
            self.shares[i] = self.waiting[i].share
        except StopIteration as end:
            self.waiting.pop(i, None)
            self.results[i], self.shares[i] = end.value, 1.0

    def tell(self) -> None:
        """Reports the progress."""
        ended = f"{len(self.results)} of {len(self.searches)} rationales"
        self.progress(sum(self.shares.values()) / len(self.shares), ended)


def _read_whole(
    student: Student, running: _Running[Result], mine: set[int], batch_size: int
) -> None:
    """Runs some searches part by part: each trial is a pass over its whole text."""
    while left := sorted(mine & set(running.waiting)):
        part = min(running.waiting[i].part for i in left)
        asked = [i for i in left if running.waiting[i].part == part]
        trials = [running.waiting[i] for i in asked]
        found = score_tokens(student, [t.tokenized for t in trials], batch_size)
        for i, trial, scores in zip(asked, trials, found, strict=True):
            trial.spent = len(trial.row)
            running.answer(i, scores)
        running.tell()


def _memory_tokens(student: Student) -> int:
    """Returns the tokens whose keys and values a device holds twice: of a text and of its trial."""
    element = student.dtype.itemsize
    return max(1, cache_tokens(shape_of(student.model), student.device, element) // 2)


def _read_in_pieces(student: Student, running: _Running[Result], mine: set[int]) -> None:
    """Runs some searches side by side, each at its own pace: a pass reads a piece of some texts."""
    rows: dict[int, _Row] = {}
    while left := sorted(mine & set(running.waiting)):
        for i in left:
            if i not in rows:
                rows[i] = _Row(running.waiting[i])
        ready = [i for i in left if rows[i].answered]
        for i in ready:
            running.answer(i, rows.pop(i).finish())
        if ready:
            running.tell()
            continue
        # Pieces of one size are read together: the size that most texts are at.
        sizes = Counter(rows[i].next_size for i in left)
        size = max(sizes, key=lambda n: (sizes[n], n))
        part = [rows[i].reading for i in left if rows[i].next_size == size]
        _read_if_they_fit(student, part, size)


class _Row:
    """A trial that is read in pieces."""

    def __init__(self, trial: Trial) -> None:
        self.trial, asked = trial, trial.asked
        self.places = [place for _, place in asked]
        base = trial.base.memory if trial.base else None
        self.reading = reading_after(trial.row, [at for at, _ in asked], base)

    @property
    def scores(self) -> TokenScores:
        """Of the tokens asked about, as far as they are known."""
        return dict(zip(self.places, self.reading.scores, strict=False))

    @property
    def answered(self) -> bool:
        """Whether the search knows enough."""
        settles = self.trial.settles
        return self.reading.finished or (settles is not None and settles(self.scores))

    @property
    def next_size(self) -> int:
        """Tokens of its next piece: twice as many each time where reading may end early."""
        if self.trial.settles is None:
            return _LARGEST_PIECE
        return min(_LARGEST_PIECE, max(_FIRST_PIECE, self.reading.spent))

    def finish(self) -> TokenScores:
        """Returns the scores; the trial now has what was read."""
        self.trial.memory, self.trial.spent = self.reading, self.reading.spent
        return self.scores


def _read_if_they_fit(student: Student, rows: Sequence[Reading], size: int) -> None:
    """Reads a piece of some rows; where they do not fit a GPU together, of a half of them first."""
    try:
        read(student, rows, size)
        return
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise UserError(
                f"a row of {len(rows[0].ids)} tokens, read {size} at a time, does not fit the "
                f"memory of {student.device}; use a smaller student, --dtype bfloat16 or shorter "
                "data."
            ) from None
    half = len(rows) // 2
    _read_if_they_fit(student, rows[:half], size)
    _read_if_they_fit(student, rows[half:], size)
