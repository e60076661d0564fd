"""The `Student` protocol, which training, judging and evaluation use, and batched passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from cwt.at_hand import at_hand
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.students.loss import TokenLoss
from cwt.students.tokenized import Batch, TokenizedExample, TokenSequence

T = TypeVar("T")


class Student(Protocol):
    """A language model with its tokenizer and its prompt. B rows, T positions, V tokens, D states.

    Attributes:
        model: the torch module that is trained.
        dtype: format of the matrix products of every pass.
        pass_tokens: padded tokens of one scoring pass, at most; 0: the caller counts rows.
    """

    model: torch.nn.Module
    dtype: torch.dtype
    pass_tokens: int

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

    @property
    def loss_path(self) -> str:
        """How token_loss is computed: "linear_chunk_loss", or "logits: " and the reason."""

    def token_loss(
        self,
        batch: Batch,
        chunk_ids: torch.Tensor | None = None,
        model: torch.nn.Module | None = None,
        **options: Any,
    ) -> TokenLoss:
        """Returns chunk_loss of the n tokens that bear loss, row by row.

        Args:
            batch: the rows of one pass.
            chunk_ids: (n,) int64, the chunk of each token; None: those of the batch.
            model: called instead of the student's own model, such as accelerate's wrapper of it.
            options: of cwt_ext.chunk_loss. Where linear_chunk_loss computes the loss,
                mean_grad_norm=True gives `hidden`, the statistics of the gradients with respect to
                the hidden states, in place of `stats.mean_grad_norm`.
        """

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Returns the last hidden states, (B, T, D)."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Returns the greedy continuation of each prompt, with the token that ends it."""

    def sample(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """Returns a sampled continuation of each prompt; the seed decides it."""

    def ended(self, ids: Sequence[int]) -> bool:
        """Returns whether a continuation ends with a token that ends it."""

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes a folder that `load_student` opens.

        Args:
            folder: where.
            weights: whole, by their names in the model, where the model's own are divided over
                several processes; None: the model's own.
        """


def group_by_tokens(lengths: Sequence[int], tokens: int, rows: int = 0) -> list[list[int]]:
    """Returns the indices of some rows in groups, the shortest first.

    A group is one padded batch: its rows times its longest row are at most `tokens`, except where
    one row alone is longer.

    Args:
        lengths: tokens of each row.
        tokens: padded tokens of a group, at most; 0: no limit.
        rows: rows of a group, at most; 0: no limit.

    Example:
        >>> group_by_tokens([5, 1, 2, 9], tokens=6)
        [[1, 2], [0], [3]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = not groups or (rows and len(groups[-1]) >= rows)
        if full or (tokens and (len(groups[-1]) + 1) * lengths[i] > tokens):
            groups.append([])
        groups[-1].append(i)
    return groups


def iterate_batches(
    student: Student, sequences: Sequence[TokenSequence], batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Yields (indices of some sequences, their batch), the shortest first.

    Args:
        student: is put into evaluation mode; its pass_tokens limits a batch.
        sequences: the rows.
        batch_size: rows of one forward pass, where the student has no pass_tokens.
    """
    student.model.eval()
    lengths = [len(s.ids) for s in sequences]
    tokens = student.pass_tokens
    for part in group_by_tokens(lengths, tokens, 0 if tokens else batch_size):
        yield part, student.collate([sequences[i] for i in part])


@torch.no_grad()
def iterate_passes(
    student: Student,
    sequences: Sequence[TokenSequence],
    batch_size: int,
    compute: Callable[[Batch], T],
) -> Iterator[tuple[list[int], Batch, T]]:
    """Yields (indices of some sequences, their batch, what is computed of it), the shortest first.

    A batch that does not fit the memory of a GPU is halved.

    Args:
        student: is put into evaluation mode; its pass_tokens limits a batch.
        sequences: the rows.
        batch_size: rows of one forward pass, where the student has no pass_tokens.
        compute: a pass of the student, such as its token_loss.
    """
    for part, whole in iterate_batches(student, sequences, batch_size):
        waiting: list[tuple[list[int], Batch | None]] = [(part, whole)]
        while waiting:
            rows, ready = waiting.pop()
            at_hand("reading", [sequences[i].example for i in rows])
            batch = ready or student.collate([sequences[i] for i in rows])
            found = _if_it_fits(compute, batch)
            if found is not None:
                yield rows, batch, found
                continue
            half = len(rows) // 2
            if not half:
                raise UserError(
                    f"a row of {len(sequences[rows[0]].ids)} tokens does not fit the memory of "
                    f"{student.device}; use a smaller student, --dtype bfloat16 or shorter data."
                )
            waiting += [(rows[half:], None), (rows[:half], None)]


def iterate_logits(
    student: Student, sequences: Sequence[TokenSequence], batch_size: int
) -> Iterator[tuple[list[int], Batch, torch.Tensor]]:
    """Yields (indices of some sequences, their batch, its logits (n, V)), the shortest first."""
    return iterate_passes(student, sequences, batch_size, student.logits_at)


def _if_it_fits(compute: Callable[[Batch], T], batch: Batch) -> T | None:
    try:
        return compute(batch)
    except torch.OutOfMemoryError:
        return None
