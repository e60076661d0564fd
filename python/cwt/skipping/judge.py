"""Which units can a student do without? The judges behind skip-thinking training.

`forward` (the default) asks whether what follows is still predicted without a unit; `literal` asks
only for the answer, with all later units of the teacher in place, and leaks: later units carry the
results. `oracle`, `random` and `none` are controls. What a judge decided is then ratified by a
student that was trained on it: a skip that the student cannot foresee is one that it cannot learn.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

import cwt_ext

from .data import Example
from .encode import Encoded, Encoder, forward, sample
from .recipe import Part
from .tasks import ANSWER, CORE
from .train import Progress

Keep = frozenset[int]
Place = tuple[int, int]  # (unit, position)
Places = list[Place]
Tokens = dict[Place, tuple[bool, float]]  # -> (is the arg-max, p)


@dataclass(frozen=True)
class Decision:
    """Whether one unit was left out, and on what evidence.

    Attributes:
        flipped: the later tokens that stopped being the arg-max: text, unit, and the probability
            with and without the unit; none where the decision was ratified.
        answer_rise: how much the NLL of the answer's value rises without the unit, in nats.
        write_nll: where it was ratified, the NLL of the unit's opening at its place, in nats.
        pass_nll: the same of the opening of what follows it.
    """

    id: str
    unit: int
    text: str
    skipped: bool
    flipped: list[dict[str, Any]]
    answer_rise: float
    write_nll: float | None = None
    pass_nll: float | None = None


def middle(item: Encoded) -> range:
    """Returns the units that may be left out: neither the first nor the answer."""
    return range(1, len(item.units) - 1)


@dataclass(frozen=True)
class Rule:
    """What a model-based judge asks.

    Reference: one pass over the kept units. Eligible: the later tokens that are the arg-max there
    with p >= threshold and are not the first of a unit; for `literal` the tokens of the answer
    after "The answer is", whatever their p (an item whose answer is wrong to begin with keeps all
    its units). A part of the rationale goes iff its absence upsets no eligible token.

    Attributes:
        judge: `forward` or `literal`.
        threshold: smallest probability of an eligible token in the reference pass.
        onsets: the first token of a unit may be eligible too.
        floor: a token is upset when it stops being the arg-max, or when its probability falls
            below this; 0 asks for the arg-max alone.
        veto: a part also stays when the NLL of the answer's value (what comes after "The answer
            is": its beginning asks which sentence follows) rises by more than this, in nats.
        cumulative: left to right with the holes already made; otherwise each part is judged with
            all others in place.
        part: what goes or stays as one: a `unit`, or a `chunk` with all its units.
        opening: at most so many tokens tell what a student that ratifies would write next.
    """

    judge: Literal["forward", "literal"] = "forward"
    threshold: float = 0.9
    onsets: bool = False
    floor: float = 0.0
    veto: float = math.inf
    cumulative: bool = True
    part: Part = "unit"
    opening: int = 12


def judge_units(
    rule: Rule,
    model: PreTrainedModel,
    encoder: Encoder,
    items: Sequence[Encoded],
    keeps: Sequence[Keep] | None = None,
    batch_size: int = 32,
    progress: Progress = lambda share, text: None,
) -> tuple[list[Keep], list[Decision]]:
    """Returns for each item the units that stay, and every decision with its evidence.

    Args:
        rule: what is asked.
        model: the student that judges.
        encoder: of the student.
        items: the examples.
        keeps: what earlier rounds left, None for all units.
        batch_size: rows of one pass.
        progress: is told the share done.
    """
    start = [frozenset(range(len(x.units))) for x in items] if keeps is None else list(keeps)
    kept = list(start)
    decisions: list[Decision] = []
    reference = _passes(model, encoder, items, start, batch_size)
    values = [_answer_value(encoder, item) for item in items]
    eligible = [_eligible(rule, r, v) for r, v in zip(reference, values, strict=True)]
    parts = [_parts(rule, item) for item in items]
    most = max(map(len, parts))
    for n in range(most):
        asked = [
            (i, kept[i] & parts[i][n])
            for i in range(len(items))
            if n < len(parts[i]) and kept[i] & parts[i][n] and eligible[i]
        ]
        holes = [(kept if rule.cumulative else start)[i] - gone for i, gone in asked]
        after = _passes(model, encoder, [items[i] for i, _ in asked], holes, batch_size)
        for (i, gone), tokens in zip(asked, after, strict=True):
            item = items[i]
            flips = [
                {
                    "token": encoder.text([item.units[v][p]]),
                    "unit": v,
                    "p_with": round(reference[i][v, p][1], 4),
                    "p_without": round(tokens[v, p][1], 4),
                }
                for v, p in sorted(eligible[i])
                if v > max(gone)
                and (v, p) in tokens
                and (not tokens[v, p][0] or tokens[v, p][1] < rule.floor)
            ]
            rise = _nll(tokens, values[i]) - _nll(reference[i], values[i])
            skipped = not flips and rise <= rule.veto
            for u in sorted(gone):
                text = encoder.text(item.units[u]).strip()
                decisions.append(Decision(item.id, u, text, skipped, flips, round(rise, 4)))
            if skipped:
                kept[i] -= gone
        progress((n + 1) / most, f"part {n + 1}")
    return kept, decisions


def ratify_units(
    rule: Rule,
    model: PreTrainedModel,
    encoder: Encoder,
    items: Sequence[Encoded],
    keeps: Sequence[Keep],
    batch_size: int = 32,
    progress: Progress = lambda share, text: None,
) -> tuple[list[Keep], list[Decision]]:
    """Returns for each item the units that the student itself would write, with the evidence.

    A judge sees what follows a unit; a student that writes sees only what came before. Where like
    units go in one example and stay in another for reasons that it does not see, it takes the
    likelier way in both, and at what the judge kept it was never shown how to go on without. So,
    left to right with the holes already made: a part goes iff the student, trained on the judge's
    decisions, finds the opening of what follows likelier than that of the part, and the NLL of the
    answer's value does not rise by more than the veto. An opening is some tokens from where the two
    differ, of both as many.

    Args:
        rule: veto, part and opening of it are asked.
        model: a student that was trained on `keeps`.
        encoder: of the student.
        items: the examples.
        keeps: what the judge left.
        batch_size: rows of one pass.
        progress: is told the share done.
    """
    kept = list(keeps)
    decisions: list[Decision] = []
    tokens = _passes(model, encoder, items, kept, batch_size)
    values = [_answer_value(encoder, item) for item in items]
    parts = [_parts(rule, item) for item in items]
    most = max(map(len, parts))
    for n in range(most):
        asked = [i for i in range(len(items)) if n < len(parts[i])]
        others = [
            kept[i] - parts[i][n] if kept[i] & parts[i][n] else kept[i] | parts[i][n] for i in asked
        ]
        passes = _passes(model, encoder, [items[i] for i in asked], others, batch_size)
        for i, other, found in zip(asked, others, passes, strict=True):
            here, there = (kept[i], tokens[i]), (other, found)
            written, passed = (here, there) if len(kept[i]) > len(other) else (there, here)
            part, item = written[0] - passed[0], items[i]
            after = min(u for u in passed[0] if u > max(part))
            openings = _openings(rule, item, min(part), after)
            write, go_on = _nll(written[1], openings[0]), _nll(passed[1], openings[1])
            rise = _nll(passed[1], values[i]) - _nll(written[1], values[i])
            skipped = go_on < write and rise <= rule.veto
            kept[i], tokens[i] = passed if skipped else written
            for u in sorted(part):
                text = encoder.text(item.units[u]).strip()
                evidence = (round(rise, 4), round(write, 4), round(go_on, 4))
                decisions.append(Decision(item.id, u, text, skipped, [], *evidence))
        progress((n + 1) / most, f"part {n + 1}")
    return kept, decisions


def _openings(rule: Rule, item: Encoded, a: int, b: int) -> tuple[Places, Places]:
    """Returns as many of the first tokens of two units, from where they differ."""
    pairs = list(zip(item.units[a], item.units[b], strict=False))
    start = next((p for p, (x, y) in enumerate(pairs) if x != y), len(pairs) - 1)
    window = range(start, min(start + rule.opening, len(pairs)))
    return [(a, p) for p in window], [(b, p) for p in window]


def _parts(rule: Rule, item: Encoded) -> list[frozenset[int]]:
    """Returns what may be left out of an item, in order."""
    if rule.part == "unit":
        return [frozenset({u}) for u in middle(item)]
    spans = itertools.pairwise(item.boundaries)
    return [part for a, b in spans if (part := frozenset(range(a, b)) & frozenset(middle(item)))]


def oracle_units(examples: Sequence[Example]) -> list[Keep]:
    """Returns the first unit, the core steps and the answer of generated examples.

    Raises:
        ValueError: an example has no labels.
    """
    keeps = []
    for example in examples:
        if example.kinds is None:
            raise ValueError(f"example {example.id} has no kinds: only generated examples do.")
        keeps.append(frozenset(u for u, k in enumerate(example.kinds) if u == 0 or k in _NEEDED))
    return keeps


_NEEDED = (CORE, ANSWER)


def random_units(items: Sequence[Encoded], like: Sequence[Keep], seed: int) -> list[Keep]:
    """Returns as many units left out per example as in `like`, drawn at random."""
    rng = random.Random(f"random-skips-{seed}")
    keeps = []
    for item, keep in zip(items, like, strict=True):
        gone = rng.sample(list(middle(item)), len(item.units) - len(keep))
        keeps.append(frozenset(range(len(item.units))) - frozenset(gone))
    return keeps


def skipped_share(items: Sequence[Encoded], keeps: Sequence[Keep]) -> float:
    """Returns the share of middle units that are left out."""
    total = sum(len(middle(item)) for item in items)
    gone = sum(len(item.units) - len(keep) for item, keep in zip(items, keeps, strict=True))
    return gone / total if total else 0.0


def removal_rates(examples: Sequence[Example], keeps: Sequence[Keep]) -> dict[str, float]:
    """Returns the share of middle units left out, for each kind of the generated examples."""
    gone: dict[str, int] = {}
    total: dict[str, int] = {}
    for example, keep in zip(examples, keeps, strict=True):
        for u, kind in enumerate(example.kinds or ()):
            if 0 < u < len(example.units) - 1:
                total[kind] = total.get(kind, 0) + 1
                gone[kind] = gone.get(kind, 0) + (u not in keep)
    return {kind: gone[kind] / n for kind, n in sorted(total.items())}


def _eligible(rule: Rule, reference: Tokens, value: Places) -> set[Place]:
    if rule.judge == "literal":
        return set(value) if all(reference[place][0] for place in value) else set()
    return {
        (u, p)
        for (u, p), (right, probability) in reference.items()
        if right and probability >= rule.threshold and (p > 0 or rule.onsets)
    }


def _nll(tokens: Tokens, places: Places) -> float:
    return -sum(math.log(max(tokens[place][1], 1e-30)) for place in places)


def _answer_value(encoder: Encoder, item: Encoded) -> Places:
    """Returns where the answer stands in the last unit: after its marker, before the end."""
    unit, last = item.units[-1], len(item.units) - 1
    text = encoder.text(unit)
    marker = re.search(r"answer (?:is|should be)\b:?", text, re.IGNORECASE)
    start = len(encoder.ids(text[: marker.end()])) if marker else 0
    return [(last, p) for p in range(start, len(unit) - 1)]


def _passes(
    model: PreTrainedModel,
    encoder: Encoder,
    items: Sequence[Encoded],
    keeps: Sequence[Keep],
    batch_size: int,
) -> list[Tokens]:
    """Returns for each item what the model says of every token of its kept units."""
    results: list[Tokens] = [{} for _ in items]
    rows = [sample(item, keep) for item, keep in zip(items, keeps, strict=True)]
    for part, batch, output in forward(model, encoder, rows, batch_size):
        found = cwt_ext.chunk_loss(
            output.logits[0], batch.labels[batch.rows], batch.chunk_ids[batch.rows]
        ).rows
        assert found is not None
        tokens = zip((found.correct > 0).tolist(), (-found.nll).exp().tolist(), strict=True)
        for i in part:  # of one row after another
            places = [(u, p) for u in sorted(keeps[i]) for p in range(len(items[i].units[u]))]
            results[i] = dict(zip(places, itertools.islice(tokens, len(places)), strict=True))
    return results
