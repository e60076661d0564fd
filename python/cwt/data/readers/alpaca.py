"""Alpaca: {instruction, input, output}; a gold column (answer, label, ...) beside them counts."""

from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.raw import RawExample, as_text

NAME = "alpaca"


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has `instruction` and `output`, or `instruction` and `input`."""
    others = row.keys() & {"input", "output"}
    return "instruction" in row and bool(others) and not columns.filled(row, columns.THOUGHT)


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the instruction with its input below it, and each text of the output.

    Raises:
        Unusable: a value that is not text.
    """
    question = as_text(row["instruction"], "instruction")
    given = as_text(row.get("input"), "input")
    question = f"{question}\n{given}".strip() if given else question
    gold_name = columns.gold_column(row)
    taken = {"question": "instruction + input" if "input" in row else "instruction"}
    if "output" in row:
        taken["rationale"] = "output"
    if gold_name:
        taken["answer"] = gold_name
    gold = columns.gold_of(row, gold_name)
    return columns.raws(question, columns.samples(row, "output"), gold, taken)
