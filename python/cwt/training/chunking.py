"""Groups the units of a rationale into chunks: AC, DP, SBC and its exact form."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

import cwt_ext
from cwt_ext.segment import Kind

from .encode import Encoded, Encoder, forward, sample
from .errors import UserError
from .recipe import ChunkMethod, Objective


def average_chunks(n: int, chunks: int) -> list[int]:
    """Returns the boundaries that divide n units as evenly as possible into `chunks` chunks.

    Fewer units than chunks give one chunk a unit. Half-open: chunk m is units b[m] .. b[m+1]-1.
    """
    m = min(n, chunks)
    return [i * n // m for i in range(m + 1)] if m else [0]


def search_chunks(costs: np.ndarray, start: Sequence[int], budget: int = 1000) -> list[int]:
    """Returns boundaries found by moving one boundary at a time (SBC), from `start`.

    A boundary moves by one unit when that lowers the sum of the chunk costs; the search ends when
    no move helps or after `budget` moves tried. It can stop short of the optimum, which
    `cwt_ext.segment(costs, kind="cost", k=...)` finds.

    Args:
        costs: (n + 1, n + 1) float64; costs[i, j] is the cost of the chunk of units i .. j-1.
        start: boundaries 0 = b_0 < ... < b_M = n.
        budget: moves tried at the most.
    """
    cuts, tried, moved = list(start), 0, True
    while moved and tried < budget:
        moved = False
        for m in range(1, len(cuts) - 1):
            for to in (cuts[m] - 1, cuts[m] + 1):
                left, right = cuts[m - 1], cuts[m + 1]
                if not left < to < right or tried >= budget:
                    continue
                tried += 1
                before = costs[left, cuts[m]] + costs[cuts[m], right]
                if costs[left, to] + costs[to, right] < before - 1e-12:
                    cuts[m], moved = to, True
    return cuts


def chunk_costs(nll: np.ndarray, tokens: np.ndarray, objective: Objective) -> np.ndarray:
    """Returns the (n + 1, n + 1) costs c(i, j) of all chunks from the units' own figures.

    Args:
        nll: (n,) float64, summed negative log-likelihood of each unit, in nats.
        tokens: (n,) int64, number of tokens of each unit.
        objective: `mean` is the chunk's NLL per token. It rewards joining units, because the
            first token of a sentence costs several times what the others cost. `sum` adds the
            tokens up; a unit's NLL given all before it does not depend on the cuts, so `sum`
            is the same for every segmentation and serves as the control.
    """
    n = len(nll)
    total, count = np.concatenate([[0], np.cumsum(nll)]), np.concatenate([[0], np.cumsum(tokens)])
    i, j = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    sums = total[j] - total[i]
    per = np.maximum(count[j] - count[i], 1) if objective == "mean" else 1
    return np.where(j > i, sums / per, 0.0)


def unit_nll(
    model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], batch_size: int
) -> list[np.ndarray]:
    """Returns for each item the summed NLL of every unit given the question and all before."""
    width = max(len(item.units) for item in items)
    by_unit = [replace(item, boundaries=tuple(range(len(item.units) + 1))) for item in items]
    results: dict[int, np.ndarray] = {}
    rows = [sample(item) for item in by_unit]
    for part, batch, output in forward(model, encoder, rows, batch_size):
        # A unit is a chunk here: the loss's own sums per chunk are the units' sums.
        row = torch.arange(len(part), device=batch.chunk_ids.device)[:, None]
        ids = (batch.chunk_ids + row * width)[batch.rows]
        result = cwt_ext.chunk_loss(
            output.logits[0], batch.labels[batch.rows], ids,
            reduction="sum", num_chunks=len(part) * width,
        )  # fmt: skip
        sums = result.stats.nll_sum.double().cpu().numpy().reshape(len(part), width)
        results.update((i, s[: len(items[i].units)]) for i, s in zip(part, sums, strict=True))
    return [results[i] for i in range(len(items))]


def unit_embeddings(
    model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], batch_size: int
) -> list[np.ndarray]:
    """Returns for each item (n, d): the mean of the student's last hidden states of every unit."""
    results: dict[int, np.ndarray] = {}
    rows = [sample(item) for item in items]
    for part, _, output in forward(model, encoder, rows, batch_size, output_hidden_states=True):
        hidden = output.hidden_states[-1].float().cpu()
        for b, i in enumerate(part):
            ends = np.cumsum([len(items[i].prompt), *map(len, items[i].units)])
            ends[-1] -= 1  # nothing follows the end-of-sequence token: it is no input
            spans = itertools.pairwise(ends)
            results[i] = np.stack([hidden[b, x:y].mean(0).numpy() for x, y in spans])
    return [results[i] for i in range(len(items))]


