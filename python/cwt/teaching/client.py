"""A client of OpenAI-compatible servers: one request, its answer, or why there is none."""

import asyncio
import email.utils
import json
import math
import os
import re
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

from cwt.errors import UserError
from cwt.teaching.teacher import TeacherError

T = TypeVar("T")

# Statuses after which the same request may succeed; so may one after any other of 500 and above.
_PASSING = {408, 409, 425, 429}
# Statuses that say that the question, not the configuration, cannot be answered.
_QUESTION = {400, 413, 422}
# Codes under which servers say with status 429 that no waiting helps.
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached"}
_MOST_BYTES = 16 * 2**20
# What reading an answer can raise that is none.
UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, RecursionError)
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


class Client:
    """Sends requests to one address of a server.

    Args:
        base_url: of the server, such as http://localhost:8000/v1.
        endpoint: below it, such as completions.
        key_env: environment variable that holds the key; none is sent where it is not set.
        timeout: seconds that one request may take.
        concurrency: connections, at most.

    Attributes:
        url: to which requests go.

    Raises:
        UserError: the environment variable holds something that cannot be a key, or base_url is no
            address.
    """

    def __init__(
        self, base_url: str, endpoint: str, key_env: str, timeout: float, concurrency: int
    ) -> None:
        self._key, self._key_env, self._timeout = read_key(key_env), key_env, timeout
        self.url = f"{base_url.rstrip('/')}/{endpoint}"
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise UserError(f"base_url {base_url!r} is no address: {error}.") from None
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 20.0), pool=None),
            limits=httpx2.Limits(
                max_connections=concurrency, max_keepalive_connections=concurrency
            ),
        )

    async def choice(
        self, payload: dict[str, Any]
    ) -> tuple[dict[str, Any], tuple[int | None, int | None]]:
        """Returns the first choice of a completion, and the tokens of its prompt and of itself.

        Args:
            payload: the fields of the request.

        Raises:
            TeacherError: there is none, with the reason and what to do about it.
        """
        try:
            # httpx2's own time-outs are per read: a server that drips would never meet them.
            response, body = await asyncio.wait_for(self._send(payload), self._timeout)
        except (asyncio.TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise TeacherError(
                f"no whole answer within {self._timeout:g} s", charged=True
            ) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise TeacherError(self.hide(f"no connection: {self.url}: {error}")) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise TeacherError(self.hide(f"connection lost: {reason}"), charged=True) from None
        except httpx2.DecodingError as error:
            raise TeacherError(self.hide(f"unreadable answer: {error}"), charged=True) from None
        if response.status_code != 200:
            raise self._refusal(response, body)
        try:
            answer = json.loads(body)
            usage = _usage(answer)
            choices = answer.get("choices")
            if not choices:
                raise TeacherError(f"no choices: {self._error_of(body)[0]}", charged=True)
            choices[0].get("finish_reason")
        except UNREADABLE as error:
            raise self.not_a_completion(error) from None
        return choices[0], usage

    def not_a_completion(self, error: Exception) -> TeacherError:
        """Returns what to raise where an answer cannot be read."""
        return TeacherError(self.hide(f"not a completion: {type(error).__name__}"), charged=True)

    def without_key(self, text: str) -> str:
        """Returns what a server wrote without the key, where that is a secret."""
        return self.hide(text) if len(self._key) >= _SECRET_LENGTH else encodable(text)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _send(self, payload: dict[str, Any]) -> tuple[httpx2.Response, bytes]:
        async with self._client.stream("POST", self.url, json=payload) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MOST_BYTES:
                    raise TeacherError(f"answer of more than {_MOST_BYTES} bytes", charged=True)
            return response, bytes(body)

    def _refusal(self, response: httpx2.Response, body: bytes) -> TeacherError:
        status = response.status_code
        detail, code = self._error_of(body)
        message = f"HTTP {status}" + (f": {detail}" if detail else "")
        if status in (401, 403) and not self._key:
            message += f" (no key was sent: {self._key_env or 'key_env'} is not set)"
        if 300 <= status < 400:
            place = response.headers.get("location", "elsewhere")
            message = self.hide(f"HTTP {status}: the server sends on to {place}; give that as URL")
        if code in _NO_MONEY:
            return TeacherError(message, "fatal")
        if status in _PASSING or (status >= 500 and status != 501):
            return TeacherError(message, wait=retry_after(response.headers))
        return TeacherError(message, "question" if status in _QUESTION else "fatal")

    def hide(self, text: str) -> str:
        """Returns a text of the server's without the key."""
        return encodable(text).replace(self._key, "[key]") if self._key else encodable(text)

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
        return " ".join(self.hide(text).split())[:300], code


def encodable(text: str) -> str:
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


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns, inside a notebook (whose loop is running) too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
