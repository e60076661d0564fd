"""TRL's conversational format: {messages: [{role, content}]}, one question and one reply."""

from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.conversation import exchange, is_turns
from cwt.data.readers.raw import RawExample

NAME = "messages"


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a list of turns under `messages`."""
    return is_turns(row.get("messages"))


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the one exchange of the conversation.

    Raises:
        Unusable: as `exchange`.
    """
    return read_turns(row, "messages")


def read_turns(row: Mapping[str, Any], name: str) -> list[RawExample]:
    """Returns the one exchange of a column of turns; a gold column beside it is heeded."""
    question, reply = exchange(row[name])
    gold_name = columns.gold_column(row)
    taken = {"question": f"{name} (user)", "rationale": f"{name} (assistant)"}
    if gold_name:
        taken["answer"] = gold_name
    return columns.raws(question, [reply], columns.gold_of(row, gold_name), taken)
