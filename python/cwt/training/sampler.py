"""Draws the samples of each step; its state is part of a checkpoint."""

import random
from collections.abc import Sequence
from typing import Any

from .encode import Encoded, Sample, sample
from .errors import UserError
from .recipe import Recipe


class Sampler:
    """Draws samples for a recipe, epoch after epoch, in an order that the seed decides.

    Args:
        items: the encoded examples.
        keeps: for each the indices of the units that stay, None for all.
        recipe: says what a sample is.
    """

    def __init__(
        self, items: Sequence[Encoded], keeps: Sequence[frozenset[int] | None], recipe: Recipe
    ) -> None:
        if not items:
            raise ValueError("training needs at least one example, got none.")
        self.items, self.keeps, self.recipe = items, keeps, recipe
        self.random = random.Random(f"samples-{recipe.seed}")
        self.queue: list[
            tuple[int, int | None]
        ] = []  # (example, its chunk or None), drawn from the end
        self.epoch = 0
        self.pull = [0.0] * max(item.chunks for item in items)  # gradient norm a token, by chunk
        self.dropped = 0  # samples whose target alone is longer than max_length

    def state(self) -> dict[str, Any]:
        return {
            "random": self.random.getstate(),
            "queue": list(self.queue),
            "epoch": self.epoch,
            "pull": list(self.pull),
            "dropped": self.dropped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.random.setstate(state["random"])
        self.queue, self.epoch = list(state["queue"]), state["epoch"]
        self.pull, self.dropped = list(state["pull"]), state["dropped"]

    def observe(self, tokens: Sequence[float], grad_norm_sum: Sequence[float]) -> None:
        """Takes in what the last step saw of each chunk index; `adaptive` draws by it.

        Args:
            tokens: (C,) loss-bearing tokens.
            grad_norm_sum: (C,) sum of their gradients' norms with respect to the logits.
        """
        for m, (n, total) in enumerate(zip(tokens, grad_norm_sum, strict=True)):
            if n:
                seen = total / n
                self.pull[m] = 0.95 * self.pull[m] + 0.05 * seen if self.pull[m] else seen

    def draw(self) -> list[Sample]:
        """Returns the samples of one optimizer step."""
        index = None
        if self.recipe.method == "cwt" and self.recipe.schedule == "by-index":
            index = self.random.randrange(len(self.pull))
        drawn: list[Sample] = []
        misses = 0
        while len(drawn) < self.recipe.batch_size:
            if self.recipe.method == "cwt" and self.recipe.schedule == "adaptive":
                index = self._adaptive()
            row = self._next(index)
            if row is not None and row.loss_tokens:
                drawn.append(row)
                continue
            misses += 1
            if misses > 10 * (len(self.items) + self.recipe.batch_size):
                raise UserError(
                    f"no sample has its target within max_length {self.recipe.max_length} tokens."
                )
        return drawn

    def _adaptive(self) -> int:
        most = max(self.pull)
        unseen = most or 1.0  # an index not drawn yet counts as the strongest
        weights = [max(w, 0.1 * most) if w else unseen for w in self.pull]
        return self.random.choices(range(len(weights)), weights)[0]

    def _next(self, index: int | None) -> Sample | None:
        if not self.queue:
            self._new_epoch()
        i, chunk = self.queue.pop()
        item, keep = self.items[i], self.keeps[i]
        if index is not None:
            chunk = min(index, item.chunks - 1)
        if self.recipe.sentence_dropout:
            keep = self._dropout(item, keep)
        if chunk is not None and keep is not None:
            chunk = _with_units(item, keep, chunk)
        row = sample(item, keep, chunk, self.recipe.method == "answer-only", self.recipe.max_length)
        self.dropped += row is None
        return row

    def _new_epoch(self) -> None:
        pairs: list[tuple[int, int | None]]
        if self.recipe.method == "cwt" and self.recipe.schedule == "shuffled":
            pairs = [(i, m) for i, item in enumerate(self.items) for m in range(item.chunks)]
        elif self.recipe.method == "cwt" and self.recipe.schedule == "curriculum":
            pairs = [(i, self.epoch % item.chunks) for i, item in enumerate(self.items)]
        else:
            pairs = [(i, None) for i in range(len(self.items))]
        self.random.shuffle(pairs)
        self.queue, self.epoch = pairs, self.epoch + 1

    def _dropout(self, item: Encoded, keep: frozenset[int] | None) -> frozenset[int]:
        last = len(item.units) - 1
        middle = range(1, last)
        gone = {u for u in middle if self.random.random() < self.recipe.sentence_dropout}
        return frozenset(
            u for u in range(last + 1) if u not in gone and (keep is None or u in keep)
        )


def _with_units(item: Encoded, keep: frozenset[int], chunk: int) -> int:
    """Returns the first chunk from `chunk` on of which a unit is left; the answer always is."""
    of_unit = item.chunk_of_units()
    left = {of_unit[u] for u in keep}
    return next(m for m in range(chunk, item.chunks) if m in left)
