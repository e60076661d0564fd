"""Rows read in pieces, with what they share read once, against passes over whole rows."""

import itertools
import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from cwt.skipping import search
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.skipping.search import search_cost
from cwt.students import prefix_cache
from cwt.students.causal import CausalStudent
from cwt.students.prefix_cache import Reading, cannot_share, read, reading_after, shared_tokens
from cwt.students.tokenized import whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from test_families import FAMILIES, family
from test_skip import ANY_RISE, plain_judge, plain_ratify
from test_whole_text import KINDS, traces
from test_whole_text import student as with_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

WINDOW = 16  # tokens that a layer sees, where a family has such layers
WINDOWS = {
    "gemma2": {},
    "gemma3_text": {"sliding_window_pattern": 2},
    "mistral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}
SHAPES = [*FAMILIES, *(f"{name}, window" for name in WINDOWS)]


def shaped(name, monkeypatch, window=WINDOW):
    """A small random student in float64, some with a window shorter than every row."""
    name, _, windowed = name.partition(", ")
    if windowed:
        options = {**FAMILIES[name], **WINDOWS[name], "sliding_window": window}
        monkeypatch.setitem(FAMILIES, name, options)
    student = family(name)
    for weight in student.model.parameters():  # 0.4 saturates
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    student.model.double().eval()
    return student


def rows_of(student, n=3, tokens=150):
    """Rows of up to so many tokens, each of two examples."""
    some = [whole_sequence(student.tokenize(e)).ids for e in examples(2 * n)]
    return [(some[2 * i] + some[2 * i + 1])[: tokens - 20 * i] for i in range(n)]


def whole(student, ids):
    """{place: (is the arg-max, p)} of every token but the first, in one pass over one row."""
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    table = logits[:-1].softmax(-1)
    return {
        t: (int(logits[t - 1].argmax()) == ids[t], float(table[t - 1, ids[t]]))
        for t in range(1, len(ids))
    }


def check(row, wanted):
    assert row.finished
    assert len(row.scores) == len(row.wanted) > 0
    for place, (right, p) in zip(row.wanted, row.scores, strict=True):
        assert p == pytest.approx(wanted[place][1], rel=1e-6, abs=1e-12), place
        assert right == wanted[place][0]


@pytest.mark.parametrize("name", SHAPES)
def test_pieces_give_what_a_whole_pass_gives(name, monkeypatch):
    student = shaped(name, monkeypatch)
    rows = rows_of(student)
    tables = [whole(student, ids) for ids in rows]
    once = [Reading(ids, range(1, len(ids))) for ids in rows]
    read_all(student, once, 32)  # of three lengths: they end one after another
    for row, table in zip(once, tables, strict=True):
        check(row, table)
        assert row.done == row.spent == len(row.ids) - 1
    # Rows that leave something out, each at another place, read on side by side.
    rng, others = random.Random(0), []
    for row, at in zip(once, (20, 70, 45), strict=True):
        ids = [*row.ids[:at], *row.ids[at + 9 :]]
        asked = sorted(rng.sample(range(at + 5, len(ids)), 12))
        others.append(reading_after(ids, asked, row))
        assert others[-1].done == shared_tokens(ids, row.ids, len(ids)) >= at
    begun = [row.done for row in others]
    read_all(student, others, 25)
    for row, begin in zip(others, begun, strict=True):
        check(row, whole(student, row.ids))
        assert row.spent == row.wanted[-1] - begin  # the shared tokens were not read again
    for row, table in zip(once, tables, strict=True):
        again = reading_after(row.ids, [len(row.ids) - 1], row)  # what was shared is as it was
        read(student, [again], 1)
        check(again, table)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_windows_of_these_shapes_hide_something(name, monkeypatch):
    narrow = shaped(f"{name}, window", monkeypatch)
    wide = shaped(f"{name}, window", monkeypatch, window=4096)
    (row,) = rows_of(narrow, 1)
    assert all(
        a.equal(b) for a, b in zip(narrow.model.parameters(), wide.model.parameters(), strict=True)
    )
    near, far = whole(narrow, row), whole(wide, row)
    assert near[WINDOW - 2] == pytest.approx(far[WINDOW - 2])
    assert near[len(row) - 1][1] != pytest.approx(far[len(row) - 1][1], rel=1e-3)


def read_all(student, rows, tokens):
    while left := [row for row in rows if not row.finished]:
        read(student, left, tokens)


def test_what_two_rows_share():
    base = Reading([5, 6, 7, 8, 9], [4], done=4, memory=["of four tokens"])
    assert shared_tokens([1, 2, 3], [1, 2, 4], 3) == 2
    assert shared_tokens([1, 2, 3], [1, 2], 3) == 2
    assert reading_after([5, 6, 1, 8], [3], base).done == 2
    assert reading_after([5, 6, 7, 8, 9, 1], [5], base).done == 4  # of which base was read
    assert reading_after([5, 6, 7, 1, 8], [2, 4], base).done == 1  # what predicts the second
    assert reading_after([5, 6, 7, 1, 8], [], base).done == 3
    assert reading_after([4, 6], [1], base).memory == []
    assert reading_after([5, 6], [1], None).done == 0


@contextmanager
def in_pieces(monkeypatch, first=32, largest=512, held=8192):
    """Short rows too are read in pieces."""
    with monkeypatch.context() as patch:
        patch.setattr(search, "SHARED_FROM", 0)
        patch.setattr(search, "_FIRST_PIECE", first)
        patch.setattr(search, "_LARGEST_PIECE", largest)
        patch.setattr(search, "_HELD_TOKENS", held)
        yield


def kept(found):
    return [e.kept for e in found]


@pytest.mark.parametrize(
    "criterion",
    [
        ANY_RISE,
        SkipCriterion("literal", max_answer_nll_rise=1.0),
        replace(ANY_RISE, check_unit_starts=True, max_answer_nll_rise=0.1),
        replace(ANY_RISE, cumulative=False, min_probability_after=0.4),
        replace(ANY_RISE, granularity="chunk"),
        SkipCriterion(),
    ],
    ids=["forward", "literal", "starts", "independent", "chunk", "default"],
)
def test_decisions_equal_the_plain_rule(criterion, monkeypatch):
    """The rule of test_skip.py, one pass a trial, against pieces of 8 tokens and more."""
    student, some = tiny(), examples(4)
    with in_pieces(monkeypatch, first=8, largest=16, held=300):
        found, decisions = find_skips(student, some, criterion, batch_size=3)
        again, ratified = ratify_skips(student, found, criterion, batch_size=3)
    assert kept(found) == [plain_judge(criterion, student, e) for e in some]
    assert kept(again) == [plain_ratify(criterion, student, e) for e in found]
    whole_text, evidence = find_skips(student, some, criterion, batch_size=3)
    _, ratified_evidence = ratify_skips(student, whole_text, criterion, batch_size=3)
    assert {d.skipped for d in decisions} == {True, False}
    compare_evidence(decisions, evidence)
    compare_evidence(ratified, ratified_evidence)


def compare_evidence(found, wanted):
    """In pieces there may be less of it, and the decisions stand in the same order."""
    for a, b in zip(found, wanted, strict=True):
        assert (a.id, a.unit, a.text, a.skipped) == (b.id, b.unit, b.text, b.skipped)
        assert bool(a.flipped) == bool(b.flipped)
        for flip, other in zip(a.flipped, b.flipped, strict=False):
            assert (flip["token"], flip["unit"]) == (other["token"], other["unit"])
            for number in ("p_with", "p_without"):
                assert flip[number] == pytest.approx(other[number], abs=2e-4)
        if a.skipped:
            assert a.answer_rise is not None
        for name in ("answer_rise", "write_nll", "pass_nll"):
            if getattr(a, name) is not None:
                assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2, window", "gemma2, window"])
def test_decisions_of_families_are_the_same_in_pieces(name, monkeypatch, tmp_path):
    """In float64, after some steps of training: every shape is sure of some tokens."""
    student, some = shaped(name, monkeypatch), examples(3)
    student.model.float()
    recipe = Recipe(
        target="rationale", budget=40, budget_unit="optimizer_steps", batch_size=3,
        learning_rate=5e-3,
    )  # fmt: skip
    train(student, some, recipe, tmp_path, cpu=True)
    student.model.double()
    made = []
    for sure, rise in ((0.0, 1.0), (0.3, 50.0), (0.6, 50.0), (0.9, 50.0)):
        criterion = SkipCriterion(min_probability=sure, max_answer_nll_rise=rise)
        # One row a pass: the models mask padding with -inf where float64 meets a float32 softmax.
        found, decisions = find_skips(student, some, criterion, batch_size=1)
        again, ratified = ratify_skips(student, found, criterion, batch_size=1)
        with in_pieces(monkeypatch):
            shared, evidence = find_skips(student, some, criterion)
            last, confirmed = ratify_skips(student, shared, criterion)
        assert kept(shared) == kept(found)
        assert kept(last) == kept(again)
        compare_evidence(evidence, decisions)
        compare_evidence(confirmed, ratified)
        made += decisions
    assert {d.skipped for d in made} == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_seams_that_change_tokens_are_read_again(kind, monkeypatch):
    own, some = with_tokenizer(kind), traces(4)
    criterion = SkipCriterion(min_probability=0.3, max_answer_nll_rise=0.1)
    found, _ = find_skips(own, some, criterion)
    again, _ = ratify_skips(own, found, criterion)
    with in_pieces(monkeypatch, first=4):
        assert kept(find_skips(own, some, criterion)[0]) == kept(found)
        assert kept(ratify_skips(own, found, criterion)[0]) == kept(again) != kept(some)


def long_examples(n):
    """Rationales of more than 512 tokens."""
    return list(itertools.chain(*generate_examples("stock", [n], seed=0, steps=20)))


def tokens_read(student):
    """Counts the tokens of every pass; returns the list that they go into."""
    read = []
    student.model.get_input_embeddings().register_forward_hook(
        lambda _, ids, out: read.append(ids[0].numel())
    )
    return read


def test_a_long_rationale_is_read_in_fewer_tokens_than_was_said(monkeypatch):
    student, some = tiny(), long_examples(1)
    items = [student.tokenize(e) for e in some]
    cost = search_cost(items)
    rows = [len(whole_sequence(x).ids) for x in items]
    assert min(rows) >= search.SHARED_FROM
    assert cost["trials"] == sum(len(e.middle_units) for e in some)
    assert cost["row_tokens"] == sum(rows)
    trials = [x.keeping(x.example.kept - {u}) for x in items for u in x.example.middle_units]
    whole_texts = [len(whole_sequence(x).ids) for x in trials]
    assert cost["whole_tokens"] == sum(rows) + sum(whole_texts)
    student.model.eval()
    probe = tokens_read(student)
    assert cannot_share(student, whole_sequence(items[0]).ids) is None
    tried = sum(probe)
    probe.clear()
    found, decisions = find_skips(student, some)
    shared = sum(probe) - tried
    assert 0 < shared < cost["tokens"] < 0.6 * cost["whole_tokens"]
    probe.clear()
    monkeypatch.setattr(search, "SHARED_FROM", 10**9)
    plain, evidence = find_skips(student, some)
    assert kept(found) == kept(plain) != kept(some)
    compare_evidence(decisions, evidence)
    assert sum(probe) > 3 * shared
    assert search_cost(items)["tokens"] == search_cost(items)["whole_tokens"]


@pytest.mark.parametrize("pieces", [True, False])
def test_a_search_ends_where_its_budget_is_spent(pieces, monkeypatch):
    student, some = tiny(), examples(4)
    with in_pieces(monkeypatch) if pieces else monkeypatch.context():
        wanted, all_decisions = find_skips(student, some, ANY_RISE)
        few = replace(ANY_RISE, search_passes=3.0)
        found, decisions = find_skips(student, some, few)
        again, ratified = ratify_skips(student, found, few)
    assert [(d.id, d.unit) for d in decisions] == [(d.id, d.unit) for d in all_decisions]
    by_id = {e.id: e for e in some}
    for d, unlimited in zip(decisions, all_decisions, strict=True):
        assert d == unlimited if d.searched else not d.skipped
        mine = [x.searched for x in decisions if x.id == d.id]
        assert mine == sorted(mine, reverse=True)  # the first units are searched
    assert {d.searched for d in decisions} == {True, False}
    for e, after, before in zip(some, found, again, strict=True):
        reached = [d for d in ratified if d.id == e.id and not d.searched]
        assert all(d.skipped == (d.unit not in after.kept) for d in reached)
        assert all((d.unit in before.kept) == (d.unit in after.kept) for d in reached)
        assert by_id[e.id].kept >= after.kept >= next(w.kept for w in wanted if w.id == e.id)
    assert not all(d.searched for d in ratified)


def test_a_student_that_shares_nothing_is_told_of_once_and_judged_all_the_same(monkeypatch):
    student, some = family("t5"), traces(2)
    wanted = kept(ratify_skips(student, some)[0])
    monkeypatch.setattr(search, "SHARED_FROM", 0)
    with pytest.warns(UserWarning, match="reads its whole text: it is no causal") as told:
        assert kept(ratify_skips(student, some)[0]) == wanted
    assert len(told) == 1


def random_student(name, **options):
    tokenizer = tiny().tokenizer
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer.tokenizer), **options)
    torch.manual_seed(0)
    return CausalStudent(AutoModelForCausalLM.from_config(config).float(), tokenizer)


