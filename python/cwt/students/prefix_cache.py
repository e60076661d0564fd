"""Reads rows of tokens piece by piece, and what two rows begin with only once.

Keys and values of the tokens that a row shares with another are taken over from it. Rows of one
pass stand so that their pieces begin in the same column: what was read before is padded on the
left, which keeps the distances that a sliding window or a relative position counts.

Legend: B rows, P tokens read before (of the longest row), S tokens of a piece, n scores.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

import cwt_ext
from cwt.students.causal import CausalStudent
from cwt.students.precision import autocast
from cwt.students.pretrained import logits_only_at
from cwt.students.student import Student
from cwt.students.tokenized import TokenSequence

Memory = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer: keys, values (1, heads, P, width)

_PROBE_TOKENS = 256  # of the row on which reading in pieces is tried
_PROBE_ERROR = {torch.float32: 1e-3}  # nats, mean; of other formats:
_PROBE_ERROR_16_BIT = 0.05
_OWN_LENGTHS = ("dynamic", "longrope")  # rotary positions that depend on the length of the row


@dataclass
class Reading:
    """A row that is read piece by piece.

    Attributes:
        ids: of its tokens.
        wanted: the places of the tokens whose probability is asked, rising; the first token of a
            row has none.
        done: how many of its tokens have been read.
        spent: how many of them were read for this row, and not taken over.
        memory: keys and values of the tokens that have been read, or of more.
        scores: of the first wanted tokens, as far as they are known: is it the student's first
            choice (the arg-max), and its probability.
    """

    ids: Sequence[int]
    wanted: Sequence[int]
    done: int = 0
    spent: int = 0
    memory: Memory = field(default_factory=list, repr=False)
    scores: list[tuple[bool, float]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """How many of its tokens are read in all: those before the last wanted one."""
        return self.wanted[-1] if self.wanted else 0

    @property
    def finished(self) -> bool:
        """Whether all wanted tokens have their scores."""
        return len(self.scores) == len(self.wanted)


def reading_after(ids: Sequence[int], wanted: Sequence[int], base: Reading | None) -> Reading:
    """Returns a row of which as much counts as read as it shares with another row.

    Args:
        ids: of its tokens.
        wanted: the places of the tokens whose probability is asked, rising, each at least 1.
        base: the other row, as far as it has been read; None: there is none.
    """
    if base is None:
        return Reading(ids, wanted)
    done = shared_tokens(ids, base.ids, min([base.done, *(place - 1 for place in wanted[:1])]))
    return Reading(ids, wanted, done, memory=base.memory if done else [])


def shared_tokens(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Returns how many tokens two rows begin with in common, at most `most`."""
    pairs = enumerate(zip(a[:most], b[:most], strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(most, len(a), len(b)))


@torch.no_grad()
def read(student: Student, rows: Sequence[Reading], tokens: int) -> None:
    """Reads the next tokens of some rows in one pass, and adds to their scores.

    Args:
        student: a causal language model, in evaluation mode; see `cannot_share`.
        rows: none is read to its end.
        tokens: of each row, at most.
    """
    device, past = student.device, max(row.done for row in rows)
    sizes = [min(tokens, row.end - row.done) for row in rows]
    ids = torch.zeros(len(rows), max(sizes), dtype=torch.long)
    positions, asked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    # What pads a piece counts as read: it comes after the row's own tokens, which do not see it,
    # and a token that sees nothing at all would have no attention.
    mask = torch.ones(len(rows), past + max(sizes), dtype=torch.long)
    labels: list[int] = []
    for r, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ids[r, :size] = torch.tensor(row.ids[row.done : row.done + size])
        # What pads a piece has the position of its last token: a later one may not exist.
        positions[r] = torch.arange(row.done, row.done + max(sizes)).clamp(max=row.done + size - 1)
        mask[r, : past - row.done] = 0
        places = _next_wanted(row, size)
        asked[r, [place - 1 - row.done for place in places]] = True
        labels += [row.ids[place] for place in places]
    model: Any = student.model
    asked, cache = asked.to(device), _joined(rows, past)
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    with logits_only_at(model, asked), autocast(device, student.dtype):
        output = model(**inputs, **{_cache_name(student): cache}, use_cache=True)
    scores = iter(_scored(output.logits[0], labels))
    for r, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        row.scores += [next(scores) for _ in _next_wanted(row, size)]
        part = slice(past - row.done, past + size)
        row.memory = [_of_row(layer, r, part) for layer in cache.layers]
        row.done, row.spent = row.done + size, row.spent + size


def _next_wanted(row: Reading, size: int) -> list[int]:
    """Returns the wanted places that the next tokens of a row predict."""
    waiting = row.wanted[len(row.scores) :]
    return [place for place in waiting if place <= row.done + size]


def _joined(rows: Sequence[Reading], past: int) -> DynamicCache:
    """Returns what the rows have read, padded on the left: every layer keeps all of it."""
    cache = DynamicCache()
    held = next((row.memory for row in rows if row.done), [])
    for n, layer in enumerate(held):
        if len(rows) == 1:
            cache.update(layer[0][:, :, :past], layer[1][:, :, :past], n)
            continue
        joined = [x.new_zeros(len(rows), x.shape[1], past, x.shape[3]) for x in layer]
        for r, row in enumerate(rows):
            for whole, own in zip(joined, row.memory[n] if row.done else (), strict=False):
                whole[r, :, past - row.done :] = own[0, :, : row.done]
        cache.update(joined[0], joined[1], n)
    return cache


def _of_row(layer: Any, row: int, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the keys and values of one row of a pass, without what pads it."""
    keys, values = layer.keys, layer.values
    if keys.shape[0] == 1:
        return keys, values
    return keys[row : row + 1, :, part].clone(), values[row : row + 1, :, part].clone()


def _scored(logits: torch.Tensor, labels: Sequence[int]) -> list[tuple[bool, float]]:
    """Returns for each of n tokens, with logits (n, V): is it the arg-max, and its probability."""
    if not labels:
        return []
    of = torch.tensor(labels, device=logits.device)
    found = cwt_ext.chunk_loss(logits, of, torch.zeros_like(of)).rows
    assert found is not None
    return list(zip((found.correct > 0).tolist(), (-found.nll).exp().tolist(), strict=True))


def cannot_share(student: Student, ids: Sequence[int]) -> str | None:
    """Returns why rows of a student cannot be read in pieces, None if they can.

    The beginning of a row is read both ways. A student passes if the log-probabilities agree to
    rounding.

    Args:
        student: of any kind.
        ids: a row of at least 8 tokens.
    """
    if not isinstance(student, CausalStudent):
        return "it is no causal language model"
    model = student.plain_model
    missing = {"position_ids", _cache_name(student)} - _parameters(model)
    if missing:
        return f"its model takes no {' and no '.join(sorted(missing))}"
    config = model.config.get_text_config()
    kinds = _rope_types(getattr(config, "rope_parameters", None))
    if kinds & set(_OWN_LENGTHS):
        return f"its positions ({', '.join(sorted(kinds))}) depend on the length of the row"
    windows = [getattr(config, n, None) or 0 for n in ("sliding_window", "attention_chunk_size")]
    row = list(ids[: max(_PROBE_TOKENS, 2 * max(windows))])
    try:
        error = _probe(student, row)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # a model may be anyone's code
        return f"{type(failure).__name__}: {failure}"
    limit = _PROBE_ERROR.get(student.dtype, _PROBE_ERROR_16_BIT)
    if not error <= limit:
        return f"tokens read in pieces are off by {error:.2g} nats (at most {limit:g})"
    return None


def _parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _cache_name(student: Any) -> str:
    """Returns what the model calls its keys and values; the name has changed in transformers."""
    return "cache" if "cache" in _parameters(student.plain_model) else "past_key_values"


def _rope_types(parameters: Any) -> set[str]:
    """Returns the kinds of rotary positions that a configuration names, of any layer."""
    if not isinstance(parameters, dict):
        return set()
    own = {str(parameters["rope_type"])} if parameters.get("rope_type") else set()
    return own.union(*(_rope_types(value) for value in parameters.values()))


def _probe(student: Student, ids: list[int]) -> float:
    """Returns by how much log-probabilities differ in pieces and whole, as a mean, in nats.

    Two rows are read on from a half and a quarter of the ids, side by side.
    """
    n = len(ids)
    half, quarter = n // 2, n // 4
    first = Reading(ids[:half], [half - 1], memory=[])
    student.model.eval()
    read(student, [first], half)
    longer = reading_after(ids, range(half + 1, n), first)
    shorter = reading_after(ids[: 3 * n // 4], range(quarter + 1, 3 * n // 4), first)
    read(student, [longer, shorter], n)
    batch = student.collate([TokenSequence(ids, [-1] * (quarter + 1) + [0] * (n - quarter - 1))])
    with torch.no_grad():
        whole = cwt_ext.chunk_loss(student.logits_at(batch), *batch.targets).rows
    assert whole is not None
    wanted = whole.nll.double().cpu()
    begin = half - quarter
    errors = [
        (wanted[at : at + len(row.scores)] - _nll(row)).abs()
        for row, at in ((longer, begin), (shorter, 0))
    ]
    return float(torch.cat(errors).mean())


def _nll(row: Reading) -> torch.Tensor:
    return -torch.tensor([p for _, p in row.scores], dtype=torch.float64).clamp(min=1e-30).log()
