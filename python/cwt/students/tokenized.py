"""Turns examples into the rows of a batch, in which every token has its chunk."""

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from cwt.data.answers.statement import CLOSE_MARKER, OPEN_MARKER, opened_thought
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.students.chat import PromptStyle, chat_prompt, save_style

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Written:
    """The tokens of the units that stay, one entry a token.

    Attributes:
        ids: of the tokens.
        units: the unit in which each token begins.
        places: which token of that unit's own it is (of the whole text): the same token at the same
            character. Negative where the whole text has another one there.
        starts: the character of the unit at which it begins.
    """

    ids: Sequence[int]
    units: Sequence[int]
    places: Sequence[int]
    starts: Sequence[int]


@dataclass(frozen=True)
class TokenizedExample:
    """An example in tokens.

    Attributes:
        example: with its chunks and the units that stay.
        prompt: ids of the question.
        units: ids of each unit in the whole text, a token with the unit in which it begins; the
            last one ends with the token that ends a sequence.
        starts: for each unit and token, the character of the unit at which it begins.
        tokenizer: which made it.
    """

    example: Example
    prompt: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]
    starts: Sequence[Sequence[int]] = ()
    tokenizer: "PromptTokenizer | None" = field(default=None, repr=False, compare=False)

    def keeping(self, units: frozenset[int] | None) -> "TokenizedExample":
        """Returns the example in which only these units stay; None: all of them."""
        return replace(self, example=self.example.keeping(units))

    def unit_is_chunk(self) -> "TokenizedExample":
        """Returns the example with every unit a chunk of its own."""
        return replace(self, example=self.example.chunked(range(len(self.units) + 1)))

    @cached_property
    def written(self) -> Written:
        """The tokens of the units that stay, as the student would write their text."""
        kept = sorted(self.example.kept)
        if len(kept) == len(self.units):
            ids, starts = self.units, self.starts
            places: list[Sequence[int]] = [range(len(unit)) for unit in ids]
        else:
            assert self.tokenizer is not None
            texts = [self.example.units[u] for u in kept]
            ids, starts = self.tokenizer.units(self.example.question, texts, self.prompt)
            places = [
                _places(self.units[u], self.starts[u], *found)
                for u, *found in zip(kept, ids, starts, strict=True)
            ]
        flat = (array("i", itertools.chain.from_iterable(part)) for part in (ids, places, starts))
        units = array("i", [u for u, unit in zip(kept, ids, strict=True) for _ in unit])
        tokens, where, begins = flat
        return Written(tokens, units, where, begins)


def _places(
    whole: Sequence[int], whole_starts: Sequence[int], ids: Sequence[int], starts: Sequence[int]
) -> list[int]:
    """Returns which token of a unit's whole text each of its tokens is; negative: none of them."""
    seats = zip(whole_starts, whole, strict=True)
    known = {(start, token): p for p, (start, token) in reversed(list(enumerate(seats)))}
    found = zip(starts, ids, strict=True)
    return [known.pop((start, token), -1 - i) for i, (start, token) in enumerate(found)]


@dataclass(frozen=True)
class TokenSequence:
    """One row: ids, and for each token its chunk if it bears loss, else -1.

    Attributes:
        ids: of all tokens.
        chunks: of each token, -1 where it bears no loss.
        shortened: tokens of context left out, because the row would have been too long.
        prompt: how many of the tokens, the first ones, ask the question.
        example: id of the example.
    """

    ids: list[int]
    chunks: list[int]
    shortened: int = 0
    prompt: int = 0
    example: str = ""

    @property
    def loss_tokens(self) -> int:
        """How many tokens bear loss."""
        return sum(chunk >= 0 for chunk in self.chunks)


