"""Cuts a rationale into units, the pieces that are never cut again. Joining them gives it back."""

import itertools
import re
import warnings
from typing import Literal

UnitKind = Literal["sentence", "line", "step"]

# The sentence that states the answer starts here and reaches to the end of the rationale.
# No boundary is asked for before "The": teachers write "= 4 kidsThe answer is 4".
_ANSWER = re.compile(
    r"(?:\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? the|[Tt]he|THE) "
    r"(?:final |correct )?(?:answer (?:is|should be)|ANSWER IS)\b"
)
_STEP = re.compile(r"(?:^|\s)(?=(?:step )?\d{1,2}[.)] )", re.IGNORECASE)


def split_units(rationale: str, kind: UnitKind = "sentence") -> tuple[str, ...]:
    """Returns the units of a rationale; `"".join(units) == rationale`.

    White space between two units belongs to the later one. The answer ("The answer is 145" and
    what follows) is always the last unit of its own.

    Args:
        rationale: any text, such as a teacher's chain of thought.
        kind: `sentence` (pysbd, keeps "1. Identify ..." whole), `line`, or `step` (numbered).

    Raises:
        ValueError: unknown kind.
    """
    if kind not in ("sentence", "line", "step"):
        raise ValueError(f"unit must be sentence, line or step, got {kind!r}.")
    end = answer_start(rationale)
    body = rationale[:end]
    starts = {"sentence": _sentence_starts, "line": _line_starts, "step": _step_starts}[kind](body)
    cuts = [0, *(s for s in starts if body[:s].strip()), end, len(rationale)]
    # A cut before white space: the separator goes with the unit that it introduces.
    cuts = [len(rationale[:c].rstrip()) if 0 < c < len(rationale) else c for c in cuts]
    cuts = sorted(set(cuts))
    return tuple(rationale[a:b] for a, b in itertools.pairwise(cuts))


def answer_start(rationale: str) -> int:
    """Returns where the answer sentence begins, len(rationale) where there is none."""
    matches = list(_ANSWER.finditer(rationale))
    return matches[-1].start() if matches else len(rationale)


def _sentence_starts(text: str) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # pysbd's patterns are not raw strings
        import pysbd
    segments = pysbd.Segmenter(language="en", clean=False).segment(text) if text.strip() else []
    starts, position = [], 0
    for segment in segments:
        found = text.find(segment.strip(), position)
        # A segment whose text pysbd changed stays with the one before, and so does a bare number:
        # in "2. Divide by 2." pysbd takes the last "2." for an item of a list.
        if found < 0 or re.fullmatch(r"\d+[.)]?", segment.strip()):
            continue
        starts.append(found)
        position = found + len(segment.strip())
    return starts


def _line_starts(text: str) -> list[int]:
    return [match.end() for match in re.finditer(r"\n\s*(?=\S)", text)]


def _step_starts(text: str) -> list[int]:
    return [match.end() for match in _STEP.finditer(text)]
