"""Answers of a student that an OpenAI-compatible server serves, such as vLLM's."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cwt.data.answers.statement import opened_thought
from cwt.errors import UserError
from cwt.evaluation.generators import Written
from cwt.progress import Progress, quiet
from cwt.students.tokenized import PromptTokenizer
from cwt.teaching.client import UNREADABLE, Client, in_a_loop
from cwt.teaching.retries import Retries, WaitTooLong
from cwt.teaching.teacher import TeacherError

KEY = "CWT_SERVER_KEY"  # environment variable; no file of a run says which key goes where


@dataclass(frozen=True)
class ServerOptions:
    """A server and how it is asked.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        model: name of the student there.
        concurrency: questions that it is asked at once.
        timeout: seconds that one answer may take.
        retries: further tries after a request that failed for a passing reason.
        backoff: seconds before the first of them; doubles each time, with jitter.
        max_wait: seconds between two tries, at most.
    """

    base_url: str
    model: str
    concurrency: int = 32
    timeout: float = 600.0
    retries: int = 6
    backoff: float = 1.0
    max_wait: float = 120.0


class ServerGenerator:
    """A student behind /v1/completions; implements `Generator`.

    It is sent the text that its tokenizer turns into the ids that the student was trained on, or
    those ids where no text does, and greedy sampling. Where the server counts another number of
    tokens in a prompt, it read another one: an error.

    Args:
        tokenizer: of the student, with its prompt.
        options: the server.
    """

    def __init__(self, tokenizer: PromptTokenizer, options: ServerOptions) -> None:
        self.tokenizer, self.options = tokenizer, options

    def opening(self, question: str) -> str:
        return opened_thought(self.tokenizer.text(self.tokenizer.prompt(question)))

    def write(
        self, questions: Sequence[str], max_new_tokens: int, progress: Progress = quiet
    ) -> list[Written]:
        """Returns what the server writes for each question; see `Generator.write`.

        Raises:
            UserError: it cannot be reached, refuses, or read another prompt.
        """
        return in_a_loop(_Asking(self, questions, max_new_tokens, progress).all())


class _Asking:
    """Some questions that are asked side by side, on one event loop."""

    def __init__(
        self,
        generator: ServerGenerator,
        questions: Sequence[str],
        max_new_tokens: int,
        progress: Progress,
    ) -> None:
        self.tokenizer, self.options = generator.tokenizer, generator.options
        self.questions, self.max_new_tokens, self.progress = questions, max_new_tokens, progress
        o = self.options
        self.client = Client(o.base_url, "completions", KEY, o.timeout, o.concurrency)
        self.retries = Retries(o.retries, o.backoff, o.max_wait)
        self.written: dict[int, Written] = {}

    async def all(self) -> list[Written]:
        pending = iter(range(len(self.questions)))
        asked = min(self.options.concurrency, len(self.questions))
        workers = [asyncio.create_task(self._work(pending)) for _ in range(asked)]
        try:
            await asyncio.gather(*workers)
        except (TeacherError, WaitTooLong) as error:
            raise UserError(
                f"--base-url {self.options.base_url}, model {self.options.model!r}: {error}."
            ) from None
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.client.close()
        return [self.written[i] for i in range(len(self.questions))]

    async def _work(self, pending: Iterator[int]) -> None:
        for i in pending:
            self.written[i] = await self.retries.run(self._ask, self.questions[i])
            self.progress(len(self.written) / len(self.questions), "generating")

    async def _ask(self, question: str) -> Written:
        await self.retries.until_allowed()
        ids = self.tokenizer.prompt(question)
        payload: dict[str, Any] = {
            "model": self.options.model,
            "prompt": self.tokenizer.prompt_text(question) or list(ids),
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
        }
        choice, (read, tokens) = await self.client.choice(payload)
        try:
            text = self.client.without_key(choice["text"])
            ended = str(choice.get("finish_reason") or "stop") == "stop"
        except UNREADABLE as error:
            raise self.client.not_a_completion(error) from None
        if read is not None and read != len(ids):
            raise TeacherError(
                f"it read {read} tokens where the prompt has {len(ids)}: it serves another "
                "tokenizer, or adds special tokens",
                scope="fatal",
            )
        if tokens is None:
            tokens = len(self.tokenizer.ids(text)) + ended
        return Written(text, tokens, ended)
