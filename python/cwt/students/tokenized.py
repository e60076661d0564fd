"""From texts to the rows of a batch: every token knows its unit and its chunk."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import Example
from .errors import UserError

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """An example in tokens, cut into units, with its segmentation.

    Attributes:
        prompt: ids of the question.
        units: ids of each unit; the last one ends with the end-of-sequence token.
        boundaries: 0 = b_0 < ... < b_M = len(units), in units; the answer is the last chunk.
    """

    id: str
    prompt: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]
    boundaries: tuple[int, ...]

    @property
    def chunks(self) -> int:
        return len(self.boundaries) - 1

    def chunk_of_units(self) -> list[int]:
        """Returns the chunk index of every unit."""
        spans = zip(self.boundaries, self.boundaries[1:], strict=False)
        return [m for m, (a, b) in enumerate(spans) for _ in range(a, b)]


@dataclass(frozen=True)
class Sample:
    """One training row: ids, and for each token its chunk if it bears loss, else -1."""

    ids: list[int]
    chunks: list[int]

    @property
    def loss_tokens(self) -> int:
        return sum(chunk >= 0 for chunk in self.chunks)


class Encoder:
    """Turns examples into ids with the tokenizer of the student.

    Each unit is tokenized by itself, with the white space before it, so that leaving a unit out
    changes no token of another.

    Args:
        tokenizer: of the student.
        template: the prompt, with {question} in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "{question}\n") -> None:
        if "{question}" not in template:
            raise UserError(f"prompt template must hold {{question}}, got {template!r}.")
        if tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no end-of-sequence token; it needs one.")
        self.tokenizer, self.template = tokenizer, template
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        start = tokenizer.encode("")
        bos = tokenizer.bos_token_id
        self.start = (bos,) if bos is not None and start[:1] == [bos] else ()

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, question: str) -> tuple[int, ...]:
        return self.start + self.ids(self.template.replace("{question}", question))

    def encode(self, example: Example, boundaries: Sequence[int]) -> Encoded:
        units = [self.ids(unit) for unit in example.units]
        units[-1] = (*units[-1], self.eos)
        return Encoded(example.id, self.prompt(example.question), tuple(units), tuple(boundaries))

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def sample(
    encoded: Encoded,
    keep: Collection[int] | None = None,
    chunk: int | None = None,
    answer_only: bool = False,
    max_length: int = 0,
) -> Sample | None:
    """Returns one training row, or None where its target alone is longer than max_length.

    Args:
        encoded: the example.
        keep: indices of the units that stay; None keeps all.
        chunk: train on this chunk with everything before it as context and nothing after it;
            None trains on the whole rationale.
        answer_only: leave the whole rationale out but for the answer.
        max_length: in tokens, 0 for no limit; a longer context is cut at its left end, the
            target never is.
    """
    ids, chunks = list(encoded.prompt), [-1] * len(encoded.prompt)
    of_unit = encoded.chunk_of_units()
    for u, unit in enumerate(encoded.units):
        if answer_only and of_unit[u] != encoded.chunks - 1:
            continue
        if keep is not None and u not in keep:
            continue
        if chunk is not None and of_unit[u] > chunk:
            break
        bears_loss = chunk is None or of_unit[u] == chunk
        ids += unit
        chunks += [of_unit[u] if bears_loss else -1] * len(unit)
    if max_length and len(ids) > max_length:
        if sum(c >= 0 for c in chunks) >= max_length:
            return None
        ids, chunks = ids[-max_length:], chunks[-max_length:]
    return Sample(ids, chunks)


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, right-padded; labels and chunk_ids are aligned with the logits.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, by length (a pad token may equal the end-of-sequence token).
        labels: (B, T) int64, the next token, IGNORE where it bears no loss.
        chunk_ids: (B, T) int64, the chunk of the label, -1 where it bears no loss.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    chunk_ids: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """(B, T) bool: where a label bears loss."""
        return self.chunk_ids >= 0

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in vars(self).values()))


def collate(samples: Sequence[Sample], pad: int) -> Batch:
    """Returns the batch of some samples.

    Raises:
        ValueError: no sample, or not one token of them bears loss.
    """
    if not samples or not any(s.loss_tokens for s in samples):
        raise ValueError(f"a batch needs at least one label, got {len(samples)} samples without.")
    longest = max(len(s.ids) for s in samples) - 1
    input_ids = torch.full((len(samples), longest), pad)
    mask = torch.zeros_like(input_ids)
    labels, chunk_ids = torch.full_like(input_ids, IGNORE), torch.full_like(input_ids, -1)
    for i, s in enumerate(samples):
        n = len(s.ids) - 1
        ids, chunks = torch.tensor(s.ids), torch.tensor(s.chunks)
        input_ids[i, :n], mask[i, :n] = ids[:-1], 1
        chunk_ids[i, :n] = chunks[1:]
        labels[i, :n] = torch.where(chunks[1:] >= 0, ids[1:], IGNORE)
    return Batch(input_ids, mask, labels, chunk_ids)


@contextmanager
def head_of_rows(model: PreTrainedModel, rows: torch.Tensor) -> Iterator[None]:
    """Within it the model's logits are those of some rows, (1, n, V): its head is given no other.

    What a model does to its logits (a softcap, a scale) stays the model's own work.

    Args:
        model: any with output embeddings.
        rows: (B, T) bool, n of them set.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows][None],))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    encoder: Encoder,
    rows: Sequence[Sample],
    batch_size: int,
    **options: Any,
) -> Iterator[tuple[list[int], Batch, Any]]:
    """Yields (indices of some rows, their batch, the model's output), the shortest rows first.

    The output's logits are those of batch.rows, (1, n, V).
    """
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        batch = collate([rows[i] for i in part], encoder.pad).to(model.device)
        with head_of_rows(model, batch.rows):
            output = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **options,
            )
        yield part, batch, output
