import math

import pytest
import torch
from app_fixtures import encode, examples, tiny
from cwt.data import from_problem
from cwt.encode import sample
from cwt.recipe import Recipe
from cwt.skip import (
    Rule,
    judge_units,
    oracle_units,
    random_units,
    ratify_units,
    removal_rates,
    skipped_share,
)
from cwt.tasks import ANSWER, CORE, unique_problems
from cwt.train import train


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


def plain_parts(rule, item):
    last = len(item.units) - 1
    if rule.part == "unit":
        return [{u} for u in range(1, last)]
    of_unit = item.chunk_of_units()
    parts = [{u for u in range(1, last) if of_unit[u] == m} for m in range(item.chunks)]
    return list(filter(None, parts))


def plain_value(encoder, item):
    last, marker = len(item.units) - 1, len(encoder.ids(" The answer is"))
    return [(last, p) for p in range(marker, len(item.units[last]) - 1)]


def plain_judge(rule, model, encoder, item):
    """The rule, one part and one pass at a time."""
    keep = set(range(len(item.units)))
    reference = token_view(model, item, keep)
    value = plain_value(encoder, item)
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
    gone = set()
    for part in plain_parts(rule, item):
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


def plain_ratify(rule, model, encoder, item, keep):
    """The rule, one part and two passes at a time."""
    keep, value = set(keep), plain_value(encoder, item)
    for part in plain_parts(rule, item):
        whole = keep if keep & part else keep | part
        written, passed = token_view(model, item, whole), token_view(model, item, whole - part)
        a, b = min(whole & part), min(u for u in whole - part if u > max(part))
        first, second = item.units[a], item.units[b]
        p = 0
        while p < min(len(first), len(second)) - 1 and first[p] == second[p]:
            p += 1
        end = min(p + rule.opening, len(first), len(second))
        write = math.prod(written[a, q][1] for q in range(p, end))
        go_on = math.prod(passed[b, q][1] for q in range(p, end))
        rise = -sum(math.log(passed[k][1]) - math.log(written[k][1]) for k in value)
        keep = set(whole - part if go_on > write and rise <= rule.veto else whole)
    return keep


@pytest.mark.parametrize(
    "rule",
    [Rule(), Rule(veto=0.01), Rule(opening=1), Rule(part="chunk")],
    ids=["default", "veto", "opening", "chunk"],
)
def test_batched_ratification_equals_the_rule_taken_one_by_one(rule):
    model, encoder = tiny()
    items = encode(encoder, examples(8))
    # What no judge would leave out: it is for the student to say.
    before = random_units(items, oracle_units(examples(8)), seed=3)
    keeps, decisions = ratify_units(rule, model, encoder, items, before, batch_size=3)
    for item, keep in zip(items, keeps, strict=True):
        assert keep == plain_ratify(rule, model, encoder, item, before[items.index(item)])
        assert {0, len(item.units) - 1} <= keep
    back = sum(len(b - a) for a, b in zip(before, keeps, strict=True))
    assert back > 0
    for d in decisions:
        assert d.flipped == []
        assert d.skipped == (d.pass_nll < d.write_nll and d.answer_rise <= rule.veto)


def test_a_student_ratifies_what_it_was_taught(tmp_path):
    """Filler that went everywhere goes; a step that went in few examples comes back."""
    model, encoder = tiny()
    problems = unique_problems("arithmetic", 150, seed=1, filler=1.0)
    some = [from_problem(problem, str(i)) for i, problem in enumerate(problems)]
    items = encode(encoder, some)
    steps = [e.kinds.index(CORE) for e in some]
    keeps = [
        frozenset(u for u, kind in enumerate(e.kinds) if u == 0 or kind != "filler")
        - ({step} if i % 6 == 0 else set())
        for i, (e, step) in enumerate(zip(some, steps, strict=True))
    ]
    recipe = Recipe("ftt", 40000, "processed_tokens", batch_size=4, learning_rate=1e-3)
    train(model, encoder, items, keeps, recipe, tmp_path / "t", cpu=True)
    after, decisions = ratify_units(Rule(veto=0.5), model, encoder, items, keeps)
    rates = removal_rates(some, after)
    assert rates["filler"] > 0.95
    assert rates["core"] <= removal_rates(some, keeps)["core"] / 2
    assert {(d.id, d.unit) for d in decisions} == {
        (item.id, u) for item in items for u in range(1, len(item.units) - 1)
    }


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
