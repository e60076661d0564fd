"""CSV, Parquet, a `datasets` folder and a hub name as rows."""

import ast
import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwt.data.readers.json_rows import PARTS, Row
from cwt.errors import UserError

_DELIMITERS = ",\t;|"
_LONGEST_FIELD = 2**30  # csv's own limit is 131072 characters


def delimiter_of(text: str) -> str:
    """Returns what parts the fields of a CSV file: the commonest mark of its first line."""
    header = text.lstrip("\n").partition("\n")[0]
    return max(_DELIMITERS, key=header.count)


def csv_rows(text: str, path: Path) -> list[Row]:
    """Returns the rows of a CSV file whose first line names the columns.

    An empty field is absent; a field that spells a Python or JSON list of texts or of objects is
    that list.

    Raises:
        UserError: a quote that does not end, or a name of a column that comes twice.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return list(_csv_rows(reader, path))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: cannot be read as CSV: {error}."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: Any, path: Path) -> Iterator[Row]:
    header = [name.strip() for name in next(reader)]
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise UserError(f"{path}, line 1: the column {twice[0]!r} comes twice.")
    number, line = 0, reader.line_num
    for fields in reader:
        first, line = line + 1, reader.line_num
        if not any(fields):
            continue
        number += 1
        problem = ""
        if len(fields) != len(header):
            problem = "not as many fields as columns"
        value = {n: _field(f) for n, f in zip(header, fields, strict=False)}
        yield Row(number, f"line {first}", value, problem)


def _field(text: str) -> Any:
    if text.startswith("[") and text.rstrip().endswith("]"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # "\\d" in a text
                value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if value and all(isinstance(item, (str, dict)) for item in value):
            return value
    return text or None


def parquet_rows(path: Path, data: bytes) -> list[Row]:
    """Returns the rows of a Parquet file.

    Raises:
        UserError: a file that pyarrow cannot read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}.") from None
    return [Row(n, f"row {n}", value) for n, value in enumerate(values, 1)]


def dataset_rows(
    name: str, config: str | None, split: str | None, training: bool
) -> tuple[str, list[Row], list[str]]:
    """Returns what was read of a data set of the library `datasets`, its rows, and notes.

    Args:
        name: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub.
        config: the configuration of a data set that has several, such as "main".
        split: the split; None for train (or test, when only questions are asked for).
        training: whether rows to train on are wanted.

    Raises:
        UserError: the library cannot read it, or it has no such split.
    """
    import datasets

    folder = Path(name)
    saved = folder.is_dir() and (
        (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    )
    if saved and config:
        raise UserError(
            f"{name}: a saved data set has no configuration {config!r}; wanted a split?"
            f" Write {name}::{config}."
        )
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # what it raises is spread over a dozen libraries
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: `datasets` cannot read it: {reason}.") from error
    if not isinstance(loaded, dict):
        if split:
            raise UserError(f"{name}: wanted the split {split!r}, got a data set without splits.")
        return "datasets folder", _numbered(loaded), []
    chosen = _split_name(name, list(loaded), split, training)
    notes = [f"split {n!r} was not read ({len(d)} rows)" for n, d in loaded.items() if n != chosen]
    return f"datasets, split {chosen!r}", _numbered(loaded[chosen]), notes


def _split_name(name: str, splits: list[str], split: str | None, training: bool) -> str:
    if split and split not in splits:
        raise UserError(f"{name}: wanted the split {split!r}, got {', '.join(splits)}.")
    if split:
        return split
    found = [n for n in PARTS[training] if n in splits]
    if not found and len(splits) > 1:
        raise UserError(
            f"{name}: wanted one of the splits {', '.join(PARTS[training])}, got "
            f"{', '.join(splits)}; name one: {name}::{splits[0]}."
        )
    return (found or splits)[0]


def _numbered(dataset: Any) -> list[Row]:
    return [Row(n, f"row {n}", dict(value)) for n, value in enumerate(dataset, 1)]
