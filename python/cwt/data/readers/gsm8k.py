"""GSM8K: {question, answer}, the answer a solution with calculator marks, then "#### X"."""

import re
from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.raw import RawExample, Unusable, as_text

NAME = "GSM8K"
_FINAL = re.compile(r"(?:^|\n)[ \t]*####[ \t]*([^\n#][^\n]*)\s*$")
_MARKS = re.compile(r"<<[^<>]*>>")


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a question and an answer that ends with a line "#### X"."""
    answer = row.get("answer")
    plain = not columns.filled(row, columns.THOUGHT + columns.REPLY)
    return (
        plain
        and bool(columns.find(row, columns.QUESTION))
        and isinstance(answer, str)
        and bool(_FINAL.search(answer))
    )


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the solution without its calculator marks and with a sentence for "####".

    Raises:
        Unusable: a question that is not text.
    """
    asked = columns.find(row, columns.QUESTION)
    text = as_text(row["answer"], "answer")
    final = _FINAL.search(text)
    if not final:
        raise Unusable("no answer")
    gold = final.group(1).strip()
    body = _MARKS.sub("", text[: final.start()]).strip()
    taken = {"question": asked, "rationale": "answer", "answer": "answer (after ####)"}
    rationale = f"{body}\nThe answer is {gold}" if body else ""
    return [RawExample(columns.question_of(row, asked), rationale, gold, taken)]
