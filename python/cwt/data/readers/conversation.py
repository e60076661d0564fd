"""Turns of a conversation as one question and one reply; the formats with turns share it."""

from typing import Any

from cwt.data.readers.raw import Unusable, as_text
from cwt.data.readers.think import join_thought

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "",
    "developer": "",
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def is_turns(value: Any) -> bool:
    """Returns whether a value is a list of turns: {role, content} or {from, value}."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, dict) and ("role" in t or "from" in t) for t in value)
    )


def has_reply(turns: list[dict[str, Any]]) -> bool:
    """Returns whether one of the turns is the model's."""
    roles = (turn.get("role", turn.get("from")) for turn in turns)
    return any(_ROLES.get(role) == "assistant" for role in roles if isinstance(role, str))


def exchange(turns: list[dict[str, Any]]) -> tuple[str, str]:
    """Returns the question and the reply, "" where nobody has replied.

    What the system says is left out: it tells how to write, and belongs to no question.

    Raises:
        Unusable: several questions, no question, a turn of a tool, content that is not text.
    """
    said: list[tuple[str, str]] = []
    for turn in turns:
        name = as_text(turn.get("role", turn.get("from")), "role").casefold()
        if name not in _ROLES:
            raise Unusable("a conversation with a turn of another kind", name)
        role = _ROLES[name]
        if role:
            said.append((role, _content(turn)))
    roles = [role for role, _ in said]
    if roles.count("user") > 1 or roles.count("assistant") > 1:
        raise Unusable("a conversation of several questions", f"{len(said)} turns")
    if roles[:1] != ["user"]:
        raise Unusable("no question", "no turn of a user comes first")
    texts = [text for _, text in said]
    return texts[0], texts[1] if len(texts) > 1 else ""


def _content(turn: dict[str, Any]) -> str:
    """Returns what a turn says: text, or the text parts of a list, after its reasoning."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts: list[Any] = [p.get("text") if isinstance(p, dict) else p for p in content]
        if any(not isinstance(part, str) for part in parts):
            raise Unusable("a conversation with something other than text")
        content = "".join(parts)
    text = as_text(content, "content")
    for name in _THOUGHTS:
        if thought := as_text(turn.get(name), name):
            return join_thought(thought, text)
    return text
