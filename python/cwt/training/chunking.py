"""Groups the units of a rationale into chunks.

Average chunking (AC) divides evenly by units, `length` evenly by tokens. Dynamic programming (DP)
finds the most coherent chunks. Search-based chunking (SBC) moves one boundary at a time;
`sbc-exact` finds the optimum of its objective.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import cwt_ext
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.processes import Shares, is_divided
from cwt.students.loss import TokenLoss
from cwt.students.student import Student, iterate_batches, iterate_passes
from cwt.students.tokenized import Batch, TokenizedExample, whole_sequence
from cwt.training.recipe import ChunkMethod, ChunkOptions, Objective
from cwt_ext.segment import Kind


def average_chunks(n: int, chunks: int) -> list[int]:
    """Returns the boundaries that divide n units as evenly as possible into `chunks` chunks.

    Fewer units than chunks give one chunk a unit. Half-open: chunk m is units b[m] .. b[m+1]-1.
    """
    m = min(n, chunks)
    return [i * n // m for i in range(m + 1)] if m else [0]


def search_chunks(
    costs: np.ndarray, start: Sequence[int], budget: int = 1000, min_gain: float = 0.0
) -> list[int]:
    """Returns boundaries found by moving one boundary at a time (SBC), from `start`.

    A boundary moves by one unit when that lowers the sum of the chunk costs; the search ends when
    no move helps or after `budget` moves tried. It can stop short of the optimum, which
    `cwt_ext.segment(costs, kind="cost", k=...)` finds.

    Args:
        costs: (n + 1, n + 1) float64; costs[i, j] is the cost of the chunk of units i .. j-1.
        start: boundaries 0 = b_0 < ... < b_M = n.
        budget: number of moves tried, at most.
        min_gain: a move must lower the sum by more than this.
    """
    least = max(min_gain, 1e-12)
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
                if costs[left, to] + costs[to, right] < before - least:
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


def length_costs(tokens: np.ndarray) -> np.ndarray:
    """Returns the (n + 1, n + 1) costs c(i, j) whose least sum has chunks of equal length.

    The cost of a chunk is the square of its tokens: their sum is given, so the sum of squares is
    least where they differ least.

    Args:
        tokens: (n,) int64, number of tokens of each unit.
    """
    ends = np.concatenate([[0], np.cumsum(tokens)]).astype(float)
    costs: np.ndarray = np.triu(ends[None, :] - ends[:, None]) ** 2
    return costs


def chunk(
    student: Student,
    examples: Sequence[Example],
    options: ChunkOptions = ChunkOptions(),  # noqa: B008 - frozen
) -> list[Example]:
    """Returns the examples, each divided into chunks; the answer is always the last one.

    Args:
        student: its hidden states (dp) or its negative log-likelihood (sbc) decide.
        examples: examples with their units.
        options: the method and the number of chunks.

    Example:
        >>> import cwt
        >>> (example,), = cwt.generate_examples("letters", [1], seed=0)
        >>> chunked, = chunk(cwt.load_student("tiny"), [example], cwt.ChunkOptions(count=2))
        >>> chunked.chunks
        3
    """
    cuts = Segmenter(student, examples, options).boundaries(options.method)
    return [example.chunked(b) for example, b in zip(examples, cuts, strict=True)]


def chunk_shares(
    student: Student, examples: Sequence[Example], options: ChunkOptions
) -> Shares[Example]:
    """Returns examples divided over the processes, each of which chunks its own.

    TF-IDF compares the texts of all examples, so there each process has all, as where the student
    itself is divided.
    """
    return Shares(examples, options.embeddings == "tfidf" or is_divided(student.model))


def unit_nll(
    student: Student, examples: Sequence[TokenizedExample], batch_size: int
) -> list[np.ndarray]:
    """Returns for each example every unit's summed NLL, given the question and the units before."""
    width = max(len(x.units) for x in examples)
    results: dict[int, np.ndarray] = {}
    rows = [whole_sequence(x.unit_is_chunk()) for x in examples]

    def loss(batch: Batch) -> TokenLoss:
        # A unit is a chunk here: the loss's own sums per chunk are the units' sums.
        row = torch.arange(len(batch.labels), device=batch.chunk_ids.device)[:, None]
        ids = (batch.chunk_ids + row * width)[batch.bears_loss]
        return student.token_loss(batch, ids, reduction="sum", num_chunks=len(row) * width)

    for part, _, result in iterate_passes(student, rows, batch_size, loss):
        assert result.stats is not None
        sums = result.stats.nll_sum.double().cpu().numpy().reshape(len(part), width)
        results.update((i, s[: len(examples[i].units)]) for i, s in zip(part, sums, strict=True))
    return [results[i] for i in range(len(examples))]


