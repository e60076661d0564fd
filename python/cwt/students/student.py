"""The `Student` protocol, which training, judging and evaluation use, and batched passes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from cwt.data.example import Example
from cwt.students.tokenized import Batch, TokenizedExample, TokenSequence


class Student(Protocol):
    """A language model with its tokenizer and its prompt. B rows, T positions, V tokens, D states.

    Attributes:
        model: the torch module that is trained.
    """

    model: torch.nn.Module

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    def to(self, device: torch.device) -> "Student":
        """Moves the model to a device and returns the student."""

    def ids(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text, without special tokens."""

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of some ids, without special tokens."""

    def prompt(self, question: str) -> tuple[int, ...]:
        """Returns the ids of the prompt that asks a question."""

    def tokenize(self, example: Example) -> TokenizedExample:
        """Returns an example in tokens, unit by unit."""

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        """Returns the batch of some sequences, on the student's device."""

    def logits_at(self, batch: Batch, model: torch.nn.Module | None = None) -> torch.Tensor:
        """Returns the logits of the n tokens that bear loss, (n, V), row by row.

        Args:
            batch: the rows of one pass.
            model: called instead of the student's own model, such as accelerate's wrapper of it.
        """

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Returns the last hidden states, (B, T, D)."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Returns the greedy continuation of each prompt, with its end-of-sequence token."""

    def sample(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """Returns a sampled continuation of each prompt; the seed decides it."""

    def ended(self, ids: Sequence[int]) -> bool:
        """Returns whether a continuation ends with the end-of-sequence token."""

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_student` opens."""


def iterate_batches(
    student: Student, sequences: Sequence[TokenSequence], batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Yields (indices of some sequences, their batch), the shortest first.

    Args:
        student: is put into evaluation mode.
        sequences: the rows.
        batch_size: rows of one forward pass.
    """
    student.model.eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        yield part, student.collate([sequences[i] for i in part])


@torch.no_grad()
def iterate_logits(
    student: Student, sequences: Sequence[TokenSequence], batch_size: int
) -> Iterator[tuple[list[int], Batch, torch.Tensor]]:
    """Yields (indices of some sequences, their batch, its logits (n, V)), the shortest first."""
    for part, batch in iterate_batches(student, sequences, batch_size):
        yield part, batch, student.logits_at(batch)
