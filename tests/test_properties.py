"""Properties of the public functions under arbitrary arguments: few cases here, many when slow.

Each property is a plain function of what Hypothesis draws; `hold` runs it on so many cases.
"""

import json
import random
import time

import numpy as np
import pytest
import torch
from chunk_loss_cases import close, compare
from cwt.data.answers import answer_kind, extract_answer, same_answer
from cwt.data.example import load_examples, write_examples
from cwt.data.readers import read_examples
from cwt.data.sentences import protected_spans, sentence_ends
from cwt.data.split import draw_splits
from cwt.data.units import answer_start, split_units
from cwt.errors import UserError
from fuzz import targets
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reader_rows import SUM
from segment_oracle import all_optima, cost_table, forbid
from test_answers import BITS
from test_units import KINDS, PIECES

import cwt_ext
from cwt_ext import reference

CASES = pytest.mark.parametrize("cases", [15, pytest.param(1500, marks=pytest.mark.slow)])
FUZZ_SECONDS = pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])


def hold(law, cases, *drawn, **named):
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run = settings(max_examples=cases, deadline=None, suppress_health_check=quiet)
    run(given(*drawn, **named)(law))()


# cwt_ext


@st.composite
def losses(draw, dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16)):
    """(logits, labels, chunk ids, options) that are legal."""
    rows, vocab, chunks = draw(st.integers(1, 9)), draw(st.integers(1, 70)), draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(rows, vocab, generator=g) * draw(st.sampled_from([0.0, 1.0, 30.0]))
    labels = torch.randint(0, vocab, (rows,), generator=g)
    labels[torch.rand(rows, generator=g) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -100
    ids = torch.randint(-1, chunks, (rows,), generator=g)
    dtype = draw(st.sampled_from(dtypes))
    options = draw(st.fixed_dictionaries(
        {"reduction": st.sampled_from(["token_mean", "chunk_mean", "sum", "none"])},
        optional={
            "label_smoothing": st.sampled_from([0.0, 0.1, 0.9]),
            "z_loss": st.sampled_from([0.0, 1e-3]),
            "softcap": st.sampled_from([None, 30.0, 100.0]),
            "active": st.lists(st.booleans(), min_size=chunks, max_size=chunks).map(torch.tensor),
            "normalizer": st.sampled_from([0.5, 7.0]),
            "token_weight": st.just(torch.rand(rows, generator=g)),
        },
    ))  # fmt: skip
    if options["reduction"] == "none":
        options.pop("normalizer", None)
    return logits.to(dtype), labels, ids, {**options, "num_chunks": chunks}


@CASES
def test_chunk_loss_is_the_oracle(cases):
    def law(case):
        logits, labels, ids, options = case
        x = logits.clone().requires_grad_()
        out = cwt_ext.chunk_loss(x, labels, ids, **options)
        upstream = torch.ones_like(out.loss)
        (grad,) = torch.autograd.grad(out.loss, x, upstream)
        rtol = 1e-6
        # p - smoothing / V cancels, and so does the tanh of capped logits in their differences.
        if options.get("label_smoothing") or options.get("softcap"):
            rtol = 1e-11 if logits.dtype == torch.float64 else 2e-5
        compare(out, grad, logits, labels, ids, rtol=rtol, **options)

    hold(law, cases, losses())


@CASES
def test_chunk_loss_takes_what_it_takes_and_refuses_the_rest(cases):
    tensors = st.builds(
        lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.int32, torch.bool]),
        st.sampled_from([-100.0, -1.0, 0.0, 1.0, 3.0, 1e9, float("nan"), float("inf")]),
    )
    options = st.fixed_dictionaries({}, optional={
        "reduction": st.sampled_from(["sum", "none", "token_mean", "mean", ""]),
        "label_smoothing": st.floats(), "z_loss": st.floats(),
        "softcap": st.none() | st.floats(), "num_chunks": st.none() | st.integers(-2, 4),
        "active": st.none() | tensors, "token_weight": st.none() | tensors,
        "normalizer": st.none() | st.floats(),
    })  # fmt: skip

    def law(logits, labels, ids, options):
        try:
            out = cwt_ext.chunk_loss(logits, labels, ids, **options)
        except (ValueError, TypeError, IndexError) as error:
            assert "chunk_loss" in str(error)  # noqa: PT017
            return
        assert out.loss.dtype in (torch.float32, torch.float64)
        assert out.loss.shape == (labels.shape if options.get("reduction") == "none" else ())

    hold(law, cases, tensors, tensors, tensors, options)


