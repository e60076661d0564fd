"""Turns examples into the rows of a batch, in which every token has its chunk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from cwt.data.example import Example
from cwt.errors import UserError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedExample:
    """An example in tokens.

    Attributes:
        example: with its chunks and the units that stay.
        prompt: ids of the question.
        units: ids of each unit; the last one ends with the end-of-sequence token.
    """

    example: Example
    prompt: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    def keeping(self, units: frozenset[int] | None) -> "TokenizedExample":
        """Returns the example in which only these units stay; None: all of them."""
        return replace(self, example=self.example.keeping(units))

    def unit_is_chunk(self) -> "TokenizedExample":
        """Returns the example with every unit a chunk of its own."""
        return replace(self, example=self.example.chunked(range(len(self.units) + 1)))


@dataclass(frozen=True)
class TokenSequence:
    """One row: ids, and for each token its chunk if it bears loss, else -1.

    Attributes:
        ids: of all tokens.
        chunks: of each token, -1 where it bears no loss.
        shortened: tokens of context left out, because the row would have been too long.
        example: id of the example.
    """

    ids: list[int]
    chunks: list[int]
    shortened: int = 0
    example: str = ""

    @property
    def loss_tokens(self) -> int:
        """How many tokens bear loss."""
        return sum(chunk >= 0 for chunk in self.chunks)


class PromptTokenizer:
    """Turns questions and units into ids with the tokenizer of the student.

    Each unit is tokenized by itself, with the white space before it, so that leaving a unit out
    changes no token of another.

    Args:
        tokenizer: of the student.
        template: the prompt, with {question} in it.

    Raises:
        UserError: no {question} in the template, or a tokenizer without an end-of-sequence token.
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

    @property
    def special_texts(self) -> tuple[str, str]:
        """The texts of the tokens that begin (empty: none is added) and end a sequence."""
        return str(self.tokenizer.bos_token) if self.start else "", str(self.tokenizer.eos_token)

    def ids(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text, without special tokens: their names in a text stay text."""
        return self._encode(text, split_special_tokens=True)

    def _encode(self, text: str, **options: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, **options))

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of some ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt(self, question: str) -> tuple[int, ...]:
        """Returns the ids of the prompt that asks a question.

        The template may name special tokens, such as those of a chat; a question that does is text.
        """
        if any(token in question for token in self.tokenizer.all_special_tokens):
            before, after = self.template.split("{question}", 1)
            return self.start + self._encode(before) + self.ids(question) + self._encode(after)
        return self.start + self._encode(self.template.replace("{question}", question))

    def tokenize(self, example: Example) -> TokenizedExample:
        """Returns an example in tokens."""
        units = [self.ids(unit) for unit in example.units]
        units[-1] = (*units[-1], self.eos)
        return TokenizedExample(example, self.prompt(example.question), tuple(units))


def build_sequence(
    tokenized: TokenizedExample,
    chunk: int | None = None,
    answer_only: bool = False,
    max_length: int = 0,
) -> TokenSequence | None:
    """Returns one row of the units that stay; None if question and target exceed max_length.

    Args:
        tokenized: the example.
        chunk: train on this chunk with everything before it as context and nothing after it;
            None trains on the whole rationale.
        answer_only: leave out the whole rationale but the answer.
        max_length: tokens of the row, at most; 0: no limit. A longer row loses the beginning of
            the rationale that is context, never a token of the question or of its target.
    """
    example = tokenized.example
    ids, chunks = list(tokenized.prompt), [-1] * len(tokenized.prompt)
    of_unit, last, kept = example.chunk_of_units(), len(tokenized.units) - 1, example.kept
    for u, unit in enumerate(tokenized.units):
        if u not in kept or (answer_only and u != last):
            continue
        if chunk is not None and of_unit[u] > chunk:
            break
        bears_loss = chunk is None or of_unit[u] == chunk
        ids += unit
        chunks += [of_unit[u] if bears_loss else -1] * len(unit)
    if not max_length or len(ids) <= max_length:
        return TokenSequence(ids, chunks, example=example.id)
    start, shortened = len(tokenized.prompt), len(ids) - max_length
    end = start + shortened  # of what is left out, right after the question
    if any(c >= 0 for c in chunks[:end]):
        return None
    ids, chunks = ids[:start] + ids[end:], chunks[:start] + chunks[end:]
    return TokenSequence(ids, chunks, shortened, example.id)


def whole_sequence(tokenized: TokenizedExample) -> TokenSequence:
    """Returns the row of all units that stay, all of which bear loss."""
    sequence = build_sequence(tokenized)
    assert sequence is not None  # without max_length there is always one
    return sequence


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass, right-padded; labels and chunk_ids are aligned with the logits.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, by length (a pad token may equal the end-of-sequence token).
        labels: (B, T) int64, the next token, IGNORE_INDEX where it bears no loss.
        chunk_ids: (B, T) int64, the chunk of the label, -1 where it bears no loss.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    chunk_ids: torch.Tensor

    @property
    def bears_loss(self) -> torch.Tensor:
        """(B, T) bool: where a label bears loss."""
        return self.chunk_ids >= 0

    @property
    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and chunk ids of the n tokens that bear loss, each (n,) int64."""
        return self.labels[self.bears_loss], self.chunk_ids[self.bears_loss]

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on a device."""
        return Batch(*(t.to(device) for t in vars(self).values()))


def collate(sequences: Sequence[TokenSequence], pad: int) -> Batch:
    """Returns the batch of some sequences.

    Raises:
        ValueError: no sequence, or not one token of them bears loss.
    """
    if not any(s.loss_tokens for s in sequences):
        raise ValueError(
            f"a batch needs at least one label, got {len(sequences)} sequences without."
        )
    ids = [torch.tensor(s.ids) for s in sequences]
    chunks = [torch.tensor(s.chunks)[1:] for s in sequences]
    labels = [i[1:].masked_fill(c < 0, IGNORE_INDEX) for i, c in zip(ids, chunks, strict=True)]

    def padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=value)

    return Batch(
        input_ids=padded([i[:-1] for i in ids], pad),
        attention_mask=padded([torch.ones_like(i[:-1]) for i in ids], 0),
        labels=padded(labels, IGNORE_INDEX),
        chunk_ids=padded(chunks, -1),
    )