@torch.no_grad()
def unit_embeddings(
    student: Student, examples: Sequence[TokenizedExample], batch_size: int
) -> list[np.ndarray]:
    """Returns for each example (n, d): the mean of the last hidden states of every unit."""
    results: dict[int, np.ndarray] = {}
    rows = [whole_sequence(x) for x in examples]
    for part, batch in iterate_batches(student, rows, batch_size):
        hidden = student.hidden_states(batch).float().cpu()
        for b, i in enumerate(part):
            # A token is read one place after the one that predicts it.
            begin = int(batch.bears_loss[b].nonzero()[0]) + 1
            ends = np.cumsum([begin, *map(len, examples[i].units)])
            ends[-1] -= 1  # nothing follows the end-of-sequence token: it is no input
            spans = itertools.pairwise(ends)
            results[i] = np.stack([hidden[b, x:y].mean(0).numpy() for x, y in spans])
    return [results[i] for i in range(len(examples))]


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
    """Divides examples into chunks by any method; computes only once what several methods need.

    The answer is always the last chunk; the units before it are divided into `options.count`
    chunks, or into chunks of about `options.tokens`.

    Args:
        student: its embeddings (dp) or its NLL (sbc) decide.
        examples: their own boundaries and kept units are not used.
        options: number of chunks, objective, embeddings.
        batch_size: of the student's passes.
    """

    def __init__(
        self,
        student: Student,
        examples: Sequence[Example],
        options: ChunkOptions,
        batch_size: int = 32,
    ) -> None:
        self.student, self.examples, self.options = student, examples, options
        self.batch_size = batch_size
        self.lengths = [len(e.units) - 1 for e in examples]  # without the answer

    @cached_property
    def tokenized(self) -> list[TokenizedExample]:
        """The examples in tokens, whole."""
        return [self.student.tokenize(e.keeping(None)) for e in self.examples]

    @cached_property
    def counts(self) -> list[int]:
        """Chunks before the answer that each example is divided into, if it has the units."""
        if not self.options.tokens:
            return [self.options.count] * len(self.examples)
        return [max(1, -(-int(t.sum()) // self.options.tokens)) for t in self.tokens()]

    @cached_property
    def start(self) -> list[list[int]]:
        """Average chunks, from which the search begins."""
        return [average_chunks(n, k) for n, k in zip(self.lengths, self.counts, strict=True)]

    @cached_property
    def costs(self) -> list[np.ndarray]:
        """The costs of all chunks of every example under the objective."""
        nlls = unit_nll(self.student, self.tokenized, self.batch_size)
        return [
            chunk_costs(nll[:n], tokens, self.options.objective)
            for nll, tokens, n in zip(nlls, self.tokens(), self.lengths, strict=True)
        ]

    def tokens(self) -> list[np.ndarray]:
        """Returns how many tokens each unit before the answer has, for every example."""
        return [
            np.array([len(unit) for unit in x.units[:n]], dtype=np.int64)
            for x, n in zip(self.tokenized, self.lengths, strict=True)
        ]

    def vectors(self) -> list[np.ndarray]:
        """Returns the embeddings of the units of every example."""
        if self.options.embeddings == "student":
            return unit_embeddings(self.student, self.tokenized, self.batch_size)
        texts = [[self.student.text(unit) for unit in x.units] for x in self.tokenized]
        return text_embeddings(self.options.embeddings, texts, self.batch_size)

    def boundaries(self, method: ChunkMethod) -> list[list[int]]:
        """Returns the boundaries of each example, the answer's included."""
        cuts = self.start
        if not self.examples:  # fewer than there are processes
            return []
        if method == "dp":
            inputs = [v[:n] for v, n in zip(self.vectors(), self.lengths, strict=True)]
            cuts = self._optima(inputs, "embeddings")
        elif method == "sbc":
            gain = self.options.min_gain
            cuts = [
                search_chunks(c, s, min_gain=gain)
                for c, s in zip(self.costs, self.start, strict=True)
            ]
        elif method == "sbc-exact":
            cuts = self._optima(self.costs, "cost")
        elif method == "length":
            cuts = self._optima([length_costs(t) for t in self.tokens()], "cost")
        return [[*map(int, c), len(e.units)] for c, e in zip(cuts, self.examples, strict=True)]

    def _optima(self, inputs: Sequence[np.ndarray], kind: Kind) -> list[list[int]]:
        some = [i for i, n in enumerate(self.lengths) if n]
        ks = [min(self.lengths[i], self.counts[i]) for i in some]
        found = cwt_ext.segment_batch([inputs[i] for i in some], k=ks, kind=kind)
        cuts = dict(zip(some, (s.boundaries.tolist() for s in found), strict=True))
        return [cuts.get(i, [0]) for i in range(len(self.examples))]

    def total_costs(self, cuts: Sequence[Sequence[int]]) -> list[float]:
        """Returns the summed cost of the chunks before the answer, of every example."""
        if not cuts:
            return []
        return [
            float(sum(costs[a, b] for a, b in itertools.pairwise(c[:-1])))
            for costs, c in zip(self.costs, cuts, strict=True)
        ]
