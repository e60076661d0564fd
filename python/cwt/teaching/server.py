"""A teacher behind an OpenAI-compatible server."""

from typing import Any

from cwt.teaching.client import UNREADABLE, Client
from cwt.teaching.config import TeachConfig
from cwt.teaching.teacher import Completion, Message, as_plain_text, settle_thinking


class ServerTeacher:
    """A model on a server, asked one completion a request.

    Args:
        config: address, model, sampling; the key is read from the environment here.

    Raises:
        UserError: the environment variable holds something that cannot be a key, or base_url is no
            address.
    """

    def __init__(self, config: TeachConfig) -> None:
        self._config = config
        endpoint = "chat/completions" if config.api == "chat" else "completions"
        self._client = Client(
            config.base_url, endpoint, config.key_env, config.timeout, config.concurrency
        )

    def __repr__(self) -> str:
        return f"ServerTeacher({self._client.url!r}, {self._config.model!r})"

    async def complete(self, messages: list[Message], seed: int | None) -> Completion:
        """Returns one completion; see `Teacher.complete`."""
        choice, usage = await self._client.choice(self._payload(messages, seed))
        try:
            message = choice.get("message") or {"content": choice.get("text")}
            text = _text_of(message, self._config.thinking)
            finish = str(choice.get("finish_reason") or "stop")
        except UNREADABLE as error:
            raise self._client.not_a_completion(error) from None
        hide = self._client.without_key
        return Completion(hide(text), hide(finish), *usage)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _payload(self, messages: list[Message], seed: int | None) -> dict[str, Any]:
        config = self._config
        payload: dict[str, Any] = {
            "model": config.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.max_tokens_field: config.max_tokens,
        }
        if config.api == "chat":
            payload["messages"] = messages
        else:
            payload["prompt"] = as_plain_text(messages)
        if seed is not None:
            payload["seed"] = seed
        return payload | config.extra_fields


def _text_of(message: dict[str, Any], thinking: str) -> str:
    """Returns the text of a message, the model's thinking dropped or in front of it."""
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, as some servers send them
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str):
        raise TypeError("content")
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return settle_thinking(content, thought if isinstance(thought, str) else "", thinking)
