"""The running total of tokens, money and time, and the limits that it may not pass.

A request is paid for when it comes back, so what is in flight must count before: each one reserves
the most that it can cost, and one that does not fit is not sent. What a server may have charged
for without its answer arriving (a time-out, a dropped connection, a killed run) counts in full.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cwt.teaching.config import TeachConfig
from cwt.teaching.journal import Row
from cwt.teaching.teacher import Completion, Message

# Tokens that a server's chat template may add around the messages.
TEMPLATE_TOKENS = 64


class LimitReached(Exception):
    """The next request could pass a limit; the message names it."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of completions."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def all(self) -> int:
        """Both together."""
        return self.prompt + self.completion


def most_tokens(messages: list[Message], max_tokens: int) -> Tokens:
    """Returns the most that a request can cost: no token is shorter than one byte of UTF-8."""
    prompt = sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
    return Tokens(prompt + TEMPLATE_TOKENS, max_tokens)


def paid_tokens(completion: Completion, most: Tokens) -> Tokens:
    """Returns what a completion cost; where the server did not say, the most it can have been."""
    prompt, written = completion.prompt_tokens, completion.completion_tokens
    return Tokens(
        most.prompt if prompt is None else prompt, most.completion if written is None else written
    )


@dataclass
class Totals:
    """The sum over all runs in a folder.

    Attributes:
        paid: tokens of the completions that arrived.
        lost: the most tokens that requests can have cost whose answer did not arrive whole.
        seconds: wall-clock time.
        requests: sent, further tries included.
        completions: arrived.
        unpriced: completions for which the server gave no usage; counted at the most they can be.
        verdicts: completions by verdict.
        failures: failed requests by reason.
    """

    paid: Tokens = Tokens()
    lost: Tokens = Tokens()
    seconds: float = 0.0
    requests: int = 0
    completions: int = 0
    unpriced: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Counts a completion or a failure, as it stands in the journal."""
        if row["event"] == "completion":
            self.paid += Tokens(row["prompt_tokens"], row["completion_tokens"])
            self.completions += 1
            self.unpriced += row["usage"] == "most"
            self.verdicts[row["verdict"]] += 1
        elif row["event"] == "failure":
            self.failures[row["error"].split(": ")[0]] += 1
            if row["charged"]:
                self.lost += Tokens(*row["reserved"])


def totals_of(rows: Iterable[Row]) -> Totals:
    """Returns the totals of a journal; a request without an end was in flight at a kill: lost."""
    totals = Totals()
    open_requests: dict[int, Row] = {}
    seconds: Counter[int] = Counter()
    for row in rows:
        seconds[row["run"]] = max(seconds[row["run"]], row["elapsed"])
        if row["event"] == "request":
            totals.requests += 1
            open_requests[row["n"]] = row
        elif row["event"] in ("completion", "failure"):
            open_requests.pop(row["n"], None)
        totals.add(row)
    for row in open_requests.values():
        totals.lost += Tokens(*row["reserved"])
        totals.failures["in flight when a run was killed"] += 1
    totals.seconds = sum(seconds.values())
    return totals


class Budget:
    """Lets requests through as long as no limit can be passed by them.

    Args:
        config: the prices and the limits.
        totals: of the runs before this one; kept up to date.
    """

    def __init__(self, config: TeachConfig, totals: Totals) -> None:
        self.config, self.totals = config, totals
        self._earlier_seconds, self._began = totals.seconds, time.monotonic()
        self._longest = 0.0
        self._in_flight, self._reserved = 0, Tokens()
        self._changed = asyncio.Condition()

    @property
    def elapsed(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._began

    def money(self, tokens: Tokens) -> float:
        """Returns what tokens cost at the prices of the configuration."""
        prompt = tokens.prompt * self.config.price_in
        return (prompt + tokens.completion * self.config.price_out) / 1e6

    def update_seconds(self) -> None:
        """Brings the running total of time up to now."""
        self.totals.seconds = self._earlier_seconds + self.elapsed

    async def reserve(self, most: Tokens) -> None:
        """Returns when a request of at most so many tokens fits, with those in flight.

        Raises:
            LimitReached: it does not fit, even when those in flight are back.
        """
        async with self._changed:
            while reason := self._too_much(most):
                if not self._in_flight:
                    raise LimitReached(reason)
                await self._changed.wait()
            self._in_flight += 1
            self._reserved += most

    async def settle(self, most: Tokens, row: Row, seconds: float) -> None:
        """Counts how a request ended, and gives back what it had reserved.

        Args:
            most: what was reserved.
            row: the completion or failure, as in the journal.
            seconds: how long the request took.
        """
        self._longest = max(self._longest, seconds)
        self.totals.add(row)
        await self.release(most)

    async def release(self, most: Tokens) -> None:
        """Gives back what was reserved."""
        async with self._changed:
            self._in_flight -= 1
            self._reserved -= most
            self._changed.notify_all()

    def check_time(self, ahead: float = 0.0) -> None:
        """Raises LimitReached where the limit of time is nearer than `ahead` seconds."""
        limit = self.config.limit_seconds
        used = self._earlier_seconds + self.elapsed
        if limit and used + ahead > limit:
            raise LimitReached(
                f"limit_seconds {limit:g}: {used:.1f} s used, {ahead:.1f} s more are needed"
            )

    def _too_much(self, most: Tokens) -> str:
        """Returns why a request does not fit; empty where it does."""
        try:
            self.check_time(self._longest)
        except LimitReached as reason:
            return str(reason)
        used = self.totals.paid + self.totals.lost
        worst = used + self._reserved + most
        limits = self.config
        if limits.limit_tokens and worst.all > limits.limit_tokens:
            return (
                f"limit_tokens {limits.limit_tokens}: {used.all} used, the next request may take "
                f"{most.all}"
            )
        if limits.limit_money and self.money(worst) > limits.limit_money:
            return (
                f"limit_money {limits.limit_money:g}: {self.money(used):.6g} spent, the next "
                f"request may cost {self.money(most):.6g}"
            )
        return ""
