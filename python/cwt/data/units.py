# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""Cuts a rationale into units, the pieces that are never cut again. Joining them gives it back."""

import itertools
import re
from collections.abc import Sequence
from typing import Literal

from cwt.data.answers.statement import CLOSE_MARKER, OPEN_MARKER, last_statement
from cwt.data.sentences import Spans, protected_spans, sentence_ends

UnitKind = Literal["sentence", "line", "step", "paragraph"]

_AT_START = r"(?:(?<=\n)|\A)[ \t>#*_-]{0,8}"
_NAMED_STEP = re.compile(
    rf"(?:{_AT_START}|(?<=[.!?:;。])\s{{0,3}}(?:\*\*)?|(?<=\*\*)\s{{1,3}}(?:\*\*)?)"
    r"(?P<mark>(?:[Ss]tep|STEP)\s{1,2}\d{1,3}(?:\*\*)?\s?(?:[:.)]|[-–—]\s|(?=\n))"
    r"|步骤\s?[\d一二三四五六七八九十]{1,3}|第[\d一二三四五六七八九十]{1,3}步)"
)
_NUMBERED_STEP = re.compile(
    r"(?P<line>(?:(?<=\n)|\A)[ \t>*_-]{0,8})?(?P<mark>\(?(?P<number>\d{1,3})[.)]\s)"
)


def split_units(rationale: str, kind: UnitKind = "sentence") -> tuple[str, ...]:
    """Returns the units of a rationale; `"".join(units) == rationale`.

    - White space between two units belongs to the later one.
    - The statement of the answer ("The answer is 145", a box, ...) and what follows it are the last
      unit. It begins at its phrase, or, for a box, with its sentence. Where the text states no
      answer, the last unit is simply the last piece.
    - Think markers are structure, so they stand in the first and in the last unit, which are never
      left out: what reaches to the last `<think>` is part of the first unit, and the last unit
      begins no later than at the last `</think>`.
    - Code, mathematics and boxes are never cut inside.

    The time grows with the length of the text, whatever it says; no text raises an error.

    Args:
        rationale: any text, such as a teacher's chain of thought.
        kind: `sentence` ("1. Identify ..." is one), `line`, `step` ("Step 1: ..." where the text
            has such, else "1. ..."), or `paragraph` (divided by empty lines).

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _CUTS:
        raise ValueError(f"unit must be sentence, line, step or paragraph, got {kind!r}.")
    protected = Spans(protected_spans(rationale))
    answer = min(answer_start(rationale), _last_close_start(rationale))
    first = max((m.end() for m in OPEN_MARKER.finditer(rationale, 0, answer)), default=0)
    cuts = [c for c in _CUTS[kind](rationale, protected) if first < c < answer]
    cuts = _before_space(rationale, [c for c in cuts if not protected.inside(c)] + [answer])
    cuts = [0, *cuts, len(rationale)]
    return _merged([rationale[a:b] for a, b in itertools.pairwise(sorted(set(cuts)))])


def answer_start(rationale: str) -> int:
    """Returns where the answer's unit begins, len(rationale) where no answer is stated."""
    statement = last_statement(rationale)
    if statement is None:
        return len(rationale)
    return min(statement.start, _last_close_start(rationale))


def _last_close_start(text: str) -> int:
    """Returns where the last `</think>` begins, len(text) where there is none."""
    return max((m.start() for m in CLOSE_MARKER.finditer(text)), default=len(text))


def _before_space(text: str, cuts: list[int]) -> list[int]:
    """Returns the cuts, each moved before white space: it goes with the unit that it introduces.

    Args:
        text: the whole text.
        cuts: rising positions; one at the end of the text stays there.
    """
    moved: list[int] = []
    previous = 0
    for cut in cuts:
        begin = cut
        while cut < len(text) and begin > previous and text[begin - 1].isspace():
            begin -= 1
        # Nothing but space since the previous cut: it ends where that one did.
        moved.append(moved[-1] if moved and begin == previous else begin)
        previous = cut
    return moved


def _merged(pieces: Sequence[str]) -> tuple[str, ...]:
    """Returns the pieces, those without a letter or digit joined to the one before."""
    units: list[str] = []
    pending = ""
    for piece in pieces:
        if any(c.isalnum() for c in OPEN_MARKER.sub("", piece)):
            units.append(pending + piece)
            pending = ""
        elif units:
            units[-1] += piece
        else:
            pending += piece
    return (*units, pending) if pending else tuple(units)


def _sentence_cuts(text: str, protected: Spans) -> list[int]:
    return sentence_ends(text, protected)


def _line_cuts(text: str, protected: Spans) -> list[int]:
    return [m.start() for m in re.finditer(r"[\n\r]", text)]


def _paragraph_cuts(text: str, protected: Spans) -> list[int]:
    return [m.start() for m in re.finditer(r"\n[ \t\r]*\n", text)]


def _step_cuts(text: str, protected: Spans) -> list[int]:
    named = [m.start("mark") for m in _NAMED_STEP.finditer(text)]
    if named:
        return [_with_emphasis(text, cut) for cut in named]
    cuts: list[int] = []
    number = 0
    sentences = {_after_space(text, end) for end in sentence_ends(text, protected)}
    for match in _NUMBERED_STEP.finditer(text):
        found, start = int(match.group("number")), match.start("mark")
        next_one = found == number + 1 or found == 1 or not cuts
        if next_one and (match.group("line") is not None or start in sentences):
            cuts.append(_with_emphasis(text, start))
            number = found
    return cuts


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _with_emphasis(text: str, cut: int) -> int:
    """Returns the cut moved before the "**" or "#### " of a step's mark."""
    while cut and text[cut - 1] in "*_#> \t":
        cut -= 1
    return cut


_CUTS = {
    "sentence": _sentence_cuts,
    "line": _line_cuts,
    "step": _step_cuts,
    "paragraph": _paragraph_cuts,
}
