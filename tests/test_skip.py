import math

import pytest
import torch
from app_fixtures import encode, examples, tiny
from cwt.encode import sample
from cwt.skip import Rule, judge_units, oracle_units, random_units, removal_rates, skipped_share
from cwt.tasks import ANSWER, CORE


def token_view(model, item, keep):
    """Returns {(unit, position): (is the arg-max, p)} from one unbatched pass in float64."""
    row = sample(item, keep)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    view, t = {}, len(item.prompt)
    for u in sorted(keep):
        for p, token in enumerate(item.units[u]):
            view[u, p] = (
                int(logits[t - 1].argmax()) == token,
                float(logits[t - 1].softmax(0)[token]),
            )
            t += 1
    return view


def plain_judge(rule, model, encoder, item):
    """The rule, one part and one pass at a time."""
    keep = set(range(len(item.units)))
    last = len(item.units) - 1
    reference = token_view(model, item, keep)
    marker = len(encoder.ids(" The answer is"))
    value = [k for k in reference if k[0] == last and marker <= k[1] < len(item.units[-1]) - 1]
    if rule.judge == "forward":
        wanted = {
            k
            for k, (ok, p) in reference.items()
            if ok and p >= rule.threshold and (rule.onsets or k[1] > 0)
        }
    else:
        wanted = set(value)
        if not all(reference[k][0] for k in wanted):
            return keep
    if not wanted:
        return keep
    parts = [{u} for u in range(1, last)]
    if rule.part == "chunk":
        of_unit = item.chunk_of_units()
        parts = [{u for u in range(1, last) if of_unit[u] == m} for m in range(item.chunks)]
    gone = set()
    for part in filter(None, parts):
        view = token_view(model, item, keep - part - (gone if rule.cumulative else set()))
        later = [k for k in wanted if k[0] > max(part) and k in view]
        rise = -sum(math.log(view[k][1]) - math.log(reference[k][1]) for k in value)
        if all(view[k][0] and view[k][1] >= rule.floor for k in later) and rise <= rule.veto:
            gone |= part
    return keep - gone


@pytest.mark.parametrize(
    "rule",
    [
        Rule(threshold=0.5),
        Rule("literal"),
        Rule(threshold=0.5, onsets=True),
        Rule(threshold=0.5, floor=0.4),
        Rule(threshold=0.5, veto=0.1),
        Rule(threshold=0.5, cumulative=False),
        Rule(threshold=0.5, part="chunk"),
    ],
    ids=["forward", "literal", "onsets", "floor", "veto", "independent", "chunk"],
)
def test_batched_decisions_equal_the_rule_taken_one_by_one(rule):
    model, encoder = tiny()
    items = encode(encoder, examples(8))
    keeps, decisions = judge_units(rule, model, encoder, items, batch_size=3)
    skipped = 0
    for item, keep in zip(items, keeps, strict=True):
        assert keep == plain_judge(rule, model, encoder, item)
        assert {0, len(item.units) - 1} <= keep
        skipped += len(item.units) - len(keep)
    assert skipped == sum(d.skipped for d in decisions)
    assert skipped > 0
    for d in decisions:
        assert d.skipped == (not d.flipped and d.answer_rise <= rule.veto)
        for flip in d.flipped:
            assert flip["unit"] > d.unit


def test_a_second_round_starts_from_the_holes_of_the_first():
    model, encoder = tiny()
    items = encode(encoder, examples(6))
    first, _ = judge_units(Rule(), model, encoder, items)
    second, decisions = judge_units(Rule(), model, encoder, items, first)
    for item, a, b in zip(items, first, second, strict=True):
        assert b <= a
        assert {d.unit for d in decisions if d.id == item.id} <= a


def test_controls():
    _, encoder = tiny()
    some = examples(30)
    items = encode(encoder, some)
    oracle = oracle_units(some)
    for example, keep in zip(some, oracle, strict=True):
        kept = {example.kinds[u] for u in keep if u}
        assert kept == {CORE, ANSWER}
    assert removal_rates(some, oracle) == {"core": 0.0, "filler": 1.0, "restate": 1.0}
    drawn = random_units(items, oracle, seed=0)
    assert [len(k) for k in drawn] == [len(k) for k in oracle]
    assert skipped_share(items, drawn) == skipped_share(items, oracle) > 0.5
    assert all({0, len(i.units) - 1} <= k for i, k in zip(items, drawn, strict=True))
    assert drawn == random_units(items, oracle, seed=0) != random_units(items, oracle, seed=1)
    assert removal_rates(some, drawn)["core"] > 0.4


def test_oracle_needs_labels():
    from dataclasses import replace

    with pytest.raises(ValueError, match="has no kinds"):
        oracle_units([replace(examples(1)[0], kinds=None)])
