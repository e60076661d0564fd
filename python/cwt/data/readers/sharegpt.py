"""ShareGPT: {conversations: [{from, value}]}, one question and one reply."""

from collections.abc import Mapping
from typing import Any

from cwt.data.readers.conversation import is_turns
from cwt.data.readers.messages import holds_exchange, read_turns
from cwt.data.readers.raw import RawExample

NAME = "ShareGPT"
_NAMES = ("conversations", "conversation")


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a list of turns under `conversations`."""
    return any(holds_exchange(row, name) for name in _NAMES)


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the one exchange of the conversation.

    Raises:
        Unusable: as `exchange`.
    """
    return read_turns(row, next(name for name in _NAMES if is_turns(row.get(name))))
