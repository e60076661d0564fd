"""JSON as rows with their line numbers: a list, lines, or an object with rows inside."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwt.errors import UserError

PARTS = {True: ("train", "training"), False: ("test", "validation", "valid", "dev", "eval")}
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        number: 1, 2, ... in the file's order, over all its rows.
        place: where it stands, such as "line 7".
        value: the columns; None where the row cannot be read.
        problem: why the row is listed instead of read, "" where it is read.
        wanted: False for a row of a part that was not asked for.
    """

    number: int
    place: str
    value: Any
    problem: str = ""
    wanted: bool = True


def json_rows(
    text: str, path: Path, is_row: Callable[[dict[str, Any]], bool], training: bool
) -> tuple[str, list[Row]]:
    """Returns how a JSON file keeps its rows, in words, and the rows.

    Args:
        text: what the file holds.
        path: its name, for messages.
        is_row: whether an object is a row, and not one with rows inside.
        training: whether rows to train on are wanted, of an object that has several parts.

    Raises:
        UserError: a list that is not JSON (file, line, reason), or an object without rows.
    """
    if text.lstrip(_SPACE).startswith("["):
        if _first_line_is_whole(text):
            return "JSON lines", list(_lines(text))
        return "JSON list", list(_items(text, path))
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return "JSON lines", list(_lines(text))
    if not isinstance(whole, dict):
        return "JSON lines", list(_lines(text))
    columns = _columns_of_lists(whole)
    if columns:
        return "JSON object of columns", [
            Row(n, f"row {n}", row) for n, row in enumerate(columns, 1)
        ]
    if is_row(whole):
        return "JSON object", [Row(1, "line 1", whole)]
    return _parts(whole, path, training)


def _first_line_is_whole(text: str) -> bool:
    """Returns whether the first line is JSON of its own, and more lines follow."""
    first, _, rest = text.strip(_SPACE).partition("\n")
    try:
        return bool(rest) and json.loads(first) is not None
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> Iterator[Row]:
    # Only a line feed ends a line: str.splitlines would cut inside a string that holds U+2028.
    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        count += 1
        try:
            yield Row(count, f"line {number}", json.loads(line))
        except json.JSONDecodeError as error:
            yield Row(count, f"line {number}", line, f"not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:  # 5000 digits, 10000 brackets
            yield Row(count, f"line {number}", line, f"not JSON that can be read: {error}")


def _items(text: str, path: Path) -> Iterator[Row]:
    """Yields the items of a JSON list, each with the line on which it begins."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted, number = 1, 0, 0
    try:
        while position < len(text) and text[position] != "]":
            number += 1
            more = text.count("\n", counted, position)
            line, counted = line + more, position
            value, end = decoder.raw_decode(text, position)
            place = f"line {line}" if more or number == 1 else f"line {line}, item {number}"
            yield Row(number, place, value)
            position = _skip_space(text, end)
            if text[position : position + 1] == ",":
                position = _skip_space(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        rest = _skip_space(text, position + 1)
        if position >= len(text) or rest < len(text):
            message = "the list does not end" if position >= len(text) else "Extra data"
            raise json.JSONDecodeError(message, text, min(rest, len(text)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {line}: not JSON that can be read: {error}.") from None


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _columns_of_lists(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of {"question": [...], "answer": [...]}, or of pandas' {"0": ...}."""
    values = list(whole.values())
    if len(values) < 2:
        return []
    if all(isinstance(v, dict) for v in values) and len({tuple(v) for v in values}) == 1:
        keys = list(values[0])
        if keys and all(key.isdigit() for key in keys):
            return [{name: whole[name][key] for name in whole} for key in keys]
        return []
    if not all(isinstance(v, list) for v in values) or len({len(v) for v in values}) > 1:
        return []
    # Parts with rows hold objects, each of them; a column of questions holds none.
    if all(any(isinstance(item, dict) for item in v) for v in values):
        return []
    return [dict(zip(whole, items, strict=True)) for items in zip(*values, strict=True)]


def _parts(whole: dict[str, Any], path: Path, training: bool) -> tuple[str, list[Row]]:
    """Returns the rows inside an object: of its one list, or of the part that was asked for."""
    known = {*PARTS[True], *PARTS[False]}
    # {"data": {"train": [...], "test": [...]}}
    inner = next((v for v in whole.values() if isinstance(v, dict) and v.keys() & known), {})
    parts = _lists_of_rows(inner) or _lists_of_rows(whole)
    if not parts:
        raise UserError(
            f"{path}: wanted rows (a list, lines, or an object with a list of rows in it), got an "
            f"object of {', '.join(map(str, whole)) or 'nothing'}."
        )
    names = list(parts)
    wanted = [n for n in (*PARTS[training], "data", "rows") if n in parts]
    chosen = (wanted or names)[0]
    if len(parts) > 1 and chosen not in known | {"data", "rows"}:
        raise UserError(
            f"{path}: an object with several lists of rows ({', '.join(names)}); wanted one list, "
            f"or the names train and test."
        )
    rows: list[Row] = []
    for name, values in parts.items():
        reason = "" if name == chosen else f"in the part {name!r}, not in {chosen!r}"
        for i, value in enumerate(values, 1):
            rows.append(Row(len(rows) + 1, f"{name} item {i}", _bare(value), reason, not reason))
    return f"JSON object, rows in {chosen!r}", rows


def _lists_of_rows(whole: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: found for name, value in whole.items() if (found := _rows_inside(value))}


def _bare(value: Any) -> Any:
    """Returns a row without the {"row_idx": 0, "row": {...}} that the hub's viewer puts around."""
    if isinstance(value, dict) and "row_idx" in value and isinstance(value.get("row"), dict):
        return value["row"]
    return value


def _rows_inside(value: Any) -> list[Any]:
    """Returns the rows of a list of objects, or of an object of such lists (Fine-tune-CoT)."""
    if isinstance(value, list):
        return value if any(isinstance(item, dict) for item in value) else []
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return [item for items in value.values() for item in items if isinstance(item, dict)]
    return []
