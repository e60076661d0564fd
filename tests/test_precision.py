"""Number formats of passes, and passes limited by tokens in place of rows."""

from types import SimpleNamespace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.skipping.scoring import score_tokens
from cwt.students import precision
from cwt.students.precision import compute_dtype
from cwt.students.student import group_by_tokens, iterate_logits
from cwt.students.tokenized import whole_sequence
from cwt.training.chunking import unit_nll
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from torch.nn import functional as F

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "allowed", "wanted"),
    [
        (False, False, True, torch.float32),  # AVX2 alone
        (False, False, False, torch.float32),
        (True, False, True, torch.bfloat16),
        (False, True, True, torch.bfloat16),
        (True, True, False, torch.float32),  # DNNL_MAX_CPU_ISA=AVX2 on a newer processor
    ],
)
def test_a_cpu_without_bfloat16_units_is_never_given_bfloat16(
    monkeypatch, amx, avx512_bf16, allowed, wanted
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    operators = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: allowed)
    monkeypatch.setattr(precision.torch.ops, "mkldnn", operators, raising=False)
    assert compute_dtype("auto", CPU) == wanted


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_has_bfloat16_units_from_capability_8_on(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype("auto", torch.device("cuda", 0)) == wanted


def test_formats_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"dtype must be auto, float32.*got 'int8'"):
        compute_dtype("int8", CPU)
    with pytest.raises(UserError, match="dtype float16 needs a GPU"):
        compute_dtype("float16", CPU)


def test_bfloat16_changes_products_and_not_the_weights_or_averages(tmp_path):
    some = examples(4)
    recipe = Recipe(target="rationale", budget=3, budget_unit="optimizer_steps", batch_size=4)
    whole, half = tiny(), tiny()
    half.dtype = torch.bfloat16
    batch = half.collate([whole_sequence(half.tokenize(e)) for e in some])
    logits = half.logits_at(batch).detach()
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, logits.float().bfloat16())
    wanted = whole.logits_at(batch).detach()
    assert 1e-4 < float((logits - wanted).norm() / wanted.norm()) < 0.03
    train(whole, some, recipe, tmp_path / "whole", cpu=True)
    train(half, some, recipe, tmp_path / "half", cpu=True)
    start = tiny().model.state_dict()
    for name, value in half.model.state_dict().items():
        assert value.dtype == torch.float32, name
        moved, wanted = value - start[name], whole.model.state_dict()[name] - start[name]
        if wanted.abs().max() > 0:  # the same direction, to the rounding of the products
            assert F.cosine_similarity(moved.flatten(), wanted.flatten(), 0) > 0.9, name


def test_groups_are_full_sorted_and_within_their_limit():
    lengths = [7, 3, 9, 3, 1, 12, 4]
    groups = group_by_tokens(lengths, tokens=12)
    assert sorted(i for group in groups for i in group) == list(range(7))
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat)
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        assert len(group) * max(lengths[i] for i in group) <= 12
        if following:  # one more row would not have fitted
            assert (len(group) + 1) * lengths[following[0]] > 12
    assert group_by_tokens([20, 20], tokens=12) == [[0], [1]]  # too long: alone
    assert group_by_tokens([1, 1, 1], tokens=0, rows=2) == [[0, 1], [2]]
    assert group_by_tokens([], tokens=5) == []


@pytest.mark.parametrize("tokens", [150, 700])
def test_scores_do_not_depend_on_how_passes_are_limited(tokens):
    by_rows, by_tokens = tiny(), tiny()
    by_tokens.pass_tokens = tokens
    items = [by_rows.tokenize(e) for e in examples(6)]
    rows = [whole_sequence(x) for x in items]
    for _, batch, _ in iterate_logits(by_tokens, rows, 32):
        assert batch.input_ids.numel() <= tokens or len(batch.input_ids) == 1
    for a, b in zip(unit_nll(by_rows, items, 4), unit_nll(by_tokens, items, 4), strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)
    here, there = score_tokens(by_rows, items, 4), score_tokens(by_tokens, items, 4)
    assert [{k: v[0] for k, v in x.items()} for x in here] == [
        {k: v[0] for k, v in x.items()} for x in there
    ]


def limited(student, limit, name):
    """A student whose passes of more than `limit` rows run out of memory."""
    original = getattr(student, name)
    seen = []

    def call(first, *rest):
        rows = len(first.input_ids) if name == "logits_at" else len(first)
        if rows > limit:
            raise torch.OutOfMemoryError("none left")
        seen.append(rows)
        return original(first, *rest)

    setattr(student, name, call)
    return seen


def test_a_pass_that_does_not_fit_is_halved():
    items = [tiny().tokenize(e) for e in examples(7)]
    wanted = score_tokens(tiny(), items, 32)
    student = tiny()
    seen = limited(student, 2, "logits_at")
    found = score_tokens(student, items, 32)
    assert max(seen) == 2
    assert sum(seen) == 7
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        assert [v[1] for v in a.values()] == pytest.approx([v[1] for v in b.values()], rel=1e-3)
    limited(student, 0, "logits_at")
    with pytest.raises(UserError, match=r"a row of \d+ tokens does not fit the memory of cpu"):
        score_tokens(student, items, 32)


def test_generation_that_does_not_fit_is_halved_and_grouped_by_tokens():
    questions = examples(7)
    wanted = [g.text for g in evaluate(tiny(), questions, 12)[1]]
    student = tiny()
    seen = limited(student, 3, "generate")
    assert [g.text for g in evaluate(student, questions, 12)[1]] == wanted
    assert max(seen) <= 3
    student = tiny()
    seen = limited(student, 99, "generate")
    longest = max(len(student.prompt(e.question)) for e in questions) + 12
    found = evaluate(student, questions, 12, batch_size=0, batch_tokens=2 * longest)[1]
    assert [g.text for g in found] == wanted
    assert set(seen[1:]) <= {1, 2}
    limited(student, 0, "generate")
    with pytest.raises(UserError, match="does not suffice to answer one question"):
        evaluate(student, questions, 12)


def test_generation_is_greedy_whatever_the_model_is_configured_to_do():
    prompts = [tiny().prompt(e.question) for e in examples(3)]
    wanted = tiny().generate(prompts, 20)
    student = tiny()
    own = student.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.top_k = True, 3.0, 1.9, 4
    own.no_repeat_ngram_size, own.num_beams, own.min_new_tokens = 2, 3, 18
    assert student.generate(prompts, 20) == wanted
    assert student.model.generation_config is own
