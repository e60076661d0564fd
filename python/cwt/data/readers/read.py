"""Reads a file of examples: rows to raw examples to examples; every row is used or listed."""

from collections.abc import Mapping
from pathlib import Path

from cwt.data.answers import extract_answer, same_answer
from cwt.data.example import Example
from cwt.data.readers import columns as named_columns
from cwt.data.readers import formats, gsm8k
from cwt.data.readers.imported import Dropped, Imported
from cwt.data.readers.json_rows import Row
from cwt.data.readers.raw import (
    RawExample,
    Unusable,
    as_text,
    column_name,
    excerpt,
    question_key,
)
from cwt.data.readers.sources import open_source
from cwt.data.readers.think import Thinking, with_marks, without_marks, wrapped
from cwt.data.units import UnitKind, split_units
from cwt.errors import UserError

_IDS = ("id", "idx", "uid", "uuid", "unique_id", "question_id", "qid", "sample_id")
_SHORT = 80  # characters of a text that is an answer, where questions only are read


def read_examples(
    path: Path | str,
    unit: UnitKind = "sentence",
    rationales: bool = True,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    thinking: Thinking = "strip",
) -> Imported:
    """Returns the examples of a file and, with reasons, the rows that gave none.

    Understood: JSON (a list, lines, an object with rows inside), CSV, Parquet, each plain or packed
    with gzip or Zstandard; a folder that `datasets` wrote or can load; a name on the hub, with
    `name:config:split`. Rows: `cwt.data.readers.formats` lists them.

    A gold column beats what the text says: a rationale that states another answer is dropped. A
    rationale whose last unit does not state the answer gets "The answer is X" appended. Samples of
    one question are kept; the same question with the same rationale is dropped.

    Args:
        path: a file, a folder or a name.
        unit: how rationales are cut: a kind of `split_units`.
        rationales: False to read questions with answers only, to evaluate on: each question once,
            of the part called "test" where there are several.
        columns: {"question": name, "rationale": name, "answer": name} of a file whose names are
            others than those that are known; `question` and one of the other two are needed.
        strict: raise at the first row that cannot be used.
        thinking: what becomes of think markers: strip removes them, keep leaves those that are
            there, wrap puts all that stands before the answer between <think> and </think> where
            the text has none. Where they stay, the answer is read after the last closing one.

    Raises:
        UserError: it cannot be read, no row is understood or usable, unknown roles in `columns`,
            or, with strict, a row that cannot be used (file, line, reason).
    """
    _check_columns(columns)
    source = open_source(path, rationales, columns is not None)
    found = Imported(str(path), source.kind, len(source.rows), files=source.files)
    found.notes += source.notes
    reader = _Reader(found, unit, rationales, columns, strict, source.stem, thinking)
    for row in source.rows:
        reader.row(row)
    if not found.examples:
        raise UserError(_nothing(found, source.rows))
    return found


def _check_columns(columns: Mapping[str, str] | None) -> None:
    if columns is None:
        return
    if set(columns) - set(named_columns.ROLES) or "question" not in columns or len(columns) < 2:
        raise UserError(
            f"columns: wanted question=NAME with rationale=NAME, answer=NAME or both, got "
            f"{', '.join(f'{k}={v}' for k, v in columns.items()) or 'nothing'}."
        )


def _nothing(found: Imported, rows: list[Row]) -> str:
    """Returns the message for a file without one usable row."""
    reasons = ", ".join(f"{n} {why}" for why, n in found.reasons.most_common(6))
    first = next((r.value for r in rows if isinstance(r.value, dict)), {})
    names = ", ".join(map(str, first)) or "none"
    return (
        f"{found.source}: not one usable row of {found.rows} ({reasons or 'no rows'}); wanted a "
        f"question with a rationale or an answer, got the columns {excerpt(names, 200)}."
    )


