"""What a teacher is: something that turns messages into one completion."""

from dataclasses import dataclass
from typing import Protocol, TypedDict


class Message(TypedDict):
    """One turn of a conversation, in the words of the OpenAI interface."""

    role: str
    content: str


@dataclass(frozen=True)
class Completion:
    """What a teacher wrote, and what it cost.

    Attributes:
        text: the completion, thinking dropped or kept as configured; empty where it has none.
        finish: why it ended: stop, length (cut off), content_filter, or the server's own word.
        prompt_tokens: tokens of the prompt; None where the server did not say.
        completion_tokens: tokens of the completion, thinking included; None likewise.
    """

    text: str
    finish: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class TeacherError(Exception):
    """A request that brought no completion.

    Args:
        message: what was wanted and what came, without the key.
        scope: `passing` (the same request may succeed later), `question` (this question cannot be
            answered) or `fatal` (no request can succeed as things are configured).
        charged: whether the server may have charged for it: it worked on the request, and its
            answer did not arrive whole.
        wait: seconds after which the server wants to be asked again; None where it did not say.
    """

    def __init__(
        self, message: str, scope: str = "passing", charged: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.scope, self.charged, self.wait = scope, charged, wait


class Teacher(Protocol):
    """A model that writes rationales. `complete` is called by several tasks of one event loop."""

    async def complete(self, messages: list[Message], seed: int | None) -> Completion:
        """Returns one completion.

        Args:
            messages: the prompt, system and user turns.
            seed: of sampling, None for any.

        Raises:
            TeacherError: there is none, with the reason and what to do about it.
        """
        ...

    async def close(self) -> None:
        """Lets connections and memory go."""
        ...


def as_plain_text(messages: list[Message]) -> str:
    """Returns the prompt of a model without roles: the turns with blank lines between."""
    return "\n\n".join(message["content"] for message in messages) + "\n"


def settle_thinking(content: str, thought: str, thinking: str) -> str:
    """Returns a completion with its thinking kept in front, or dropped.

    Args:
        content: the text; thinking inside it stands between <think> and </think>, or, where the
            prompt opened it, before </think> alone.
        thought: thinking that the server gave apart.
        thinking: "drop" or "keep".
    """
    before, mark, after = content.rpartition("</think>")
    if mark:
        thought = f"{thought}\n{before.replace('<think>', '').replace('</think>', '')}"
        content = after
    if thinking == "drop":
        return content.strip()
    return "\n".join(part for part in (thought.strip(), content.strip()) if part)
