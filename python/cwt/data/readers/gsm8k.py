"""GSM8K: {question, answer}, the answer a solution with calculator marks, then "#### X".

Texts of other formats that end in such a line are read by the same rule, `stated`.
"""

import re
from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.raw import RawExample, as_text

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
    text, gold = stated(as_text(row["answer"], "answer"))
    taken = {"question": asked, "rationale": "answer", "answer": "answer (after ####)"}
    return [RawExample(columns.question_of(row, asked), text, gold, taken)]


def stated(text: str) -> tuple[str, str | None]:
    """Returns a text that ends with a line "#### X" with a sentence for it, and X.

    Calculator marks (<<3*2=6>>) go. Another text is returned as it is, with None.
    """
    final = _FINAL.search(text)
    if not final:
        return text, None
    answer = final.group(1).strip()
    body = _MARKS.sub("", text[: final.start()]).strip()
    return f"{body}\nThe answer is {answer}".strip(), answer
