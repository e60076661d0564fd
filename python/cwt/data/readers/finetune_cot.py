"""Fine-tune-CoT (github.com/itsnamgyu/reasoning-teacher): {metadata, data: {index: [completion]}}.

A completion is a rationale, what the teacher then wrote after "Therefore, the answer is", and the
gold answer. A question has one completion or several. `<task>.split.json` beside `<task>.json`
says which sample indices are for training and which for the test.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cwt.data.readers.json_rows import PARTS, Row
from cwt.data.readers.raw import RawExample, as_answer, as_text
from cwt.errors import UserError

NAME = "Fine-tune-CoT"


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row is a completion of such a file."""
    return "question" in row and "reasoning_completion" in row


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the rationale, "Therefore, the answer is" and what followed, and the gold answer.

    Raises:
        Unusable: a value that is not text.
    """
    question = as_text(row["question"], "question")
    text = as_text(row["reasoning_completion"], "reasoning_completion")
    gold = as_answer(row.get("answer"), "answer")
    if text and (final := as_text(row.get("completion"), "completion")):
        text = f"{text}\nTherefore, the answer is {final}"
    columns = {
        "question": "question",
        "rationale": "reasoning_completion + completion",
        "answer": "answer",
    }
    index, sample = row.get("sample_index"), row.get("completion_index", 0)
    name = "" if index is None else f"{index}-{sample}"
    cut = row.get("reasoning_finish_reason") == "length"  # at the teacher's limit of tokens
    problem = "rationale was cut off" if cut else ""
    return [RawExample(question, text, gold, columns, name, problem)]


def split_file(path: Path) -> Path | None:
    """Returns the file that says which rows are for training, None where there is none."""
    name = path.name.partition(".json")[0]
    found = path.with_name(f"{name}.split.json")
    return found if found.is_file() and found != path else None


def apply_split(rows: Sequence[Row], split: Path, training: bool) -> list[Row]:
    """Returns the rows, those of the other part marked as not wanted.

    Raises:
        UserError: a split file that is not {"train": [indices], "test": [indices]}.
    """
    try:
        parts = json.loads(split.read_text(encoding="utf-8"))
        part = next(name for name in PARTS[training] if name in parts)
        indices = {index for index in parts[part] if isinstance(index, int)}
    except (OSError, ValueError, TypeError, StopIteration):
        raise UserError(
            f'{split}: wanted {{"train": [indices], "test": [indices]}}, got something else.'
        ) from None
    reason = f"not in the part {part!r} of {split.name}"

    def other(row: Row) -> bool:
        return isinstance(row.value, dict) and row.value.get("sample_index") not in indices

    return [replace(r, problem=reason, wanted=False) if other(r) else r for r in rows]
