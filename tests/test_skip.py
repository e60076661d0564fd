import math
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.tasks import ANSWER, CORE, as_example, unique_problems
from cwt.errors import UserError
from cwt.skipping.controls import oracle_skips, random_skips, removal_rates, skipped_share
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.skipping.rivals import matched_counts
from cwt.students.tokenized import build_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe


def token_view(student, item, keep):
    """Returns {(unit, position): (is the arg-max, p)} from one unbatched pass in float64."""
    row = build_sequence(item.keeping(frozenset(keep)))
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([row.ids])).logits[0].double()
    view, t = {}, len(item.prompt)
    for u in sorted(keep):
        for p, token in enumerate(item.units[u]):
            view[u, p] = (
                int(logits[t - 1].argmax()) == token,
                float(logits[t - 1].softmax(0)[token]),
            )
            t += 1
    return view


def plain_parts(criterion, example):
    last = len(example.units) - 1
    if criterion.granularity == "unit":
        return [{u} for u in range(1, last)]
    of_unit = example.chunk_of_units()
    parts = [{u for u in range(1, last) if of_unit[u] == m} for m in range(example.chunks)]
    return list(filter(None, parts))


def plain_value(student, item):
    last, marker = len(item.units) - 1, len(student.ids(" The answer is"))
    return [(last, p) for p in range(marker, len(item.units[last]) - 1)]


def plain_judge(criterion, student, example):
    """The criterion, one part and one pass at a time."""
    item, keep = student.tokenize(example), set(range(len(example.units)))
    reference = token_view(student, item, keep)
    value = plain_value(student, item)
    if criterion.judge == "forward":
        wanted = {
            k
            for k, (ok, p) in reference.items()
            if ok and p >= criterion.min_probability and (criterion.check_unit_starts or k[1] > 0)
        }
    else:
        wanted = set(value)
        if not all(reference[k][0] for k in wanted):
            return keep
    if not wanted:
        return keep
    gone = set()
    for part in plain_parts(criterion, example):
        base = keep - gone if criterion.cumulative else keep
        view = token_view(student, item, base - part)
        later = [k for k in wanted if k[0] > max(part) and k in view]
        rise = -sum(math.log(view[k][1]) - math.log(reference[k][1]) for k in value)
        sure = all(view[k][0] and view[k][1] >= criterion.min_probability_after for k in later)
        if sure and rise <= criterion.max_answer_nll_rise:
            gone |= part
    return keep - gone


ANY_RISE = SkipCriterion(min_probability=0.5, max_answer_nll_rise=math.inf)


@pytest.mark.parametrize(
    "criterion",
    [
        ANY_RISE,
        SkipCriterion("literal", max_answer_nll_rise=math.inf),
        replace(ANY_RISE, check_unit_starts=True),
        replace(ANY_RISE, min_probability_after=0.4),
        replace(ANY_RISE, max_answer_nll_rise=0.1),
        replace(ANY_RISE, cumulative=False),
        replace(ANY_RISE, granularity="chunk"),
        SkipCriterion(),
    ],
    ids=["forward", "literal", "starts", "after", "rise", "independent", "chunk", "default"],
)
def test_batched_decisions_equal_the_criterion_taken_one_by_one(criterion):
    student, some = tiny(), examples(8)
    found, decisions = find_skips(student, some, criterion, batch_size=3)
    skipped = 0
    for example, after in zip(some, found, strict=True):
        assert after.kept_units == plain_judge(criterion, student, example)
        assert {0, len(example.units) - 1} <= after.kept_units
        assert after == replace(example, kept_units=after.kept_units)
        skipped += len(example.units) - len(after.kept_units)
    assert skipped == sum(d.skipped for d in decisions)
    assert skipped > 0
    for d in decisions:
        assert d.skipped == (not d.flipped and d.answer_rise <= criterion.max_answer_nll_rise)
        for flip in d.flipped:
            assert flip["unit"] > d.unit


def test_a_second_round_starts_from_the_holes_of_the_first():
    student = tiny()
    criterion = SkipCriterion(max_answer_nll_rise=math.inf)
    first, _ = find_skips(student, examples(6), criterion)
    second, decisions = find_skips(student, first, criterion)
    for a, b in zip(first, second, strict=True):
        assert b.kept_units <= a.kept_units
        assert {d.unit for d in decisions if d.id == a.id} <= a.kept_units