class _Reader:
    """Takes rows one by one and fills an Imported."""

    def __init__(
        self, found: Imported, unit: UnitKind, rationales: bool,
        columns: Mapping[str, str] | None, strict: bool, stem: str, thinking: Thinking,
    ) -> None:  # fmt: skip
        self._thinking = thinking
        self._found, self._unit, self._rationales = found, unit, rationales
        self._columns, self._strict, self._stem = columns, strict, stem
        self._ids: set[str] = set()
        self._texts: set[tuple[str, str]] = set()  # question, rationale
        self._answers: dict[str, str] = {}  # by question, where questions only are read

    def row(self, row: Row) -> None:
        """Takes the samples of a row, or lists it."""
        try:
            name, raws = self._read(row)
        except Unusable as error:
            self._drop(row, error)
            return
        self._found.formats[name] += 1
        for k, raw in enumerate(raws):
            try:
                self._take(row, raw, k if len(raws) > 1 else None)
            except Unusable as error:
                self._drop(row, error)
            else:
                self._found.columns.setdefault(name, dict(raw.columns))

    def _read(self, row: Row) -> tuple[str, list[RawExample]]:
        if row.problem:
            reason, _, detail = row.problem.partition(": ")
            raise Unusable(reason, detail)
        if not isinstance(row.value, dict):
            raise Unusable("not an object", type(row.value).__name__)
        if self._columns is not None:
            return "named columns", named_columns.read_named(row.value, self._columns)
        module = formats.of(row.value)
        if module is None:
            raise Unusable("columns not understood", ", ".join(map(str, row.value)) or "none")
        return module.NAME, module.read(row.value)

    def _take(self, row: Row, raw: RawExample, k: int | None) -> None:
        """Adds the example of a sample.

        Raises:
            Unusable: there is none.
        """
        if not raw.question:
            raise Unusable("no question")
        units: tuple[str, ...] = ()
        if self._rationales:
            if not raw.rationale or raw.problem:
                raise Unusable(raw.problem or "no rationale")
            read = without_marks if self._thinking == "strip" else with_marks
            text, _ = gsm8k.stated(read(raw.rationale))
            answer, origin = self._answer(raw, text)
            units, origin = self._units(text, answer, origin)
            if self._thinking == "wrap":
                units = self._split(wrapped("".join(units)))
        else:  # beside a gold answer the text does not matter, and may be anything
            text = "" if raw.gold is not None else without_marks(raw.rationale)
            answer, origin = self._answer(raw, text)
        self._once(raw.question, text, answer)
        identifier = self._id(row, raw, k)
        self._found.examples.append(Example(identifier, raw.question, units, answer))
        self._found.places[identifier] = row.place
        self._found.answers_from[identifier] = origin

    def _answer(self, raw: RawExample, text: str) -> tuple[str, str]:
        """Returns the answer and where it came from."""
        stated = extract_answer(text) if text else None
        if raw.gold is not None:
            if stated is not None and not same_answer(stated, raw.gold):
                detail = f"it says {excerpt(stated, 40)!r}, gold is {excerpt(raw.gold, 40)!r}"
                raise Unusable("rationale contradicts the gold answer", detail)
            return raw.gold, f"the column {raw.columns.get('answer', 'answer')}"
        if stated is not None:
            return stated, "the rationale"
        if not self._rationales and text and len(text) <= _SHORT and "\n" not in text:
            return text, f"the column {raw.columns.get('rationale', 'rationale')}"
        raise Unusable("no answer")

    def _units(self, text: str, answer: str, origin: str) -> tuple[tuple[str, ...], str]:
        """Returns the units, the last one stating the answer, and where the answer came from."""
        if text.strip() == answer:
            raise Unusable("rationale is the answer alone", excerpt(answer))
        units = self._split(text)
        if not _states(units[-1], answer):
            text += f"{chr(10) if chr(10) in text else ' '}The answer is {answer}"
            units, origin = self._split(text), f"{origin}; its sentence was appended"
            if not _states(units[-1], answer):
                raise Unusable("answer cannot be told from a sentence", excerpt(answer))
        if len(units) < 2:
            raise Unusable("rationale of one unit", excerpt(text))
        return units, origin

    def _split(self, text: str) -> tuple[str, ...]:
        try:
            return split_units(text, self._unit)
        except ValueError as error:
            raise Unusable("not divided into units", str(error)) from None

    def _once(self, question: str, text: str, answer: str) -> None:
        """Notes a sample.

        Raises:
            Unusable: it was there before.
        """
        key = question_key(question)
        if self._rationales:
            sample = (key, " ".join(text.split()))
            if sample in self._texts:
                raise Unusable("repeated question with the same rationale")
            self._texts.add(sample)
        elif key in self._answers:
            other = self._answers[key]
            if same_answer(answer, other):
                raise Unusable("repeated question")
            raise Unusable("repeated question with another answer", f"{answer!r}, not {other!r}")
        else:
            self._answers[key] = answer

    def _id(self, row: Row, raw: RawExample, k: int | None) -> str:
        """Returns a name that no other example has."""
        own = "" if raw.id else _own_id(row.value)
        base = own or f"{self._stem}-{raw.id or row.number}"
        base = base if k is None else f"{base}-{k + 1}"
        identifier, n = base, 1
        while identifier in self._ids:
            n += 1
            identifier = f"{base}-{n}"
        self._ids.add(identifier)
        return identifier

    def _drop(self, row: Row, error: Unusable) -> None:
        found = self._found
        if self._strict and row.wanted:
            raise UserError(f"{found.source}, {row.place}: {error}.")
        found.dropped.append(
            Dropped(found.source, row.place, error.reason, error.detail, _excerpt(row.value))
        )


def _states(unit: str, answer: str) -> bool:
    return same_answer(extract_answer(unit), answer)


def _own_id(value: Mapping[str, object]) -> str:
    """Returns the row's own id: a text or a whole number, "" where it has none."""
    names = {column_name(name): name for name in value if isinstance(name, str)}
    for name in _IDS:
        found = value.get(names[name]) if name in names else None
        if isinstance(found, (str, int)) and not isinstance(found, bool):
            try:
                if text := as_text(found, "id"):
                    return text
            except Unusable:
                continue
    return ""


def _excerpt(value: object) -> str:
    """Returns the id of a row, or the beginning of its question, or of all of it."""
    if not isinstance(value, dict):
        return excerpt(value)
    question = value.get(named_columns.find(value, named_columns.QUESTION))
    return _own_id(value) or excerpt(question if question else value)
