"""Rows of known columns as examples: alpaca, GSM8K, question with rationale and answer."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwt.data.answers import extract_answer
from cwt.data.example import Example
from cwt.data.readers.rows import read_rows
from cwt.data.units import UnitKind, split_units
from cwt.errors import UserError


@dataclass(frozen=True)
class Imported:
    """The examples of a file and how many of its rows were left out, by reason."""

    examples: list[Example]
    dropped: Counter[str]


def read_examples(path: Path, unit: UnitKind = "sentence", rationales: bool = True) -> Imported:
    """Returns the examples of a JSON or JSONL file.

    Understood rows: {instruction, output} (alpaca), {question, answer} with "#### X" (GSM8K),
    {question, rationale, answer}, and, with rationales=False, {question, answer} or
    {instruction, label}. A row without an answer and a repeated question are left out and counted.

    Raises:
        UserError: no such file, an empty one, a malformed line (file, line, reason), unknown
            columns, or not one usable row.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for line, row in read_rows(path):
        question, text, answer = _columns(path, line, row)
        if not question:
            dropped["no question"] += 1
        elif answer is None:
            dropped["no answer"] += 1
        elif question in seen:
            dropped["repeated question"] += 1
        elif rationales and not text:
            dropped["no rationale"] += 1
        else:
            seen.add(question)
            units = split_units(text, unit) if rationales else ()
            identifier = str(row.get("id", f"{path.stem}-{line}"))
            examples.append(Example(identifier, question, units, answer))
    if not examples:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items())
        raise UserError(f"{path}: not one usable row ({reasons}); wanted a question and an answer.")
    return Imported(examples, dropped)


def _columns(path: Path, line: int, row: dict[str, Any]) -> tuple[str, str, str | None]:
    """Returns (question, rationale that ends with its answer sentence, answer or None)."""
    question = row.get("question", row.get("instruction"))
    if not isinstance(question, str):
        raise UserError(
            f"{path}, line {line}: wanted a text column 'question' or 'instruction', got "
            f"{', '.join(map(str, row)) or 'no columns'}."
        )
    if row.get("input"):  # alpaca's optional context
        question = f"{question}\n{row['input']}"
    question = question.strip()
    if "output" in row:
        text = str(row["output"]).strip()
        answer = extract_answer(text)
        return question, text, answer
    answer = row.get("answer", row.get("label"))
    if "rationale" in row:
        text = str(row["rationale"]).strip()
        answer = None if answer is None else str(answer).strip()
        if answer and extract_answer(text) is None:
            text = f"{text} The answer is {answer}"
        return question, text, answer or None
    if isinstance(answer, bool):
        return question, "", "yes" if answer else "no"
    if isinstance(answer, str) and "####" in answer:
        body, final = answer.rsplit("####", 1)
        body = re.sub(r"<<[^>]*>>", "", body).strip()  # GSM8K's calculator marks
        return question, f"{body}\nThe answer is {final.strip()}", final.strip() or None
    return question, "", str(answer).strip() if answer not in (None, "") else None
