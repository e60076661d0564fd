"""TRL's {prompt, completion}: texts, or lists of turns."""

from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.conversation import exchange, is_turns
from cwt.data.readers.raw import RawExample, Unusable, as_text

NAME = "prompt and completion"


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has `prompt` and `completion`, or turns under `prompt`."""
    return ("prompt" in row and "completion" in row) or is_turns(row.get("prompt"))


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the prompt as the question and the completion as the rationale.

    Raises:
        Unusable: as `exchange` and `as_text`; a completion that its row calls a bad one.
    """
    prompt, completion = row["prompt"], row.get("completion")
    if is_turns(prompt):
        question, reply = exchange(prompt + (completion if is_turns(completion) else []))
        texts = [reply] if reply else columns.samples(row, "completion")
    else:
        question, texts = as_text(prompt, "prompt"), columns.samples(row, "completion")
    # In TRL's unpaired preferences a boolean label is a verdict on the completion, not an answer.
    if row.get("label") is False:
        raise Unusable("a completion with the label false")
    others = {k: v for k, v in row.items() if not (k == "label" and isinstance(v, bool))}
    gold_name = columns.gold_column(others)
    taken = {"question": "prompt", "rationale": "completion"}
    if gold_name:
        taken["answer"] = gold_name
    return columns.raws(question, texts, columns.gold_of(row, gold_name), taken)
