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
        prompt: how many of the tokens, the first ones, ask the question.
    """

    ids: list[int]
    chunks: list[int]
    shortened: int = 0
    prompt: int = 0

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
        encoder: whether an encoder reads the prompt by itself: it then ends as the tokenizer ends
            a text.

    Raises:
        UserError: no {question} in the template, or a tokenizer without an end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "{question}\n",
        encoder: bool = False,
    ) -> None:
        if "{question}" not in template:
            raise UserError(f"prompt template must hold {{question}}, got {template!r}.")
        if tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no end-of-sequence token; it needs one.")
        self.tokenizer, self.template = tokenizer, template
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        added, bos = tokenizer.encode(""), tokenizer.bos_token_id
        self.start = (bos,) if bos is not None and added[:1] == [bos] else ()
        self.encoder = encoder
        self.finish = tuple(added[len(self.start) :]) if encoder else ()

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
            ids = self._encode(before) + self.ids(question) + self._encode(after)
        else:
            ids = self._encode(self.template.replace("{question}", question))
        return self.start + ids + self.finish

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
        return TokenSequence(ids, chunks, prompt=len(tokenized.prompt))
    start, shortened = len(tokenized.prompt), len(ids) - max_length
    end = start + shortened  # of what is left out, right after the question
    if any(c >= 0 for c in chunks[:end]):
        return None
    return TokenSequence(ids[:start] + ids[end:], chunks[:start] + chunks[end:], shortened, start)


def whole_sequence(tokenized: TokenizedExample) -> TokenSequence:
    """Returns the row of all units that stay, all of which bear loss."""
    sequence = build_sequence(tokenized)
    assert sequence is not None  # without max_length there is always one
    return sequence


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass, right-padded; labels and chunk_ids are aligned with the logits.

    Attributes:
        input_ids: (B, T) int64; of an encoder-decoder (B, S), what the encoder reads.
        attention_mask: as input_ids, by length (a pad token may equal the end-of-sequence token).
        labels: (B, T) int64, the next token, IGNORE_INDEX where it bears no loss.
        chunk_ids: (B, T) int64, the chunk of the label, -1 where it bears no loss.
        decoder_input_ids: (B, T) int64, what the decoder reads; None: there is no decoder.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    chunk_ids: torch.Tensor
    decoder_input_ids: torch.Tensor | None = None

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What a model of transformers is called with."""
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

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
        there = {n: t.to(device) for n, t in vars(self).items() if t is not None}
        return Batch(**there)


def collate(sequences: Sequence[TokenSequence], pad: int) -> Batch:
    """Returns the batch of some sequences for a causal language model.

    Raises:
        ValueError: no sequence, or not one token of them bears loss.
    """
    read, labels, chunks = _shifted([s.ids for s in sequences], [s.chunks for s in sequences])
    return Batch(
        input_ids=_padded(read, pad),
        attention_mask=_padded([torch.ones_like(row) for row in read], 0),
        labels=labels,
        chunk_ids=chunks,
    )


def collate_pairs(sequences: Sequence[TokenSequence], pad: int, start: Sequence[int]) -> Batch:
    """Returns the batch of some sequences for an encoder-decoder.

    The encoder reads the question, the decoder `start` and the rest of the row.

    Args:
        sequences: the rows.
        pad: id that fills a row.
        start: ids that the decoder begins with, at least one; they bear no loss.

    Raises:
        ValueError: no sequence, or not one token of them bears loss.
    """
    asked = [torch.tensor(s.ids[: s.prompt]) for s in sequences]
    read, labels, chunks = _shifted(
        [[*start, *s.ids[s.prompt :]] for s in sequences],
        [[-1] * len(start) + s.chunks[s.prompt :] for s in sequences],
    )
    return Batch(
        input_ids=_padded(asked, pad),
        attention_mask=_padded([torch.ones_like(row) for row in asked], 0),
        labels=labels,
        chunk_ids=chunks,
        decoder_input_ids=_padded(read, pad),
    )


def _shifted(
    ids: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Returns what is read of each row, all but its last token; padded labels and their chunks."""
    if not any(chunk >= 0 for row in chunks for chunk in row):
        raise ValueError(f"a batch needs at least one label, got {len(ids)} sequences without.")
    rows, of_token = [torch.tensor(row) for row in ids], [torch.tensor(row)[1:] for row in chunks]
    labels = [r[1:].masked_fill(c < 0, IGNORE_INDEX) for r, c in zip(rows, of_token, strict=True)]
    return [row[:-1] for row in rows], _padded(labels, IGNORE_INDEX), _padded(of_token, -1)


def _padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)
