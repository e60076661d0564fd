"""What every format gives: a raw example, and the rules by which a value becomes text."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

# What programs write for a value that is not there (str(None), pandas); "none" may be an answer.
_ABSENT = {"None", "null", "NULL", "nan", "NaN", "<NA>"}


class Unusable(Exception):
    """Why a row gives no example: a reason that is counted, and what in this row led to it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class RawExample:
    """One question with one text of a teacher, as a file has it.

    Samples of one question are told by `question_key(question)`; no column is needed for it.

    Attributes:
        question: what is asked.
        rationale: the teacher's text, "" where there is none.
        gold: the answer of a column of its own; None where the answer stands in the text only.
        columns: what was taken from where, such as {"question": "problem", "answer": "label"}.
        id: the format's own name of the sample, "" where it has none.
        problem: why the rationale that is there is no good; heeded where rationales are read.
    """

    question: str
    rationale: str
    gold: str | None
    columns: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    problem: str = ""


def question_key(question: str) -> str:
    """Returns the question without case and with single spaces: equal keys, equal questions."""
    return " ".join(question.split()).casefold()


def is_absent(value: Any) -> bool:
    """Returns whether a value is null, NaN, blank, [], or text that spells null or NaN."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in _ABSENT
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, what: str) -> str:
    """Returns a value as text without surrounding white space; "" where it is absent.

    A number is its shortest decimal spelling: 51.0 is "51".

    Raises:
        Unusable: a boolean, a list, an object, bytes, an infinite number, or text that is not
            valid Unicode (half of a surrogate pair, or a byte that is not UTF-8).
    """
    if value != [] and is_absent(value):
        return ""
    if isinstance(value, str):
        text = value.strip()
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Unusable(f"{what} is not valid Unicode", str(error.reason)) from None
        return text
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise Unusable(f"{what} is {_kind(value)}, not text", excerpt(value))
    if not isinstance(value, int) and not math.isfinite(value):  # an int may be beyond floats
        raise Unusable(f"{what} is {value}")
    return str(int(value)) if value == int(value) else str(value)


def as_texts(value: Any, what: str) -> list[str]:
    """Returns a value as texts: one, or those of a list, the absent ones left out.

    Raises:
        Unusable: as `as_text`; a list that holds anything but text.
    """
    items = value if isinstance(value, list) else [value]
    if any(not isinstance(item, str) for item in items) and isinstance(value, list):
        raise Unusable(f"{what} is a list of other things than text", excerpt(value))
    return [text for item in items if (text := as_text(item, what))]


def as_answer(value: Any, what: str = "answer") -> str | None:
    """Returns a gold answer as text; None where it is absent.

    true and false are yes and no; a list of one item is that item.

    Raises:
        Unusable: as `as_text`; a list of several items.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if is_absent(value):
        return None
    if isinstance(value, list):
        raise Unusable("several gold answers", excerpt(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return as_text(value, what)


def column_name(name: str) -> str:
    """Returns a column's name as it is looked up: "Final Answer" and "finalAnswer" are one."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())).casefold()


def excerpt(value: Any, length: int = 80) -> str:
    """Returns the beginning of a value, on one line and printable."""
    if isinstance(value, str):
        text = value
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            text = type(value).__name__
    text = " ".join(text[: 2 * length].split())
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= length else text[: length - 3] + "..."


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