def text_embeddings(name: str, texts: Sequence[Sequence[str]], batch_size: int) -> list[np.ndarray]:
    """Returns for each list of n texts their embeddings, (n, d) float32.

    Args:
        name: `tfidf` (hashed words, weighted by how rare they are in all the texts), or the folder
            of a sentence-transformers model.
        texts: the units of every example.
        batch_size: of the model.

    Raises:
        UserError: no such folder, not a model, or the package it needs is not installed.
    """
    flat = [text for unit_texts in texts for text in unit_texts]
    ends = np.cumsum([len(unit_texts) for unit_texts in texts])[:-1]
    try:
        if name == "tfidf":
            from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

            hashed = HashingVectorizer(n_features=1024, alternate_sign=False).transform(flat)
            vectors = TfidfTransformer().fit_transform(hashed).toarray()
        else:
            from sentence_transformers import SentenceTransformer

            if not (Path(name) / "modules.json").exists():
                raise UserError(
                    f"embeddings must be student, tfidf or the folder of a sentence-transformers "
                    f"model (with modules.json), got {name!r}."
                )
            model = SentenceTransformer(name, local_files_only=True)
            vectors = model.encode(flat, batch_size=batch_size, show_progress_bar=False)
    except ImportError as error:
        raise UserError(f"embeddings {name!r} need a package: pip install {error.name}.") from error
    return np.split(np.asarray(vectors, dtype=np.float32), ends)


class Segmenter:
    """Divides examples into chunks; what several methods need is computed once.

    The answer is always the last chunk; the units before it are divided into `chunks`.

    Args:
        model: the student, whose embeddings (dp) or NLL (sbc) decide.
        encoder: of the student.
        items: examples in tokens; their own boundaries are not used.
        chunks: number of chunks before the answer.
        objective: of sbc.
        embeddings: of dp: `student`, or what `text_embeddings` takes.
        batch_size: of the student's passes.
    """

    def __init__(
        self, model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], chunks: int,
        objective: Objective = "mean", embeddings: str = "student", batch_size: int = 32,
    ) -> None:  # fmt: skip
        self.model, self.encoder, self.items, self.chunks = model, encoder, items, chunks
        self.objective, self.embeddings, self.batch_size = objective, embeddings, batch_size
        self.lengths = [len(item.units) - 1 for item in items]  # without the answer
        self.start = [average_chunks(n, chunks) for n in self.lengths]

    @cached_property
    def costs(self) -> list[np.ndarray]:
        nlls = unit_nll(self.model, self.encoder, self.items, self.batch_size)
        return [
            chunk_costs(nll[:n], np.array([len(u) for u in item.units[:n]]), self.objective)
            for nll, item, n in zip(nlls, self.items, self.lengths, strict=True)
        ]

    def vectors(self) -> list[np.ndarray]:
        if self.embeddings == "student":
            return unit_embeddings(self.model, self.encoder, self.items, self.batch_size)
        texts = [[self.encoder.text(unit) for unit in item.units] for item in self.items]
        return text_embeddings(self.embeddings, texts, self.batch_size)

    def boundaries(self, method: ChunkMethod) -> list[list[int]]:
        """Returns the boundaries of each item.

        Args:
            method: `ac` divides evenly; `dp` is the exact optimum of coherence over embeddings;
                `sbc` moves boundaries greedily from ac; `sbc-exact` is the optimum of its
                objective.
        """
        cuts = self.start
        if method == "dp":
            inputs = [v[:n] for v, n in zip(self.vectors(), self.lengths, strict=True)]
            cuts = self._optima(inputs, "embeddings")
        elif method == "sbc":
            cuts = [search_chunks(c, s) for c, s in zip(self.costs, self.start, strict=True)]
        elif method == "sbc-exact":
            cuts = self._optima(self.costs, "cost")
        return [[*map(int, c), len(item.units)] for c, item in zip(cuts, self.items, strict=True)]

    def _optima(self, inputs: Sequence[np.ndarray], kind: Kind) -> list[list[int]]:
        some = [i for i, n in enumerate(self.lengths) if n]
        ks = [min(self.lengths[i], self.chunks) for i in some]
        found = cwt_ext.segment_batch([inputs[i] for i in some], k=ks, kind=kind)
        cuts = dict(zip(some, (s.boundaries.tolist() for s in found), strict=True))
        return [cuts.get(i, [0]) for i in range(len(self.items))]

    def total_cost(self, cuts: Sequence[Sequence[int]]) -> float:
        """Returns the mean over the items of what their chunks before the answer cost."""
        totals = [
            sum(costs[a, b] for a, b in itertools.pairwise(c[:-1]))
            for costs, c in zip(self.costs, cuts, strict=True)
        ]
        return float(np.mean(totals))
