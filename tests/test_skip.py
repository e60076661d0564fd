import pytest
import torch
from app_fixtures import encode, examples, tiny
from cwt.encode import sample
from cwt.skip import judge_units, oracle_units, random_units, removal_rates, skipped_share
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


def plain_judge(judge, model, encoder, item, threshold):
    """The rule, one unit and one pass at a time."""
    keep = set(range(len(item.units)))
    last = len(item.units) - 1
    reference = token_view(model, item, keep)
    if judge == "forward":
        wanted = {k for k, (ok, p) in reference.items() if ok and p >= threshold and k[1] > 0}
    else:
        marker = len(encoder.ids(" The answer is"))
        wanted = {k for k in reference if k[0] == last and marker <= k[1] < len(item.units[-1]) - 1}
        if not all(reference[k][0] for k in wanted):
            return keep
    if not wanted:
        return keep
    for u in range(1, last):
        view = token_view(model, item, keep - {u})
        if all(view[k][0] for k in wanted if k[0] > u and k in view):
            keep -= {u}
    return keep


@pytest.mark.parametrize("judge", ["forward", "literal"])
def test_batched_decisions_equal_the_rule_taken_one_by_one(judge):
    model, encoder = tiny()
    items = encode(encoder, examples(8))
    keeps, decisions = judge_units(judge, model, encoder, items, threshold=0.5, batch_size=3)
    skipped = 0
    for item, keep in zip(items, keeps, strict=True):
        assert keep == plain_judge(judge, model, encoder, item, 0.5)
        assert {0, len(item.units) - 1} <= keep
        skipped += len(item.units) - len(keep)
    assert skipped == sum(d.skipped for d in decisions)
    assert skipped > 0
    for d in decisions:
        assert d.skipped == (not d.flipped)
        for flip in d.flipped:
            assert flip["unit"] > d.unit


def test_a_second_round_starts_from_the_holes_of_the_first():
    model, encoder = tiny()
    items = encode(encoder, examples(6))
    first, _ = judge_units("forward", model, encoder, items, threshold=0.9)
    second, decisions = judge_units("forward", model, encoder, items, first, threshold=0.9)
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
