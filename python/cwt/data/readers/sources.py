"""A path or a name as rows: which container it is, told by its first bytes and its text."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwt.data.readers import finetune_cot, formats
from cwt.data.readers.decode import decode, read_bytes
from cwt.data.readers.json_rows import Row, json_rows
from cwt.data.readers.raw import excerpt
from cwt.data.readers.tables import csv_rows, dataset_rows, delimiter_of, parquet_rows
from cwt.errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """The rows of a file, a folder or a name.

    Attributes:
        kind: what it is, in words.
        rows: all its rows.
        files: the files that were read; empty for a name on the hub.
        notes: what the user should know, one sentence each.
        stem: the beginning of the names of its rows.
    """

    kind: str
    rows: list[Row]
    files: list[Path]
    notes: list[str]
    stem: str


def open_source(path: Path | str, training: bool, named: bool) -> Source:
    """Returns the rows of a file, of a `datasets` folder or of a hub name.

    Args:
        path: a file; a folder; or `name`, `name:config`, `name:config:split` (also for folders).
        training: whether rows to train on are wanted, of a source that has several parts.
        named: whether the caller names the columns, so that any row may be one.

    Raises:
        UserError: it cannot be read, or has no rows.
    """
    found = Path(path)
    if found.is_file():
        return _open_file(found, training, named)
    name, config, split = _parse(str(path))
    folder = Path(name)
    if not folder.is_dir() and (not _HUB_NAME.fullmatch(name) or name.endswith(_FILES)):
        raise UserError(f"{path}: no such file.")
    kind, rows, notes = dataset_rows(name, config, split, training)
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    if not rows:
        raise UserError(f"{path}: the data set is empty.")
    return Source(kind, rows, files, notes, folder.name)


def _parse(path: str) -> tuple[str, str | None, str | None]:
    name, _, rest = path.partition(":")
    config, _, split = rest.partition(":")
    return name, config or None, split or None


def _open_file(path: Path, training: bool, named: bool) -> Source:
    data = read_bytes(path)
    stem = path.name.partition(".")[0] or path.name
    if data.startswith(b"PAR1"):
        return Source("Parquet", parquet_rows(path, data), [path], [], stem)
    text = decode(data, path)
    first = text.lstrip("\ufeff \t\r\n")[:1]
    if first not in "[{":
        if _looks_like_csv(text, named):
            return Source("CSV", csv_rows(text, path), [path], [], stem)
        if not _looks_like_json_lines(text):
            raise UserError(
                f"{path}: wanted JSON, JSON lines, Parquet, or CSV with a first line of column "
                f"names such as question,rationale,answer; got a file that begins "
                f"{excerpt(text.strip())!r}."
            )

    def is_row(value: dict[str, Any]) -> bool:
        return bool(formats.of(value)) or (named and not any(map(_has_rows, value.values())))

    kind, rows = json_rows(text, path, is_row, training)
    split = finetune_cot.split_file(path)
    if split and any(isinstance(r.value, dict) and finetune_cot.matches(r.value) for r in rows):
        return Source(
            f"{kind}, split by {split.name}",
            finetune_cot.apply_split(rows, split, training), [path, split], [], stem,
        )  # fmt: skip
    return Source(kind, rows, [path], [], stem)


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _looks_like_json_lines(text: str) -> bool:
    """Returns whether a later line is an object: a list of lines whose first one is broken."""
    return any(line.startswith("{") for line in text[:100_000].split("\n"))


def _looks_like_csv(text: str, named: bool) -> bool:
    """Returns whether the first line names several columns, known ones or any."""
    header = text.strip().partition("\n")[0]
    names = [name.strip().strip('"') for name in header.split(delimiter_of(text))]
    return len(names) > 1 and (named or bool(formats.of(dict.fromkeys(names, "x"))))
