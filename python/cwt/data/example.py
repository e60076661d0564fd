"""The example: a question, the units of a rationale, the answer, and what was decided of them."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cwt.errors import UserError
from cwt.files import write_lines


@dataclass(frozen=True)
class Example:
    """A question with the units of the teacher's rationale; the last unit states the answer.

    Everything that is decided about an example travels inside it: how its units are grouped into
    chunks, and which of them stay.

    Attributes:
        id: unique in its file.
        question: what the student is asked.
        units: the pieces of the rationale in order; joined they are the rationale. Empty for
            questions that are only evaluated on.
        answer: the answer alone.
        roles: what each unit is (core, spare, restate, filler, answer), for generated examples.
        boundaries: 0 = b_0 < ... < b_M = len(units), in units: chunk m is units b_m .. b_{m+1} - 1,
            and the answer is the last chunk. None where the example is not chunked.
        kept_units: indices of the units that stay in training; None where nothing was decided, and
            all stay.
    """

    id: str
    question: str
    units: tuple[str, ...]
    answer: str
    roles: tuple[str, ...] | None = None
    boundaries: tuple[int, ...] | None = None
    kept_units: frozenset[int] | None = None

    @property
    def rationale(self) -> str:
        """The whole text that the teacher wrote, the answer included."""
        return "".join(self.units)

    @property
    def middle_units(self) -> range:
        """The units that may be left out: neither the first nor the answer."""
        return range(1, len(self.units) - 1)

    @property
    def kept(self) -> frozenset[int]:
        """The units that stay: kept_units, or all of them."""
        return frozenset(range(len(self.units))) if self.kept_units is None else self.kept_units

    def chunked(self, boundaries: Sequence[int]) -> "Example":
        """Returns the example with these boundaries.

        Raises:
            ValueError: they do not run from 0 to the number of units, rising.
        """
        rising = all(a < b for a, b in itertools.pairwise(boundaries))
        if not boundaries or boundaries[0] or boundaries[-1] != len(self.units) or not rising:
            raise ValueError(
                f"boundaries of {self.id} must rise from 0 to {len(self.units)}, its number of "
                f"units, got {list(boundaries)}."
            )
        return replace(self, boundaries=tuple(boundaries))

    def keeping(self, units: frozenset[int] | None) -> "Example":
        """Returns the example in which only these units stay; None: all of them."""
        return replace(self, kept_units=units)

    def chunk_of_units(self) -> list[int]:
        """Returns the chunk index of every unit; an example that is not chunked is one chunk."""
        boundaries = self.boundaries or (0, len(self.units))
        spans = itertools.pairwise(boundaries)
        return [m for m, (a, b) in enumerate(spans) for _ in range(a, b)]

    @property
    def chunks(self) -> int:
        """The number of chunks, the answer's included."""
        return len(self.boundaries) - 1 if self.boundaries else 1


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes examples to a JSONL file that `load_examples` reads back."""
    write_lines(path, (_as_row(example) for example in examples))


def _as_row(example: Example) -> dict[str, object]:
    row: dict[str, object] = {
        "id": example.id,
        "question": example.question,
        "units": example.units,
        "answer": example.answer,
        "roles": example.roles,
    }
    if example.boundaries is not None:
        row["boundaries"] = example.boundaries
    if example.kept_units is not None:
        row["kept_units"] = sorted(example.kept_units)
    return row


def load_examples(path: Path | str) -> list[Example]:
    """Returns the examples of a file that `write_examples` (or `cwt data`) wrote.

    Args:
        path: a JSONL file; each row has id, question, units and answer, and may have roles,
            boundaries and kept_units.

    Raises:
        UserError: no such file, a row that is not JSON or lacks those columns, boundaries that do
            not rise from 0 to the number of units, or kept_units that are not there.

    Example:
        >>> from pathlib import Path; import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "examples.jsonl"
        >>> write_examples(file, [Example("a", "1 + 1?", ("1 + 1 = 2.", " The answer is 2"), "2")])
        >>> load_examples(file)[0].rationale
        '1 + 1 = 2. The answer is 2'
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    examples = []
    for number, row in enumerate(path.read_bytes().split(b"\n"), 1):
        if not row:
            continue
        try:
            examples.append(_from_row(json.loads(row)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path}, row {number}: wanted id, question, units and answer, as `cwt data` "
                f"writes them: {reason.rstrip('.')}."
            ) from None
    return examples


def _from_row(row: Any) -> Example:
    if not isinstance(row, dict):
        raise TypeError(f"got {type(row).__name__} in place of an object")
    if not isinstance(row["units"], list):
        raise TypeError(f"units must be a list, got {row['units']!r}")
    roles, boundaries, kept = (row.get(name) for name in ("roles", "boundaries", "kept_units"))
    example = Example(
        id=str(row["id"]),
        question=str(row["question"]),
        units=tuple(map(str, row["units"])),
        answer=str(row["answer"]),
        roles=tuple(roles) if roles else None,
        kept_units=frozenset(map(int, kept)) if kept is not None else None,
    )
    if outside := example.kept - set(range(len(example.units))):
        raise ValueError(f"kept_units {sorted(outside)} are none of {len(example.units)} units")
    return example if boundaries is None else example.chunked([int(b) for b in boundaries])
