"""JSON and JSONL files as rows; every error names the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwt.errors import UserError


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line or item number, row) of a JSON list or a JSONL file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}.") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty.")
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(json.loads(text), 1))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error.msg}.") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: wanted an object, got {type(row).__name__}.")
        yield number, row
