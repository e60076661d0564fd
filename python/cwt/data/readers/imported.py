"""What came of reading a file: examples, and every row that gave none with the reason."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cwt.data.example import Example
from cwt.data.readers.raw import excerpt
from cwt.errors import UserError


@dataclass(frozen=True)
class Dropped:
    """A row, or a sample of a row, that is not used.

    Attributes:
        file: the file or the name that was read.
        place: where it stands, such as "line 7".
        reason: the kind, the same words for all of its kind.
        detail: what it was in this row, "" where the reason says it all.
        excerpt: its id or the beginning of its question.
    """

    file: str
    place: str
    reason: str
    detail: str = ""
    excerpt: str = ""


@dataclass
class Imported:
    """The examples of a file, and what is told of how they were read.

    Attributes:
        source: the path or name that was asked for.
        kind: the container in words, such as "JSON lines".
        rows: how many rows it has.
        examples: the examples, in the file's order; their ids are unique.
        dropped: what is not used, in the file's order.
        formats: how many rows had which format.
        columns: what was taken from which column, of the first example of each format.
        places: by id, where the example stands in the file.
        answers_from: by id, where the answer came from.
        files: every file that was read, for `file_hashes`.
        notes: sentences for the user.
    """

    source: str
    kind: str
    rows: int
    examples: list[Example] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    answers_from: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How many rows or samples were dropped for each reason."""
        return Counter(drop.reason for drop in self.dropped)

    def leave_out(self, examples: Iterable[tuple[Example, str]]) -> None:
        """Moves examples, each with a reason, to the dropped ones: those that stand in no split."""
        left: set[str] = set()
        for example, reason in examples:
            left.add(example.id)
            place = self.places[example.id]
            self.dropped.append(Dropped(self.source, place, reason, excerpt=excerpt(example.id)))
        self.examples = [example for example in self.examples if example.id not in left]


def describe(result: Imported, n: int = 3) -> str:
    """Returns what was understood of a file, as text for `cwt data --show n`.

    Args:
        result: of `read_examples`.
        n: the number of examples to show unit by unit, evenly spread over the file.
    """
    lines = [
        f"{result.source}: {result.kind}, {result.rows} rows, {len(result.examples)} examples, "
        f"{len(result.dropped)} dropped"
    ]
    for name, count in result.formats.most_common():
        taken = result.columns.get(name, {})
        words = ", ".join(f"{role} = {column}" for role, column in taken.items())
        lines.append(f"  {name}: {count} rows" + (f"; {words}" if words else ""))
    lines += [f"  note: {note}" for note in result.notes]
    lines += [f"  dropped {count}: {why}" for why, count in result.reasons.most_common()]
    shown = min(n, len(result.examples))
    for i in range(shown):
        lines += ["", *_one(result, result.examples[i * len(result.examples) // shown])]
    return "\n".join(lines)


def _one(result: Imported, example: Example) -> list[str]:
    origin = result.answers_from.get(example.id, "unknown")
    lines = [f"{example.id}", f"  question  {excerpt(example.question, 400)}"]
    lines += [f"  {i:>8}  {unit!r}" for i, unit in enumerate(example.units)]
    return [*lines, f"  answer    {example.answer!r}, from {origin}"]


def file_hashes(paths: Iterable[Path | str]) -> dict[str, str]:
    """Returns the SHA-256 of files, by path, so that a changed file is noticed.

    Args:
        paths: files, such as `Imported.files`. A name on the hub has none and is not among them.

    Raises:
        UserError: a file that cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"; _ = file.write_text("[]")
        >>> file_hashes([file])[str(file)][:16]
        '4f53cda18c2baa0c'
    """
    found = {}
    for path in paths:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
        found[str(path)] = digest
    return found