class PromptTokenizer:
    """Turns questions and rationales into ids with the tokenizer of the student.

    A rationale is tokenized as a whole, as it goes on from its prompt, and each token belongs to
    the unit in which it begins.

    Args:
        tokenizer: of the student.
        style: the prompt, or a template with {question} in it.
        encoder: whether an encoder reads the prompt by itself: it then ends as the tokenizer ends
            a text.

    Attributes:
        template: the prompt with {question} in it, as it is tokenized.
        eos: id that ends what the student writes: of the tokenizer, or of a turn of its chat.
        ends: all ids after which it has ended.
        pad: id that fills a row.
        start: ids that begin a text.

    Raises:
        UserError: no {question} in the template, no chat template where the style is a chat, or a
            tokenizer without a token that ends a sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        style: PromptStyle | str = PromptStyle(),  # noqa: B008 - frozen
        encoder: bool = False,
    ) -> None:
        self.style = PromptStyle(style) if isinstance(style, str) else style
        self.tokenizer, self.template = tokenizer, self.style.template
        end = None
        if self.style.chat:
            self.template, end = chat_prompt(tokenizer, self.style)
        ends = [i for i in (end, tokenizer.eos_token_id) if i is not None]
        if not ends:
            raise UserError("the student's tokenizer has no end-of-sequence token; it needs one.")
        self.eos: int = ends[0]
        self.ends = frozenset(ends)
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        added_tokens = tokenizer.added_tokens_decoder.values()
        self._special = {str(t) for t in added_tokens if t.special} | {
            *tokenizer.all_special_tokens
        }
        added, bos = tokenizer.encode(""), tokenizer.bos_token_id
        begins = bos is not None and added[:1] == [bos]
        self.encoder = encoder
        self.finish = tuple(added[begins:]) if encoder else ()
        # A chat template names the token that begins a sequence itself; a decoder's text is none.
        self.start = (bos,) if begins and (encoder or not self.style.chat) else ()

    @property
    def special_texts(self) -> tuple[str, str]:
        """The texts of the tokens that begin (empty: none is added) and end a sequence."""
        end = self.tokenizer.convert_ids_to_tokens(self.eos)
        return str(self.tokenizer.bos_token) if self.start else "", str(end)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer and how the student is asked."""
        save_style(self.tokenizer, self.style, folder, bool(self.start))

    def ids(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text, without special tokens: their names in a text stay text."""
        return self._encode(text, split_special_tokens=True)

    def _encode(self, text: str, **options: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, **options))

    def _encode_at(self, text: str, **options: bool) -> tuple[list[int], list[int]]:
        """Returns the ids of a text, and the character at which each token begins."""
        if not self.tokenizer.is_fast:  # it knows no characters
            ids = self._encode(text, **options)
            return list(ids), [len(self.tokenizer.decode(list(ids[:i]))) for i in range(len(ids))]
        found = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, **options
        )
        return found["input_ids"], [start for start, _ in found["offset_mapping"]]

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of some ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt(self, question: str) -> tuple[int, ...]:
        """Returns the ids of the prompt that asks a question.

        The template may name special tokens, such as those of a chat; a question that does is text.
        """
        if self._names_special(question):
            before, after = self.template.split("{question}", 1)
            ids = self._encode(before) + self.ids(question) + self._encode(after)
        else:
            ids = self._encode(self.template.replace("{question}", question))
        return (() if self.style.chat else self.start) + ids + self.finish

    def template_tokens(self, question: str) -> int:
        """Returns how many tokens of the prompt do not begin in the question."""
        begin = self.template.index("{question}")
        asked = self.template.replace("{question}", question)
        if self._names_special(question):
            return len(self.prompt(question)) - len(self.ids(question))
        _, starts = self._encode_at(asked, split_special_tokens=False)
        inside = sum(begin <= start < begin + len(question) for start in starts)
        return len(self.prompt(question)) - inside

    def prompt_text(self, question: str) -> str | None:
        """Returns a text that a server's plain call of the tokenizer turns into the prompt's ids.

        Where a template of a chat names the token that begins a sequence, and the tokenizer adds it
        too, it is left out. None: no text does, as where a question names a special token.
        """
        text = self.template.replace("{question}", question)
        shorter = text.removeprefix(str(self.tokenizer.bos_token or ""))
        wanted = list(self.prompt(question))
        return next((t for t in (text, shorter) if self.tokenizer.encode(t) == wanted), None)

    def _names_special(self, text: str) -> bool:
        return any(token in text for token in self._special)

    def tokenize(self, example: Example) -> TokenizedExample:
        """Returns an example in tokens.

        Where the prompt opens a thought, the rationale does not open it again.

        Raises:
            UserError: the prompt opens a thought that the rationale does not close.
        """
        if opened_thought(self.template.split("{question}", 1)[1]):
            example = _inside_thought(example)
        prompt = self.prompt(example.question)
        ids, starts = self.units(example.question, example.units, prompt)
        return TokenizedExample(example, prompt, ids, starts, self)

    def units(
        self, question: str, texts: Sequence[str], prompt: Sequence[int]
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[Sequence[int], ...]]:
        """Returns the ids of each unit, and the character of the unit at which each token begins.

        The units are one text, tokenized once. Where a unit would have no token that begins in it,
        each is tokenized by itself.

        Args:
            question: what the prompt asks.
            texts: the units, the last one being the end of the text.
            prompt: ids of the prompt.
        """
        ends = list(itertools.accumulate(map(len, texts)))
        ids: list[list[int]] = [[] for _ in texts]
        starts = [array("i") for _ in texts]
        unit = 0
        for token, start in zip(*self._going_on(question, "".join(texts), prompt), strict=True):
            unit = max(unit, min(bisect_right(ends, start), len(texts) - 1))
            ids[unit].append(token)
            starts[unit].append(max(0, start - (ends[unit] - len(texts[unit]))))
        if not all(ids):
            pairs = [self._encode_at(text, split_special_tokens=True) for text in texts]
            ids, starts = [found for found, _ in pairs], [array("i", at) for _, at in pairs]
        ids[-1].append(self.eos)
        starts[-1].append(len(texts[-1]))
        return tuple(map(tuple, ids)), tuple(starts)

    def _going_on(
        self, question: str, text: str, prompt: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Returns the ids of a text that follows the prompt, and where its tokens begin.

        They are those that it has together with the prompt, if the prompt is the same tokens there;
        else those that it has alone, without the space that a tokenizer may put before a text.
        """
        asked = self.template.replace("{question}", question)
        own = prompt if self.style.chat else prompt[len(self.start) :]
        special = self._names_special(self.template)
        if not self.encoder and not (special and self._names_special(question + text)):
            ids, starts = self._encode_at(asked + text, split_special_tokens=not special)
            if tuple(ids[: len(own)]) == tuple(own):
                return ids[len(own) :], [max(0, at - len(asked)) for at in starts[len(own) :]]
        ids, starts = self._encode_at(text, split_special_tokens=True)
        added = not self.encoder and text[:1] != " " and self.text(ids[:1]) == ""
        return ids[added:], starts[added:]


def _inside_thought(example: Example) -> Example:
    """Returns an example whose rationale begins inside a thought."""
    if not CLOSE_MARKER.search(example.rationale):
        raise UserError(
            f"{example.id}: the prompt opens a thought and the rationale closes none; use "
            "--thinking wrap."
        )
    first = example.units[0].lstrip()
    marker = OPEN_MARKER.match(first)
    first = first[marker.end() :].lstrip() if marker else example.units[0]
    return replace(example, units=(first, *example.units[1:]))


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
    ids, chunks = list(tokenized.prompt), [-1] * len(tokenized.prompt)
    example = tokenized.example
    of_unit = example.chunk_of_units()
    if answer_only:
        tokenized = tokenized.keeping(frozenset([len(tokenized.units) - 1]))
    for token, u in zip(tokenized.written.ids, tokenized.written.units, strict=True):
        if chunk is not None and of_unit[u] > chunk:
            break
        ids.append(token)
        chunks.append(of_unit[u] if chunk in (None, of_unit[u]) else -1)
    if not max_length or len(ids) <= max_length:
        return TokenSequence(ids, chunks, prompt=len(tokenized.prompt), example=example.id)
    start, shortened = len(tokenized.prompt), len(ids) - max_length
    end = start + shortened  # of what is left out, right after the question
    if any(c >= 0 for c in chunks[:end]):
        return None
    ids, chunks = ids[:start] + ids[end:], chunks[:start] + chunks[end:]
    return TokenSequence(ids, chunks, shortened, start, example.id)


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