@CASES
def test_linear_chunk_loss_is_the_oracle_of_the_product(cases):
    def law(case, width, block_rows, bias, seed):
        logits, labels, ids, options = case
        rows, vocab = logits.shape
        g = torch.Generator().manual_seed(seed)
        hidden = torch.randn(rows, width, generator=g).double().requires_grad_()
        head = torch.randn(vocab, width, generator=g).double().requires_grad_()
        offset = torch.randn(vocab, generator=g).double() if bias else None
        got = cwt_ext.linear_chunk_loss(
            hidden, head, labels, ids, offset, block_rows=block_rows, **options
        )
        product = hidden @ head.T if offset is None else hidden @ head.T + offset
        want = reference.chunk_loss(product, labels, ids, **options)
        close(got.loss, want.loss, 1e-10, 1e-12)
        upstream = torch.ones_like(got.loss)
        grads = torch.autograd.grad(got.loss, (hidden, head), upstream)
        wanted = torch.autograd.grad(want.loss, (hidden, head), upstream)
        for a, b in zip(grads, wanted, strict=True):
            close(a, b, 1e-9, 1e-11)

    some = st.integers(1, 9)
    hold(law, cases, losses((torch.float64,)), some, st.none() | some, st.booleans(), some)


@CASES
def test_shift_labels_is_a_shift(cases):
    def law(rows, dtype, ignore):
        labels = torch.tensor(rows).to(dtype)
        got = cwt_ext.shift_labels(labels, ignore)
        want = np.concatenate([labels.numpy()[:, 1:], np.full((len(rows), 1), ignore)], axis=1)
        assert got.dtype == dtype
        assert got.tolist() == want.tolist()
        assert cwt_ext.shift_labels(labels[0], ignore).tolist() == want[0].tolist()

    rows = st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-100, 30_000), min_size=n, max_size=n), min_size=1, max_size=4
        )
    )
    dtypes = st.sampled_from([torch.int64, torch.int32, torch.int16])
    hold(law, cases, rows, dtypes, st.integers(-100, 100))


@CASES
def test_costs_of_a_callable_give_the_optimum(cases):
    def law(n, seed, min_len, extra):
        rng, max_len = random.Random(seed), min_len + extra
        values = {(i, j): rng.uniform(-5, 5) for i in range(n) for j in range(i + 1, n + 1)}
        asked = []
        table = cwt_ext.cost_matrix(
            lambda i, j: asked.append((i, j)) or values[i, j], n, min_len=min_len, max_len=max_len
        )
        within = [(i, j) for i, j in values if min_len <= j - i <= max_len]
        assert sorted(asked) == sorted(within)
        assert {(i, j) for i, j in np.argwhere(~np.isnan(table)).tolist()} == set(within)
        full = np.full((n + 1, n + 1), np.inf)
        for i, j in within:
            full[i, j] = values[i, j]
        limits = {"min_len": min_len, "max_len": max_len}
        for k, optimum in enumerate(all_optima(forbid(full, **limits)), 1):
            if optimum is not None:
                found = cwt_ext.segment(table, k=k, kind="cost", **limits)
                assert found.cost == pytest.approx(optimum[0], abs=1e-9)

    some = st.integers(1, 8)
    hold(law, cases, st.integers(1, 12), st.integers(0, 10**6), st.integers(1, 3), some)


