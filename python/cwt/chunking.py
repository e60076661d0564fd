"""Groups the units of a rationale into chunks: AC, DP, SBC and its exact form."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

import cwt_ext

from .encode import Encoded, Encoder, Sample, collate, sample

ChunkMethod = Literal["ac", "dp", "sbc", "sbc-exact"]
Objective = Literal["mean", "sum"]


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


@torch.no_grad()
def unit_nll(
    model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], batch_size: int
) -> list[np.ndarray]:
    """Returns for each item the summed NLL of every unit given the question and all before."""
    results: list[np.ndarray] = []
    for at in range(0, len(items), batch_size):
        part = items[at : at + batch_size]
        # One "chunk" a unit: the loss's own per-chunk sums are then the units' sums.
        width = max(len(item.units) for item in part)
        rows = []
        for i, item in enumerate(part):
            by_unit = Encoded(item.id, item.prompt, item.units, tuple(range(len(item.units) + 1)))
            row = sample(by_unit)
            assert row is not None
            rows.append(Sample(row.ids, [c + i * width if c >= 0 else -1 for c in row.chunks]))
        batch = collate(rows, encoder.pad).to(model.device)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        result = cwt_ext.chunk_loss(
            logits, batch.labels, batch.chunk_ids, reduction="sum", num_chunks=len(part) * width
        )
        sums = result.stats.nll_sum.double().cpu().numpy().reshape(len(part), width)
        results += [s[: len(item.units)] for s, item in zip(sums, part, strict=True)]
    return results


@torch.no_grad()
def unit_embeddings(
    model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], batch_size: int
) -> list[np.ndarray]:
    """Returns for each item (n, d): the mean of the student's last hidden states of every unit."""
    results: list[np.ndarray] = []
    for at in range(0, len(items), batch_size):
        part = items[at : at + batch_size]
        rows = [sample(item) for item in part]
        batch = collate([row for row in rows if row is not None], encoder.pad).to(model.device)
        hidden = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        ).hidden_states[-1]
        for i, item in enumerate(part):
            ends = np.cumsum([len(item.prompt), *map(len, item.units)])
            ends[-1] -= 1  # nothing follows the end-of-sequence token: it is no input
            spans = itertools.pairwise(ends)
            results.append(
                np.stack([hidden[i, a:b].float().mean(0).cpu().numpy() for a, b in spans])
            )
    return results


def segment_items(
    model: PreTrainedModel,
    encoder: Encoder,
    items: Sequence[Encoded],
    method: ChunkMethod,
    chunks: int,
    objective: Objective = "mean",
    batch_size: int = 32,
) -> tuple[list[list[int]], list[dict[str, float]]]:
    """Returns for each item its boundaries, and what the search said of them.

    The answer is always the last chunk; the units before it are divided into `chunks`.

    Args:
        model: the student, whose embeddings (dp) or NLL (sbc) decide.
        encoder: of the student.
        items: examples in tokens; their own boundaries are not used.
        method: `ac` divides evenly; `dp` is the exact optimum of coherence over embeddings;
            `sbc` moves boundaries greedily from ac; `sbc-exact` is the optimum of its objective.
        chunks: number of chunks before the answer.
        objective: of sbc.
        batch_size: of the student's passes.
    """
    lengths = [len(item.units) - 1 for item in items]  # without the answer
    start = [average_chunks(n, chunks) for n in lengths]
    facts: list[dict[str, float]] = [{} for _ in items]
    cuts = start
    model.eval()
    if method == "dp":
        cuts = []
        vectors = unit_embeddings(model, encoder, items, batch_size)
        for v, n in zip(vectors, lengths, strict=True):
            cuts.append(list(cwt_ext.segment(v[:n], k=min(n, chunks)).boundaries) if n else [0])
    elif method in ("sbc", "sbc-exact"):
        cuts = []
        nlls = unit_nll(model, encoder, items, batch_size)
        for i, (item, n) in enumerate(zip(items, lengths, strict=True)):
            if n == 0:
                cuts.append([0])
                continue
            tokens = np.array([len(unit) for unit in item.units[:n]])
            costs = chunk_costs(nlls[i][:n], tokens, objective)
            best = cwt_ext.segment(costs, k=min(n, chunks), kind="cost")
            found = search_chunks(costs, start[i])
            cuts.append(found if method == "sbc" else list(best.boundaries))
            facts[i] = {
                "start": _total(costs, start[i]),
                "greedy": _total(costs, found),
                "exact": float(best.cost),
            }
    return [[*map(int, c), len(item.units)] for c, item in zip(cuts, items, strict=True)], facts


def _total(costs: np.ndarray, cuts: Sequence[int]) -> float:
    return float(sum(costs[a, b] for a, b in itertools.pairwise(cuts)))
