"""TRL's conversational format: {messages: [{role, content}]}, one question and one reply."""

from collections.abc import Mapping
from typing import Any

from cwt.data.readers import columns
from cwt.data.readers.conversation import exchange, has_reply, is_turns
from cwt.data.readers.raw import RawExample

NAME = "messages"


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a list of turns under `messages`, and the reply among them."""
    return holds_exchange(row, "messages")


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the one exchange of the conversation.

    Raises:
        Unusable: as `exchange`.
    """
    return read_turns(row, "messages")


def holds_exchange(row: Mapping[str, Any], name: str) -> bool:
    """Returns whether a column is a list of turns, and no other columns have what it lacks."""
    turns: Any = row.get(name)
    return is_turns(turns) and (has_reply(turns) or not columns.matches(row))


def read_turns(row: Mapping[str, Any], name: str) -> list[RawExample]:
    """Returns the one exchange of a column of turns; a gold column beside it is heeded."""
    question, reply = exchange(row[name])
    gold_name = columns.gold_column(row)
    taken = {"question": f"{name} (user)", "rationale": f"{name} (assistant)"}
    if gold_name:
        taken["answer"] = gold_name
    return columns.raws(question, [reply], columns.gold_of(row, gold_name), taken)
