"""`<think>...</think>` answers: the markers are structure, and the text inside is the rationale."""

import re
from typing import Literal

from cwt.data.answers import extract_answer
from cwt.data.answers.statement import CLOSE_MARKER
from cwt.data.readers.raw import Unusable
from cwt.data.units import answer_start

Thinking = Literal["strip", "keep", "wrap"]

_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


def without_marks(text: str) -> str:
    """Returns a teacher's text without its markers: the thought, a blank line, the reply.

    A marker counts where it opens the text, and a closing one without its opening one (which chat
    templates put into the prompt) where its line ends with it. Elsewhere the same letters are data.
    The last `<answer>X</answer>` of the reply becomes "The answer is X".

    Raises:
        Unusable: a thought that is opened and not closed.
    """
    found = _parts(text)
    return join_thought(found[1], found[3]) if found else _reply(text.strip())


def with_marks(text: str) -> str:
    """Returns a teacher's text in which its thought, if it is marked, stands between its markers.

    Both markers are there, each on a line of its own; else as `without_marks`.

    Raises:
        Unusable: a thought that is opened and not closed.
    """
    found = _parts(text)
    return _marked(*found) if found else _reply(text.strip())


def wrapped(text: str) -> str:
    """Returns a text whose thought is marked: all that stands before the statement of its answer.

    A text with a marked thought stays as it is.
    """
    if CLOSE_MARKER.search(text):
        return text
    opening, closing = _MARKS[0]
    start = answer_start(text)
    return _marked(opening, text[:start], closing, text[start:])


def _marked(opening: str, thought: str, closing: str, reply: str) -> str:
    return f"{opening}\n{thought.strip()}\n{closing}\n\n{_reply(reply)}"


def _parts(text: str) -> tuple[str, str, str, str] | None:
    """Returns (opening marker, thought, closing marker, reply); None where no thought is marked."""
    text = text.strip()
    for opening, closing in _MARKS:
        if text.startswith(opening):
            thought, found, reply = text.removeprefix(opening).partition(closing)
            if not found:
                raise Unusable("a thought without an end", f"{opening} and no {closing}")
            return opening, thought, closing, reply
        if match := re.search(rf"{re.escape(closing)}[ \t]*(?:\n|$)", text):
            return opening, text[: match.start()], closing, text[match.end() :]
    return None


def join_thought(thought: str, reply: str) -> str:
    """Returns a thought and the reply after it as one text."""
    parts = (thought.strip(), _reply(reply))
    return "\n\n".join(part for part in parts if part)


def _reply(text: str) -> str:
    text = _SOLUTION.sub("", text)
    before, found, rest = text.rpartition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    if not (found and closed):
        return text.strip()
    answer = answer.strip()
    if answer and extract_answer(answer) is None:
        answer = f"The answer is {answer}"
    return f"{before}{answer}{after}".strip()