def test_models_that_cannot_be_read_in_pieces_are_known(monkeypatch):
    ids = rows_of(tiny(), 1)[0]
    assert cannot_share(tiny(), ids) is None
    mamba = random_student("mamba", hidden_size=32, num_hidden_layers=1)
    assert "takes no" in cannot_share(mamba, ids)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = random_student("llama", rope_parameters=scaled, intermediate_size=32, **shape)
    assert "(dynamic) depend on the length" in cannot_share(dynamic, ids)
    recurrent = random_student(
        "qwen3_next", num_key_value_heads=1, head_dim=16, num_experts=0, **shape
    )
    assert "Error: " in cannot_share(recurrent, ids)
    monkeypatch.setattr(prefix_cache, "_joined", lambda rows, past: prefix_cache.DynamicCache())
    assert "off by" in cannot_share(tiny(), ids)  # as if it forgot what it has read


def test_rows_that_do_not_fit_together_are_read_one_by_one(monkeypatch):
    student, some = tiny(), examples(4)
    wanted = kept(find_skips(student, some, ANY_RISE)[0])

    def fits(student, rows, tokens, most=1):
        if len(rows) > most:
            raise torch.OutOfMemoryError("too many")
        read(student, rows, tokens)

    with in_pieces(monkeypatch):
        monkeypatch.setattr(search, "read", fits)
        assert kept(find_skips(student, some, ANY_RISE)[0]) == wanted
        monkeypatch.setattr(search, "read", lambda *given: fits(*given, most=0))
        with pytest.raises(UserError, match=r"a row of \d+ tokens, read \d+ at a time, does not"):
            find_skips(student, some, ANY_RISE)
