"""Chunks of one example that meet in a step, in one row: the same loss, gradient and training."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.files import read_json, read_lines
from cwt.pipeline.plan import rows_read
from cwt.students import loss
from cwt.students.tokenized import TokenSequence, build_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler
from cwt.training.sharing import share_prefixes
from test_families import family

RECIPE = Recipe(
    target="chunk", budget=8, budget_unit="optimizer_steps", batch_size=12, chunks_together=3
)


def chunk_rows(student, some, chunks):
    return [build_sequence(student.tokenize(e), chunk=m) for e in some for m in chunks]


def gradients(student, rows):
    student.model.zero_grad()
    found = student.token_loss(student.collate(rows), reduction="sum", normalizer=11.0)
    found.loss.backward()
    grads = {n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None}
    return found.loss.item(), grads


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral", "t5", "bart"])
def test_loss_and_gradients_are_those_of_the_rows_apart(name, linear, monkeypatch):
    monkeypatch.setattr(loss, "SMALL_VOCABULARY", 0 if linear else 10**6)
    student = family(name)
    student.model.eval()
    apart = chunk_rows(student, examples(3), (0, 2, 3))
    together = share_prefixes(apart)
    assert len(together) == 3
    assert sum(len(r.ids) for r in together) < 0.6 * sum(len(r.ids) for r in apart)
    value, wanted = gradients(student, apart)
    same_value, found = gradients(student, together)
    assert same_value == pytest.approx(value, rel=1e-5)
    assert found.keys() == wanted.keys()
    most = max(grad.abs().max() for grad in wanted.values())
    for parameter, grad in wanted.items():  # those of the keys' biases are zero but for rounding
        scale = grad.abs().max().clamp_min(0.01 * most)
        torch.testing.assert_close(found[parameter] / scale, grad / scale, rtol=1e-5, atol=1e-5)


def test_every_loss_token_keeps_its_context_and_its_chunk():
    student, some = tiny(), examples(5, chunks=5)
    apart = chunk_rows(student, some, range(6))
    apart = [apart[i] for i in torch.randperm(30, generator=torch.Generator().manual_seed(0))]

    def seen(rows):
        return Counter(
            (row.example, tuple(row.ids[: t + 1]), chunk)
            for row in rows
            for t, chunk in enumerate(row.chunks)
            if chunk >= 0
        )

    for n in (1, 7, 30):
        together = share_prefixes(apart[:n])
        assert seen(together) == seen(apart[:n])
        assert len(together) == len({row.example for row in apart[:n]})


def test_rows_that_differ_or_train_the_same_token_stay_apart():
    a = TokenSequence([1, 2, 3], [-1, 0, 0], prompt=1, example="a")
    longer = TokenSequence([1, 2, 3, 4], [-1, -1, -1, 1], prompt=1, example="a")
    other_text = TokenSequence([1, 9, 3, 4], [-1, -1, -1, 1], prompt=1, example="a")
    other_prompt = TokenSequence([1, 2, 3, 4], [-1, -1, -1, 1], prompt=2, example="a")
    other_example = replace(longer, example="b")
    for rows in ([a, other_text], [a, other_prompt], [a, other_example], [a, a]):
        assert share_prefixes(rows) == rows
    joined = TokenSequence([1, 2, 3, 4], [-1, 0, 0, 1], prompt=1, example="a")
    assert share_prefixes([a, longer]) == share_prefixes([longer, a]) == [joined]
    assert share_prefixes([a, a, longer]) == [a, joined]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_draws_every_chunk_once_and_some_of_an_example_together(grouped):
    student, some = tiny(), examples(16, chunks=5)
    recipe = replace(RECIPE, group_lengths=grouped)
    sampler = Sampler([student.tokenize(e) for e in some], recipe)
    chunks = sum(e.chunks for e in some)
    assert chunks == 96
    steps = [sampler.draw() for _ in range(chunks // 12)]
    drawn = [(row.example, max(row.chunks)) for step in steps for row in step]
    assert sorted(drawn) == sorted((e.id, m) for e in some for m in range(e.chunks))
    groups = [[m for _, m in g] for _, g in itertools.groupby(drawn, key=lambda pair: pair[0])]
    assert sum(len(g) >= 3 for g in groups) > 0.8 * 96 / 3  # a step may cut a group
    assert any(g != sorted(g) for g in groups)
    rows = sum(len(share_prefixes(step)) for step in steps)
    assert 28 <= rows <= 40  # groups of one example may meet


def test_training_is_the_same_and_reads_fewer_tokens(tmp_path):
    some = examples(16, chunks=5)
    logs, spent = [], []
    for share in (False, True):
        folder = tmp_path / str(share)
        spent.append(train(tiny(), some, replace(RECIPE, share_prefixes=share), folder, cpu=True))
        logs.append(read_lines(folder / "train_log.jsonl"))
    apart, together = logs
    assert [row["chunk_tokens"] for row in apart] == [row["chunk_tokens"] for row in together]
    assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in apart], rel=1e-4)
    assert spent[0].loss_tokens == spent[1].loss_tokens
    assert spent[1].processed_tokens < 0.55 * spent[0].processed_tokens
    assert read_json(tmp_path / "True/train.json")["recipe"]["share_prefixes"]


def test_the_plan_expects_what_random_groups_read():
    ends, together = [2, 5, 6, 9, 14], 2
    rows, read = rows_read(ends, together)
    sizes = [len(range(g, 5, rows)) for g in range(rows)]
    assert (rows, sizes) == (3, [2, 2, 1])
    found = []
    for order in itertools.permutations(ends):
        own = [order[g::rows] for g in range(rows)]
        found.append(sum(map(max, own)))
    assert read == pytest.approx(sum(found) / len(found))
    assert rows_read(ends, 1) == (5, sum(ends))
    assert rows_read(ends, 9) == (1, 14)
