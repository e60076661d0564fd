"""Files that are either complete or absent: written under another name, then moved."""

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cwt.errors import UserError

_PART = re.compile(r"\..+\.\d+\.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; when the block ends without an error, it replaces `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes a JSONL file."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(_damaged(path, error)) from error


def read_lines(path: Path) -> list[Any]:
    """Returns the rows of a JSONL file.

    Raises:
        UserError: it is damaged.
    """
    # Only a line feed ends a line: str.splitlines would cut inside a string that holds U+2028.
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise UserError(_damaged(path, error)) from error


def _damaged(path: Path, error: ValueError) -> str:
    return f"{path}: is damaged ({error}); put back what this run wrote, or take another folder."


def is_part(path: Path) -> bool:
    """Returns whether a path is what a killed process left of a file that it was writing."""
    return bool(_PART.fullmatch(path.name))


def checksum(path: Path) -> int:
    """Returns the CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found
