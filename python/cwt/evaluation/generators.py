"""Who writes the answers of a student: the `Generator` protocol, and the model in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from cwt.at_hand import at_hand
from cwt.data.answers.statement import opened_thought
from cwt.errors import UserError
from cwt.progress import Progress, quiet
from cwt.students.student import Student, group_by_tokens


@dataclass(frozen=True)
class Written:
    """What was written for one question.

    Attributes:
        text: without special tokens.
        tokens: how many were generated, the one that ends the text included.
        ended: whether it ended by itself.
    """

    text: str
    tokens: int
    ended: bool


class Generator(Protocol):
    """Writes greedy answers."""

    def opening(self, question: str) -> str:
        """Returns the marker of a thought that the prompt of a question opens; empty: none."""

    def write(
        self, questions: Sequence[str], max_new_tokens: int, progress: Progress = quiet
    ) -> list[Written]:
        """Returns what is written for each question, in at most so many tokens."""


class LocalGenerator:
    """The model of a student in this process.

    Args:
        student: writes.
        batch_size: questions generated at once, at most; 0: no limit.
        batch_tokens: tokens of a batch, at most, the longest prompt and max_new_tokens counted for
            every question; 0: no limit. A batch that does not fit the memory of a GPU is halved.
    """

    def __init__(self, student: Student, batch_size: int = 100, batch_tokens: int = 0) -> None:
        self.student, self.batch_size, self.batch_tokens = student, batch_size, batch_tokens

    def opening(self, question: str) -> str:
        return opened_thought(self.student.text(self.student.prompt(question)))

    def write(
        self, questions: Sequence[str], max_new_tokens: int, progress: Progress = quiet
    ) -> list[Written]:
        prompts = [self.student.prompt(question) for question in questions]
        lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        waiting = group_by_tokens(lengths, self.batch_tokens, self.batch_size)[::-1]
        written: dict[int, list[int]] = {}
        while waiting:
            part = waiting.pop()
            at_hand("answering", [f"question {i + 1}" for i in part])
            rows = self._rows_if_they_fit([prompts[i] for i in part], max_new_tokens)
            if rows is None:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
                continue
            written.update(zip(part, rows, strict=True))
            progress(len(written) / len(prompts), "generating")
        return [written_by(self.student, written[i]) for i in range(len(prompts))]

    def _rows_if_they_fit(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[list[int]] | None:
        """Returns what is written; None where several prompts at once exceed the memory."""
        try:
            return self.student.generate(prompts, max_new_tokens)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise UserError(
                    f"the memory of {self.student.device} does not suffice to answer one question "
                    f"of {len(prompts[0])} tokens; use a smaller student or --dtype bfloat16."
                ) from None
            return None


def written_by(student: Student, ids: Sequence[int]) -> Written:
    """Returns what a student wrote, given the ids."""
    return Written(student.text(ids), len(ids), student.ended(ids))
