"""A teacher behind an OpenAI-compatible server."""

import asyncio
import email.utils
import json
import math
import os
import re
import time
from typing import Any

import httpx2

from cwt.errors import UserError
from cwt.teaching.config import TeachConfig
from cwt.teaching.teacher import (
    Completion,
    Message,
    TeacherError,
    as_plain_text,
    settle_thinking,
)

# Statuses after which the same request may succeed; so may one after any other of 500 and above.
_PASSING = {408, 409, 425, 429}
# Statuses that say that the question, not the configuration, cannot be answered.
_QUESTION = {400, 413, 422}
# Codes under which servers say with status 429 that no waiting helps.
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached"}
_MOST_BYTES = 16 * 2**20
_SECRET_LENGTH = 8  # shorter "keys" are placeholders of local servers, such as EMPTY


def read_key(variable: str) -> str:
    """Returns the key that an environment variable holds, empty where it is not set.

    Raises:
        UserError: what it holds cannot be a key.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(
            f"the environment variable {variable} holds white space or letters outside ASCII; "
            "wanted a key."
        )
    return key


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
        self._key = read_key(config.key_env)
        endpoint = "chat/completions" if config.api == "chat" else "completions"
        self._url = f"{config.base_url.rstrip('/')}/{endpoint}"
        try:
            httpx2.URL(self._url)
        except httpx2.InvalidURL as error:
            raise UserError(f"base_url {config.base_url!r} is no address: {error}.") from None
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(config.timeout, connect=min(config.timeout, 20.0), pool=None),
            limits=httpx2.Limits(
                max_connections=config.concurrency, max_keepalive_connections=config.concurrency
            ),
        )

    def __repr__(self) -> str:
        return f"ServerTeacher({self._url!r}, {self._config.model!r})"

    async def complete(self, messages: list[Message], seed: int | None) -> Completion:
        """Returns one completion; see `Teacher.complete`."""
        payload = self._payload(messages, seed)
        try:
            # httpx2's own time-outs are per read: a server that drips would never meet them.
            sending = self._send(payload)
            response, body = await asyncio.wait_for(sending, self._config.timeout)
        except (asyncio.TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise TeacherError(
                f"no whole answer within {self._config.timeout:g} s", charged=True
            ) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise TeacherError(self._hide(f"no connection: {self._url}: {error}")) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise TeacherError(self._hide(f"connection lost: {reason}"), charged=True) from None
        except httpx2.DecodingError as error:
            raise TeacherError(self._hide(f"unreadable answer: {error}"), charged=True) from None
        if response.status_code != 200:
            raise self._refusal(response, body)
        return self._completion(body)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _send(self, payload: dict[str, Any]) -> tuple[httpx2.Response, bytes]:
        async with self._client.stream("POST", self._url, json=payload) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MOST_BYTES:
                    raise TeacherError(f"answer of more than {_MOST_BYTES} bytes", charged=True)
            return response, bytes(body)

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

    def _refusal(self, response: httpx2.Response, body: bytes) -> TeacherError:
        status = response.status_code
        detail, code = self._error_of(body)
        message = f"HTTP {status}" + (f": {detail}" if detail else "")
        if status in (401, 403) and not self._key:
            message += f" (no key was sent: {self._config.key_env or 'key_env'} is not set)"
        if 300 <= status < 400:
            place = response.headers.get("location", "elsewhere")
            message = self._hide(f"HTTP {status}: the server sends on to {place}; give that as URL")
        if code in _NO_MONEY:
            return TeacherError(message, "fatal")
        if status in _PASSING or (status >= 500 and status != 501):
            return TeacherError(message, wait=retry_after(response.headers))
        return TeacherError(message, "question" if status in _QUESTION else "fatal")

    def _completion(self, body: bytes) -> Completion:
        try:
            answer = json.loads(body)
            usage = _usage(answer)
            choices = answer.get("choices")
            if not choices:
                raise TeacherError(f"no choices: {self._error_of(body)[0]}", charged=True)
            choice = choices[0]
            message = choice.get("message") or {"content": choice.get("text")}
            text = _text_of(message, self._config.thinking)
            finish = str(choice.get("finish_reason") or "stop")
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise TeacherError(
                self._hide(f"not a completion: {type(error).__name__}"), charged=True
            ) from None
        text = _encodable(text)
        if len(self._key) >= _SECRET_LENGTH:
            text, finish = self._hide(text), self._hide(finish)
        return Completion(text, finish, *usage)

    def _hide(self, text: str) -> str:
        """Returns a text of the server's without the key."""
        return _encodable(text).replace(self._key, "[key]") if self._key else _encodable(text)

    def _error_of(self, body: bytes) -> tuple[str, str]:
        """Returns (what the server says of its error, on one line, without the key; its code)."""
        text = body.decode("utf-8", "replace")
        code = ""
        try:
            error = json.loads(text)
            error = error.get("error", error.get("detail", error))
            if isinstance(error, dict):
                code = str(error.get("code") or error.get("type") or "")
                error = error.get("message", error)
            text = error if isinstance(error, str) else json.dumps(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        return " ".join(self._hide(text).split())[:300], code


def _encodable(text: str) -> str:
    """Returns a text in which half a surrogate pair, which JSON may hold, is a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def retry_after(headers: Any) -> float | None:
    """Returns the seconds that a Retry-After header asks for (a number, or a date), or None."""
    value = str(headers.get("retry-after", "")).strip()
    try:
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _usage(answer: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = answer.get("usage") or {}
    found = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    prompt, completion = (
        n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None for n in found
    )
    return prompt, completion


def _text_of(message: dict[str, Any], thinking: str) -> str:
    """Returns the text of a message, the model's thinking dropped or in front of it."""
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, as some servers send them
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str):
        raise TypeError("content")
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return settle_thinking(content, thought if isinstance(thought, str) else "", thinking)