def plain_ratify(criterion, student, example):
    """The criterion, one part and two passes at a time."""
    item, keep = student.tokenize(example), set(example.kept_units)
    value = plain_value(student, item)
    for part in plain_parts(criterion, example):
        whole = keep if keep & part else keep | part
        written = token_view(student, item, whole)
        passed = token_view(student, item, whole - part)
        a, b = min(whole & part), min(u for u in whole - part if u > max(part))
        first, second = item.units[a], item.units[b]
        p = 0
        while p < min(len(first), len(second)) - 1 and first[p] == second[p]:
            p += 1
        end = min(p + criterion.lookahead_tokens, len(first), len(second))
        write = math.prod(written[a, q][1] for q in range(p, end))
        go_on = math.prod(passed[b, q][1] for q in range(p, end))
        rise = -sum(math.log(passed[k][1]) - math.log(written[k][1]) for k in value)
        skipped = go_on > write and rise <= criterion.max_answer_nll_rise
        keep = set(whole - part if skipped else whole)
    return keep


@pytest.mark.parametrize(
    "criterion",
    [
        SkipCriterion(max_answer_nll_rise=math.inf),
        SkipCriterion(max_answer_nll_rise=0.01),
        SkipCriterion(max_answer_nll_rise=math.inf, lookahead_tokens=1),
        SkipCriterion(max_answer_nll_rise=math.inf, granularity="chunk"),
        SkipCriterion(),
    ],
    ids=["any rise", "small rise", "lookahead", "chunk", "default"],
)
def test_batched_ratification_equals_the_criterion_taken_one_by_one(criterion):
    student = tiny()
    # What no judge would leave out: it is for the student to say.
    before = random_skips(examples(8), 3, matched_counts(oracle_skips(examples(8))))
    found, decisions = ratify_skips(student, before, criterion, batch_size=3)
    for example, after in zip(before, found, strict=True):
        assert after.kept_units == plain_ratify(criterion, student, example)
        assert {0, len(example.units) - 1} <= after.kept_units
    back = sum(len(b.kept - a.kept) for a, b in zip(before, found, strict=True))
    assert back > 0
    for d in decisions:
        assert d.flipped == []
        cheap = d.answer_rise <= criterion.max_answer_nll_rise
        assert d.skipped == (d.pass_nll < d.write_nll and cheap)


def test_a_student_ratifies_what_it_was_taught(tmp_path):
    """Filler that went everywhere goes; a step that went in few examples comes back."""
    student = tiny()
    problems = unique_problems("arithmetic", 150, seed=1, filler=1.0)
    some = [as_example(problem, str(i)) for i, problem in enumerate(problems)]
    steps = [e.roles.index(CORE) for e in some]
    taught = [
        e.keeping(
            frozenset(u for u, role in enumerate(e.roles) if u == 0 or role != "filler")
            - ({step} if i % 6 == 0 else set())
        )
        for i, (e, step) in enumerate(zip(some, steps, strict=True))
    ]
    recipe = Recipe(
        target="rationale", budget=40000, budget_unit="processed_tokens", batch_size=4,
        learning_rate=1e-3,
    )  # fmt: skip
    train(student, taught, recipe, tmp_path / "t", cpu=True)
    asked = taught[:60]
    after, decisions = ratify_skips(student, asked, SkipCriterion(max_answer_nll_rise=0.5))
    rates = removal_rates(after)
    assert rates["filler"] > 0.95
    assert rates["core"] <= removal_rates(asked)["core"] / 2
    assert {(d.id, d.unit) for d in decisions} == {
        (e.id, u) for e in asked for u in range(1, len(e.units) - 1)
    }


def test_controls():
    some = examples(30)
    oracle = oracle_skips(some)
    for example, after in zip(some, oracle, strict=True):
        kept = {example.roles[u] for u in after.kept_units if u}
        assert kept == {CORE, ANSWER}
    assert removal_rates(oracle) == {"core": 0.0, "filler": 1.0, "restate": 1.0}
    counts = matched_counts(oracle)
    drawn = random_skips(some, 0, counts)
    assert [len(e.kept_units) for e in drawn] == [len(e.kept_units) for e in oracle]
    assert skipped_share(drawn) == skipped_share(oracle) > 0.5
    assert all({0, len(e.units) - 1} <= e.kept_units for e in drawn)
    assert drawn == random_skips(some, 0, counts) != random_skips(some, 1, counts)
    assert removal_rates(drawn)["core"] > 0.4


def test_where_nothing_was_decided_nothing_is_left_out():
    some = examples(3)
    assert skipped_share(some) == 0.0
    assert set(removal_rates(some).values()) == {0.0}


def test_oracle_needs_labels():
    with pytest.raises(ValueError, match="has no roles"):
        oracle_skips([replace(examples(1)[0], roles=None)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"min_probability": 1.5}, "min_probability must be between 0 and 1, got 1.5"),
     ({"min_probability_after": -0.1}, "min_probability_after must be between 0 and 1, got -0.1"),
     ({"max_answer_nll_rise": math.nan}, "max_answer_nll_rise must be at least 0, got nan"),
     ({"lookahead_tokens": 0}, "lookahead_tokens must be at least 1, got 0")],
)  # fmt: skip
def test_bad_criteria(options, message):
    with pytest.raises(UserError, match=message):
        SkipCriterion(**options)
