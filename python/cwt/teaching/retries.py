"""Further tries after a request that failed for a passing reason, and the waits before them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import tenacity

from cwt.teaching.teacher import TeacherError

T = TypeVar("T")


class Stopped(Exception):
    """The run is to end: no further request is sent."""


class WaitTooLong(Exception):
    """A server asks for a wait that is longer than the longest allowed; the message says so."""


class Retries:
    """Repeats requests; the wait that a server asks one of them for (Retry-After) holds for all.

    Args:
        retries: further tries of a request.
        backoff: seconds before the first; doubles each time, with jitter.
        max_wait: seconds between two tries, at most.
        check: called with the seconds of each wait before it; may raise.

    Attributes:
        stopping: once it is set, whoever waits raises Stopped.
    """

    def __init__(
        self,
        retries: int,
        backoff: float,
        max_wait: float,
        check: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.stopping = asyncio.Event()
        self._retries, self._max_wait, self._check = retries, max_wait, check
        self._not_before = 0.0  # of the monotonic clock
        self._backoff = tenacity.wait_exponential(multiplier=backoff) + tenacity.wait_random(
            0, backoff
        )

    async def run(self, attempt: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Returns what a request brings, after as many tries as are allowed.

        Raises:
            TeacherError: of the last try, or one that no further try can mend.
            WaitTooLong: the server asks for too long a wait.
            Stopped: the run is to end.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + self._retries),
            retry=tenacity.retry_if_exception(_is_passing),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(attempt, *arguments)

    async def until_allowed(self) -> None:
        """Returns when the server may be asked again."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await self._pause(wait)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Returns the seconds before the next try; what the server asks for holds for all."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TeacherError) and error.wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + error.wait)
            return error.wait
        return min(self._max_wait, self._backoff(state))

    async def _sleep(self, seconds: float) -> None:
        if seconds > self._max_wait:  # only a server's own word can be; ours is capped
            raise WaitTooLong(
                f"the server asks for a wait of {seconds:.0f} s, more than max_wait "
                f"{self._max_wait:g}"
            )
        self._check(seconds)
        await self._pause(seconds)

    async def _pause(self, seconds: float) -> None:
        """Waits, unless the run is to end meanwhile."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise Stopped


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, TeacherError) and error.scope == "passing"
