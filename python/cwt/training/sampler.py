"""Draws the samples of each optimizer step; its state is part of a checkpoint."""

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from cwt.errors import UserError
from cwt.students.tokenized import TokenizedExample, TokenSequence, build_sequence
from cwt.training.rechunk import Rechunker
from cwt.training.recipe import Recipe

Pair = tuple[int, int | None]  # (example, chunk or None)

_STEPS_SORTED = 32  # steps whose samples are sorted by length together


class Sampler:
    """Draws the samples of a recipe, epoch after epoch, in an order that the seed decides.

    Args:
        examples: in tokens, with their chunks and the units that stay.
        recipe: decides what a sample is.
        rechunker: searches the chunks anew at the beginning of every epoch; None: they stay.

    Raises:
        ValueError: no examples.
    """

    def __init__(
        self,
        examples: Sequence[TokenizedExample],
        recipe: Recipe,
        rechunker: Rechunker | None = None,
    ) -> None:
        if not examples:
            raise ValueError("training needs at least one example, got none.")
        self.examples, self.recipe, self.rechunker = examples, recipe, rechunker
        self.random = random.Random(f"samples-{recipe.seed}")
        self.queue: list[Pair] = []
        self.epoch = 0
        self.chunks = max(x.example.chunks for x in examples)
        self.pull = [0.0] * self.chunks  # gradient norm per token, by chunk index
        self.dropped = 0  # samples whose question and target are longer than max_length
        self.shortened = 0  # samples that lost context to max_length

    @cached_property
    def epoch_tokens(self) -> int:
        """Tokens that bear loss in one pass over all examples."""
        answer_only, limit = self.recipe.target == "answer", self.recipe.max_length
        in_chunks = self.recipe.target == "chunk"
        rows = [
            build_sequence(x, chunk, answer_only, limit)
            for x in self.examples
            for chunk in (range(x.example.chunks) if in_chunks else [None])
        ]
        return max(1, sum(row.loss_tokens for row in rows if row))

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to go on from here."""
        return {
            "random": self.random.getstate(),
            "queue": list(self.queue),
            "epoch": self.epoch,
            "pull": list(self.pull),
            "dropped": self.dropped,
            "boundaries": [x.example.boundaries for x in self.examples] if self.rechunker else [],
            "shortened": self.shortened,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a sampler of the same recipe."""
        self.random.setstate(state["random"])
        self.queue, self.epoch = list(state["queue"]), state["epoch"]
        self.pull, self.dropped = list(state["pull"]), state["dropped"]
        if self.rechunker:
            self.examples = self.rechunker.at(state["boundaries"])
        self.shortened = state["shortened"]

    def observe(self, tokens: Sequence[float], grad_norm_sum: Sequence[float]) -> None:
        """Records the gradients of each chunk index in the last step; `adaptive` draws by them.

        Args:
            tokens: (C,) loss-bearing tokens.
            grad_norm_sum: (C,) sum of their gradients' norms with respect to the logits.
        """
        for m, (n, total) in enumerate(zip(tokens, grad_norm_sum, strict=True)):
            if n:
                seen = total / n
                self.pull[m] = 0.95 * self.pull[m] + 0.05 * seen if self.pull[m] else seen

    def draw(self) -> list[TokenSequence]:
        """Returns the samples of one optimizer step."""
        index = self.random.randrange(self.chunks) if self._schedule("by-index") else None
        drawn: list[TokenSequence] = []
        misses = 0
        while len(drawn) < self.recipe.batch_size:
            if self._schedule("adaptive"):
                index = self._adaptive()
            row = self._next(index)
            if row is not None and row.loss_tokens:
                drawn.append(row)
                continue
            misses += 1
            if misses > 10 * (len(self.examples) + self.recipe.batch_size):
                raise UserError(
                    "no sample has its question and target within max_length "
                    f"{self.recipe.max_length} tokens."
                )
        return drawn

    def _schedule(self, name: str) -> bool:
        return self.recipe.target == "chunk" and self.recipe.schedule == name

    def _adaptive(self) -> int:
        most = max(self.pull)
        unseen = most or 1.0  # an index not drawn yet counts as the strongest
        weights = [max(w, 0.1 * most) if w else unseen for w in self.pull]
        return self.random.choices(range(len(weights)), weights)[0]

    def _next(self, index: int | None) -> TokenSequence | None:
        if not self.queue:
            self._new_epoch()
        i, chunk = self.queue.pop()
        tokenized = self.examples[i]
        if index is not None:
            chunk = min(index, tokenized.example.chunks - 1)
        if self.recipe.sentence_dropout:
            tokenized = tokenized.keeping(self._dropout(tokenized))
        if chunk is not None:
            chunk = _chunk_with_units(tokenized, chunk)
        answer_only = self.recipe.target == "answer"
        row = build_sequence(tokenized, chunk, answer_only, self.recipe.max_length)
        self.dropped += row is None
        self.shortened += row is not None and row.shortened > 0
        return row

    def _new_epoch(self) -> None:
        if self.rechunker:
            self.examples = self.rechunker.search()
        pairs: list[Pair]
        chunks = [x.example.chunks for x in self.examples]
        if self._schedule("shuffled") and self.recipe.chunks_together > 1:
            self.queue, self.epoch = self._together(chunks), self.epoch + 1
            return
        if self._schedule("shuffled"):
            pairs = [(i, m) for i, n in enumerate(chunks) for m in range(n)]
        elif self._schedule("curriculum"):
            pairs = [(i, self.epoch % n) for i, n in enumerate(chunks)]
        else:
            pairs = [(i, None) for i in range(len(chunks))]
        self.random.shuffle(pairs)
        if self.recipe.group_lengths:
            pairs = self._grouped(pairs)
        self.queue, self.epoch = pairs, self.epoch + 1

    def _together(self, chunks: Sequence[int]) -> list[Pair]:
        """Returns the pairs of an epoch, some of one example after another, in random order."""
        groups: list[list[Pair]] = []
        for i, n in enumerate(chunks):
            own: list[Pair] = [(i, m) for m in range(n)]
            self.random.shuffle(own)
            count = -(-n // self.recipe.chunks_together)  # of nearly equal size
            groups += [own[g::count] for g in range(count)]
        self.random.shuffle(groups)
        if not self.recipe.group_lengths:
            return [pair for group in groups for pair in group]
        window = self.recipe.batch_size * _STEPS_SORTED // self.recipe.chunks_together or 1
        steps: list[list[Pair]] = []
        for at in range(0, len(groups), window):
            by_length = sorted(groups[at : at + window], key=lambda g: max(map(self._length, g)))
            steps += self._cut([pair for group in by_length for pair in group])
        return self._in_random_order(steps)

    def _length(self, pair: Pair) -> int:
        row = build_sequence(self.examples[pair[0]], pair[1], self.recipe.target == "answer")
        assert row is not None  # without max_length there is always one
        return len(row.ids)

    def _cut(self, pairs: list[Pair]) -> list[list[Pair]]:
        size = self.recipe.batch_size
        return [pairs[i : i + size] for i in range(0, len(pairs), size)]

    def _grouped(self, pairs: list[Pair]) -> list[Pair]:
        """Returns shuffled pairs as steps of similar lengths, in random order."""
        window = self.recipe.batch_size * _STEPS_SORTED
        steps: list[list[Pair]] = []
        for at in range(0, len(pairs), window):
            steps += self._cut(sorted(pairs[at : at + window], key=self._length))
        return self._in_random_order(steps)

    def _in_random_order(self, steps: list[list[Pair]]) -> list[Pair]:
        size = self.recipe.batch_size
        whole = [step for step in steps if len(step) == size]
        self.random.shuffle(whole)
        rest = [step for step in steps if len(step) < size]  # drawn last, from the end
        return [pair for step in (*rest, *whole) for pair in step]

    def _dropout(self, tokenized: TokenizedExample) -> frozenset[int]:
        example = tokenized.example
        p = self.recipe.sentence_dropout
        gone = {u for u in example.middle_units if self.random.random() < p}
        return example.kept - gone


def _chunk_with_units(tokenized: TokenizedExample, chunk: int) -> int:
    """Returns the first chunk, from `chunk` on, that has a unit left; the answer always has."""
    example = tokenized.example
    of_unit = example.chunk_of_units()
    left = {of_unit[u] for u in example.kept}
    return next(m for m in range(chunk, example.chunks) if m in left)
