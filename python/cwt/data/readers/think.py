"""`<think>...</think>` answers: the markers are structure, and the text inside is the rationale."""

import re

from cwt.data.answers import extract_answer
from cwt.data.readers.raw import Unusable

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
    text = text.strip()
    for opening, closing in _MARKS:
        if text.startswith(opening):
            thought, found, reply = text.removeprefix(opening).partition(closing)
            if not found:
                raise Unusable("a thought without an end", f"{opening} and no {closing}")
            return join_thought(thought, reply)
        if match := re.search(rf"{re.escape(closing)}[ \t]*(?:\n|$)", text):
            return join_thought(text[: match.start()], text[match.end() :])
    return _reply(text)


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
