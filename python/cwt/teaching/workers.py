"""One run: workers that take questions, ask, grade, and write each step down before the next."""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import NoReturn

from cwt.data.example import Example
from cwt.teaching.budget import (
    Budget,
    LimitReached,
    Tokens,
    most_tokens,
    paid_tokens,
    totals_of,
)
from cwt.teaching.config import TeachConfig
from cwt.teaching.grading import ACCEPTED, verdict
from cwt.teaching.journal import Journal, Row
from cwt.teaching.prompts import Style
from cwt.teaching.retries import Retries, Stopped, WaitTooLong
from cwt.teaching.teacher import Completion, Teacher, TeacherError

FINISHED, INTERRUPTED = "finished", "interrupted"


def digest(question: Example) -> str:
    """Returns a short name of a question's text and answer, by which it is known in the journal."""
    text = f"{question.question}\0{question.answer}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


class Run:
    """A run over all questions that goes on from what the journal holds.

    Args:
        config: how to ask, and the limits.
        questions: with unique ids.
        styles: in the order in which they are tried.
        teacher: who is asked; closed at the end.
        journal: of this folder, earlier runs included.
        progress: called with (share done, the running total as text).

    Attributes:
        kept: right rationales of every question, by id, in the order in which they came.
        totals: over all runs.
        stopped: `finished`, or the limit or the wait for which the run stopped.
        error: what the user must mend before another run can succeed; empty where nothing.
        stale: completions in the journal of questions that are not in the file (any more).
    """

    def __init__(
        self,
        config: TeachConfig,
        questions: list[Example],
        styles: list[Style],
        teacher: Teacher,
        journal: Journal,
        progress: Callable[[float, str], None],
    ) -> None:
        self.config, self.questions, self.styles = config, questions, styles
        self.teacher, self.journal, self.progress = teacher, journal, progress
        self.totals = totals_of(journal.rows)
        self.budget = Budget(config, self.totals)
        self.stopped, self.error, self.stale = INTERRUPTED, "", 0
        self.kept: defaultdict[str, list[str]] = defaultdict(list)
        self._asked: set[tuple[str, str, int]] = set()
        self._take_up(journal.rows)
        self._number = max((row["n"] for row in journal.rows if "n" in row), default=0)
        self._run = max((row["run"] for row in journal.rows), default=0) + 1
        self._retries = Retries(
            config.retries, config.backoff, config.max_wait, self.budget.check_time
        )
        self._stopping = self._retries.stopping
        self._noting: set[asyncio.Task[None]] = set()
        self._failed_in_a_row = self._done = 0
        self._last_failure = ""
        self._grader = ThreadPoolExecutor(1)  # the graders' libraries need not be thread-safe

    def _take_up(self, rows: list[Row]) -> None:
        """Counts the completions of earlier runs as asked, and keeps the right ones."""
        digests = {question.id: digest(question) for question in self.questions}
        for row in rows:
            if row["event"] != "completion":
                continue
            if digests.get(row["id"]) != row["question"]:
                self.stale += 1
                continue
            self._asked.add((row["id"], row["style"], row["sample"]))
            if row["verdict"] == ACCEPTED:
                self.kept[row["id"]].append(row["text"])

    async def go(self) -> None:
        """Asks until everything is asked or something ends the run; waits for what is in flight."""
        await self._append({"event": "start", "at": datetime.now(timezone.utc).isoformat()})
        pending = iter(self.questions)
        workers = [asyncio.create_task(self._work(pending)) for _ in range(self.config.concurrency)]
        try:
            # wait, unlike gather, leaves the workers alone when an interrupt comes: a worker that
            # is cancelled twice cannot write down the first time.
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
            if not self._stopping.is_set():
                self._finish()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await asyncio.gather(*self._noting, return_exceptions=True)
            await self.teacher.close()
            self._grader.shutdown()
            await self._append({"event": "end", "stopped": self.stopped})
            self.budget.update_seconds()

    def _finish(self) -> None:
        self.stopped = FINISHED
        if self._last_failure and not self.totals.completions:
            self.error = f"no request brought a completion; the last: {self._last_failure}."
            self.stopped = self.error

    async def _work(self, pending: Iterator[Example]) -> None:
        for question in pending:
            try:
                await self._question(question)
            except Stopped:
                return
            self._done += 1
            self._report()

    async def _question(self, question: Example) -> None:
        """Asks a question in one style after the other until one brings a right rationale."""
        kept = self.kept[question.id]
        for style in self.styles:
            for sample in range(self.config.samples):
                if self.config.enough and len(kept) >= self.config.enough:
                    return
                if (question.id, style.name, sample) in self._asked:
                    continue
                if not await self._ask(question, style, sample):
                    return
            if kept:
                return

    async def _ask(self, question: Example, style: Style, sample: int) -> bool:
        """Returns whether a completion came, after as many tries as are allowed."""
        try:
            await self._retries.run(self._attempt, question, style, sample)
        except (LimitReached, WaitTooLong) as limit:
            self._stop(str(limit))
        except TeacherError as error:
            self._count_failure(error)
            return False
        self._failed_in_a_row = 0
        return True

    async def _attempt(self, question: Example, style: Style, sample: int) -> None:
        """Sends one request and writes down how it ended.

        Raises:
            TeacherError: it brought nothing.
            LimitReached: it was not sent, a limit could be passed.
        """
        messages = style.messages(question)
        most = most_tokens(messages, self.config.max_tokens)
        await self._let_through(most)
        self._number += 1
        key = {
            "n": self._number, "id": question.id, "question": digest(question),
            "style": style.name, "sample": sample,
        }  # fmt: skip
        reserved = [most.prompt, most.completion]
        await self._append({"event": "request", **key, "reserved": reserved})
        self.totals.requests += 1
        began = time.monotonic()
        seed = None if self.config.seed < 0 else self.config.seed + sample
        try:
            completion = await self.teacher.complete(messages, seed)
        except (TeacherError, asyncio.CancelledError) as error:
            row: Row = {
                "event": "failure", **key, "error": str(error) or "interrupted",
                "charged": not isinstance(error, TeacherError) or error.charged,
                "reserved": reserved,
            }  # fmt: skip
            await self._append(row)
            await self.budget.settle(most, row, time.monotonic() - began)
            raise
        # It is paid for: an interrupt must not come between it and the disk.
        seconds = time.monotonic() - began
        noting = asyncio.create_task(self._note(question, key, completion, most, seconds))
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)
        await asyncio.shield(noting)

    async def _note(
        self, question: Example, key: Row, completion: Completion, most: Tokens, seconds: float
    ) -> None:
        """Grades a completion and writes it down."""
        row: Row = {"event": "completion", **key, "seconds": round(seconds, 3)}
        row |= await self._graded(question, completion, most)
        await self._append(row)
        self._asked.add((row["id"], row["style"], row["sample"]))
        if row["verdict"] == ACCEPTED:
            self.kept[question.id].append(row["text"])
        await self.budget.settle(most, row, seconds)

    async def _let_through(self, most: Tokens) -> None:
        """Returns when the server may be asked again and the request fits into the limits."""
        await self._retries.until_allowed()
        await self.budget.reserve(most)
        if self._stopping.is_set():
            await self.budget.release(most)
            raise Stopped

    async def _graded(self, question: Example, completion: Completion, most: Tokens) -> Row:
        """Returns the columns of a completion's row: text, cost, verdict."""
        loop, kept = asyncio.get_running_loop(), list(self.kept[question.id])
        try:
            said, given = await loop.run_in_executor(
                self._grader, verdict, completion, question.answer, kept
            )
        except Exception as error:  # the completion is paid: it goes to disk in any case
            said, given = f"grader failed: {type(error).__name__}", None
        paid = paid_tokens(completion, most)
        known = None not in (completion.prompt_tokens, completion.completion_tokens)
        return {
            "text": completion.text.strip(), "finish": completion.finish,
            "prompt_tokens": paid.prompt, "completion_tokens": paid.completion,
            "usage": "server" if known else "most", "verdict": said, "given": given,
        }  # fmt: skip

    def _count_failure(self, error: TeacherError) -> None:
        """Ends the run where no request can succeed, or none seems to."""
        self._last_failure = str(error)
        # A question that is refused says nothing of the others once one has been answered.
        if error.scope != "question" or not self.totals.completions:
            self._failed_in_a_row += 1
        if error.scope == "fatal":
            self._stop(f"the teacher refuses: {error}.", is_error=True)
        if self._failed_in_a_row >= self.config.give_up:
            self._stop(
                f"gave up after {self._failed_in_a_row} failed requests in a row; the last: "
                f"{error}.",
                is_error=True,
            )

    def _stop(self, reason: str, is_error: bool = False) -> NoReturn:
        """Ends the run in order: no further request is sent, those in flight are waited for."""
        if not self._stopping.is_set():
            self.stopped = reason
            self.error = reason if is_error else ""
            self._stopping.set()
        raise Stopped

    def _report(self) -> None:
        totals, done = self.totals, self._done
        tokens = totals.paid + totals.lost
        self.budget.update_seconds()
        priced = self.config.price_in or self.config.price_out
        money = f"{self.budget.money(tokens):.4g} spent, " if priced else ""
        right = totals.verdicts[ACCEPTED]
        self.progress(
            done / len(self.questions),
            f"{done} of {len(self.questions)} questions, {right} right of {totals.completions}, "
            f"{tokens.all} tokens, {money}{totals.seconds:.0f} s",
        )

    async def _append(self, row: Row) -> None:
        row |= {"run": self._run, "elapsed": round(self.budget.elapsed, 3)}
        await asyncio.to_thread(self.journal.append, row)
