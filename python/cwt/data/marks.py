"""Marks in the texts of examples: the number of a stage, and where something was left out."""

from collections.abc import Sequence
from dataclasses import replace

from cwt.data.example import Example

SKIP_MARK = " ..."  # stands where units were left out


def with_skip_marks(examples: Sequence[Example]) -> list[Example]:
    """Returns the examples with a mark before each unit that follows one which was left out."""
    found = []
    for e in examples:
        after = {u for u in e.kept if u and u - 1 not in e.kept}
        units = tuple(SKIP_MARK + t if u in after else t for u, t in enumerate(e.units))
        found.append(replace(e, units=units))
    return found


def with_stage_marks(examples: Sequence[Example]) -> list[Example]:
    """Returns chunked examples with the number of its stage before each chunk, the answer's too."""
    found = []
    for e in examples:
        starts = {b: m for m, b in enumerate((e.boundaries or (0,))[: e.chunks])}
        units = tuple(
            f"{' ' if u else ''}[{starts[u] + 1}]{'' if u else ' '}{text}" if u in starts else text
            for u, text in enumerate(e.units)
        )
        found.append(replace(e, units=units))
    return found