@CASES
def test_segment_and_segment_batch_agree_and_are_optimal(cases):
    def law(sizes, seed, width, objective, k):
        rng = np.random.default_rng(seed)
        items = [rng.normal(size=(n, width)) for n in sizes]
        counts = [min(k, n) for n in sizes]
        together = cwt_ext.segment_batch(items, k=counts, objective=objective)
        for x, count, found in zip(items, counts, together, strict=True):
            alone = cwt_ext.segment(x, k=count, objective=objective)
            assert alone.boundaries.tolist() == found.boundaries.tolist()
            assert alone.cost == found.cost
            best = all_optima(forbid(cost_table(x, "embeddings", objective)))[count - 1]
            assert found.cost == pytest.approx(best[0], abs=1e-7)

    sizes = st.lists(st.integers(1, 10), min_size=1, max_size=4)
    objectives, some = st.sampled_from(["norm", "ls"]), st.integers(1, 6)
    hold(law, cases, sizes, st.integers(0, 10**6), some, objectives, some)


# cwt.data

TEXTS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=80)


@CASES
def test_units_are_the_text(cases):
    def law(text, kind):
        units = split_units(text, kind)
        assert "".join(units) == text
        assert 0 <= answer_start(text) <= len(text)
        ends = sentence_ends(text)
        assert ends == sorted(set(ends))
        assert all(0 < end <= len(text) for end in ends)
        spans = protected_spans(text)
        assert not any(start < end < stop for end in ends for start, stop in spans)

    hold(law, cases, TEXTS, st.sampled_from(KINDS))


@CASES
def test_answers_are_equal_to_themselves_in_both_directions_of_space_and_case(cases):
    def law(first, second):
        first, second = "".join(first), "".join(second)
        assert same_answer(None, second) is False
        verdict = same_answer(first, second)
        assert verdict in (True, False)
        assert same_answer(f" {first}\n", f"\t{second} ") == verdict
        assert isinstance(answer_kind(first), str)
        stated = extract_answer(f"It is so. The answer is {first}")
        assert stated is None or stated.strip()

    texts = st.lists(BITS, max_size=6)
    hold(law, cases, texts, texts | st.text(max_size=20))


@CASES
def test_examples_are_written_and_read_back_and_split_without_a_leak(tmp_path, cases):
    def law(texts, seed):
        rows = [{"question": t or "Q", "rationale": SUM, "answer": "6"} for t in texts]
        path = tmp_path / "f.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        try:
            found = read_examples(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            return
        assert len(found.examples) + len(found.dropped) == found.rows == len(rows)
        write_examples(tmp_path / "e.jsonl", found.examples)
        assert load_examples(tmp_path / "e.jsonl") == found.examples
        assume(len(found.examples) > 3)
        drawn = draw_splits(found.examples, None, (len(rows), 1, 1), seed)
        parts = [{" ".join(e.question.split()).casefold() for e in part}
                 for part in (drawn.train, drawn.validation, drawn.test)]  # fmt: skip
        assert sum(map(len, parts)) == len(set.union(*parts))

    hold(law, cases, st.lists(TEXTS, min_size=1, max_size=8), st.integers(0, 99))


# Fuzzing without coverage: bytes that were right are broken at random, for a bounded time.


def broken(rng, data):
    """Some bytes, with a few changes: flipped, removed, doubled, or replaced by what hurts."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + rng.randint(0, 40))
        changed = (b"", bytes(data[at:to]) * 3, rng.randbytes(to - at), rng.choice(targets.HURTS))
        data[at:to] = rng.choice(changed)
    return bytes(data)


@pytest.mark.parametrize("target", targets.SEEDS, ids=lambda target: target.__name__)
@FUZZ_SECONDS
def test_broken_bytes_keep_every_promise_in_bounded_time(target, seconds):
    rng, end, tried = random.Random(0), time.monotonic() + seconds, 0
    while time.monotonic() < end or tried <= 20:
        data = broken(rng, rng.choice(targets.SEEDS[target]) * rng.choice([1, 1, 5]))
        begin = time.monotonic()
        target(data)
        tried += 1
        assert time.monotonic() - begin < 20, data
    print(f"{target.__name__}: {tried} inputs")
