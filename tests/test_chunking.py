import math
from itertools import combinations

import numpy as np
import pytest
import torch
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.students.load import TINY
from cwt.training.chunking import (
    Segmenter,
    average_chunks,
    chunk,
    chunk_costs,
    search_chunks,
    text_embeddings,
    unit_embeddings,
    unit_nll,
)
from cwt.training.recipe import ChunkOptions
from torch.nn import functional as F

import cwt_ext


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (12, 5), (3, 8), (40, 7), (0, 4)])
def test_average_chunks_are_even(n, m):
    cuts = average_chunks(n, m)
    sizes = np.diff(cuts)
    assert (cuts[0], cuts[-1]) == (0, n)
    assert len(sizes) == min(n, m)
    assert n == 0 or sizes.max() - sizes.min() <= 1


def all_cuts(n, m):
    return [(0, *inner, n) for inner in combinations(range(1, n), m - 1)]


def test_search_ends_where_no_single_move_helps_and_exact_is_never_above_it():
    rng = np.random.default_rng(0)
    short = 0
    for _ in range(60):
        n = int(rng.integers(4, 11))
        m = int(rng.integers(2, n))
        costs = np.triu(rng.random((n + 1, n + 1)), 1)
        total = lambda cuts: sum(costs[a, b] for a, b in zip(cuts, cuts[1:]))  # noqa: B023, B905, E731
        found = search_chunks(costs, average_chunks(n, m))
        for i in range(1, m):
            for to in (found[i] - 1, found[i] + 1):
                if found[i - 1] < to < found[i + 1]:
                    assert total([*found[:i], to, *found[i + 1 :]]) >= total(found) - 1e-12
        best = min(map(total, all_cuts(n, m)))
        exact = cwt_ext.segment(costs, k=m, kind="cost")
        assert exact.cost == pytest.approx(best, rel=1e-12)
        assert total(list(exact.boundaries)) == pytest.approx(best, rel=1e-12)
        assert total(found) >= best - 1e-12
        short += total(found) > best + 1e-9
    assert short > 0  # the greedy search does get stuck, which is why there is an exact one


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_chunks_by_length_differ_as_little_in_tokens_as_units_allow(count):
    student, items = tiny(), [*examples(4), *examples(2, "letters")]
    segmenter = Segmenter(student, items, ChunkOptions(count=count))
    for item, cuts in zip(items, segmenter.boundaries("length"), strict=True):
        n = len(item.units) - 1
        lengths = [len(unit) for unit in student.tokenize(item).units[:n]]

        def uneven(boundaries, lengths=lengths):
            pairs = zip(boundaries, boundaries[1:], strict=False)
            return sum(sum(lengths[a:b]) ** 2 for a, b in pairs)

        assert cuts[-2:] == [n, n + 1]
        assert len(cuts) - 2 == min(n, count)
        assert uneven(cuts[:-1]) == min(map(uneven, all_cuts(n, min(n, count))))


@pytest.mark.parametrize("tokens", [7, 20, 1000])
def test_chunks_of_so_many_tokens_are_as_many_as_that_takes(tokens):
    student, items = tiny(), [*examples(3), *examples(2, "letters")]
    segmenter = Segmenter(student, items, ChunkOptions(tokens=tokens, count=3))
    for item, cuts, even in zip(
        items, segmenter.boundaries("length"), segmenter.boundaries("ac"), strict=True
    ):
        lengths = [len(unit) for unit in student.tokenize(item).units[:-1]]
        wanted = min(len(lengths), math.ceil(sum(lengths) / tokens))
        assert len(cuts) == len(even) == wanted + 2
    assert len({len(cuts) for cuts in segmenter.boundaries("length")}) > (tokens < 1000)


def test_a_spent_budget_stops_the_search():
    costs = np.triu(np.random.default_rng(1).random((9, 9)), 1)
    assert search_chunks(costs, [0, 2, 4, 8], budget=0) == [0, 2, 4, 8]


def test_chunk_costs_against_plain_sums_and_the_bias_of_the_mean():
    nll, tokens = np.array([3.0, 5.0, 1.0]), np.array([2, 4, 1])
    mean, total = chunk_costs(nll, tokens, "mean"), chunk_costs(nll, tokens, "sum")
    assert mean[0, 2] == pytest.approx(8 / 6)
    assert mean[1, 3] == pytest.approx(6 / 5)
    for cuts in all_cuts(3, 2):
        assert sum(total[a, b] for a, b in zip(cuts, cuts[1:], strict=False)) == pytest.approx(9)
    # A costly first token (3.8 nats) and cheap others (1.2): the mean prefers any join to none.
    nll, tokens = np.full(6, 3.8 + 9 * 1.2), np.full(6, 10)
    assert chunk_costs(nll, tokens, "mean")[0, 6] == pytest.approx(
        chunk_costs(nll, tokens, "mean")[0, 1]
    )


def test_unit_nll_against_cross_entropy_in_float64():
    student = tiny()
    items = [student.tokenize(e) for e in examples(5)]
    found = unit_nll(student, items, batch_size=3)
    for item, sums in zip(items, found, strict=True):
        ids = torch.tensor([item.prompt + sum(item.units, ())])
        with torch.no_grad():
            logits = student.model(input_ids=ids).logits[0].double()
        nll = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        at = len(item.prompt) - 1
        for unit, value in zip(item.units, sums, strict=True):
            assert value == pytest.approx(float(nll[at : at + len(unit)].sum()), rel=1e-4)
            at += len(unit)


def test_embeddings_are_the_mean_hidden_state_of_each_unit():
    student = tiny()
    items = [student.tokenize(e) for e in examples(3)]
    found = unit_embeddings(student, items, batch_size=2)
    for item, vectors in zip(items, found, strict=True):
        ids = torch.tensor([item.prompt + sum(item.units, ())])
        with torch.no_grad():
            hidden = student.model.model(input_ids=ids).last_hidden_state[0]
        at = len(item.prompt)
        for unit, vector in zip(item.units, vectors, strict=True):
            n = len(unit) - (unit is item.units[-1])  # without the end-of-sequence token
            expected = hidden[at : at + n].mean(0)
            np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-4)
            at += len(unit)


def test_every_method_keeps_the_answer_apart_and_exact_is_never_dearer_than_greedy():
    student = tiny()
    items = examples(6)
    segmenter = Segmenter(student, items, ChunkOptions(count=4))
    cost = {}
    for method in ("ac", "dp", "sbc", "sbc-exact"):
        cuts = segmenter.boundaries(method)
        cost[method] = np.mean(segmenter.total_costs(cuts))
        for item, found in zip(items, cuts, strict=True):
            n = len(item.units)
            assert found[0] == 0
            assert found[-2:] == [n - 1, n]
            assert len(found) - 1 == min(4, n - 1) + 1
            assert all(a < b for a, b in zip(found, found[1:], strict=False))
    assert cost["sbc-exact"] <= cost["sbc"] + 1e-9 <= cost["ac"] + 2e-9
    assert cost["sbc-exact"] <= cost["dp"] + 1e-9


def test_tfidf_sees_the_change_of_words():
    pytest.importorskip("sklearn", reason="the extra [embed] is not installed")
    texts = [["A red ball.", "The ball is red.", "Two coins.", "All coins are new."], ["One."]]
    vectors = text_embeddings("tfidf", texts, batch_size=8)
    assert [len(v) for v in vectors] == [4, 1]
    assert cwt_ext.segment(vectors[0], k=2).boundaries.tolist() == [0, 2, 4]
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-5)


def test_a_sentence_transformers_folder_decides_dp(tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="the extra [embed] is not installed")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(TINY))
    pooling = Pooling(transformer.get_embedding_dimension())
    st.SentenceTransformer(modules=[transformer, pooling]).save(str(tmp_path))
    texts = [[" Tom has 3 pens.", " With Ann, 3 + 4 = 7."], [" The answer is 7"]]
    found = text_embeddings(str(tmp_path), texts, batch_size=2)
    student = tiny()
    for vectors, units in zip(found, texts, strict=True):
        for vector, text in zip(vectors, units, strict=True):
            ids = torch.tensor([student.ids(text)])
            with torch.no_grad():
                hidden = student.model.model(input_ids=ids).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(vector, hidden, rtol=1e-3, atol=1e-4)
    items = examples(3)
    options = ChunkOptions(method="dp", count=4, embeddings=str(tmp_path))
    chosen = Segmenter(student, items, options).boundaries("dp")
    assert [c[-1] for c in chosen] == [len(item.units) for item in items]


def test_embeddings_that_are_none():
    pytest.importorskip("sentence_transformers", reason="the extra [embed] is not installed")
    with pytest.raises(UserError, match=r"embeddings must be .*modules.json.*'no/such'"):
        text_embeddings("no/such", [["x"]], batch_size=1)


@pytest.mark.parametrize("method", ["ac", "dp", "sbc", "sbc-exact"])
def test_chunk_decides_anew_from_whole_examples(method):
    """What an example brings of boundaries and kept units changes nothing and the latter stay."""
    student, whole = tiny(), examples(3)
    options = ChunkOptions(method=method, count=3)
    wanted = Segmenter(student, whole, options).boundaries(method)
    holes = [e.keeping(frozenset({0, len(e.units) - 1})) for e in whole]
    found = chunk(student, holes, options)
    assert [list(e.boundaries) for e in found] == wanted
    assert [e.kept_units for e in found] == [e.kept_units for e in holes]


def test_no_chunks_are_refused():
    with pytest.raises(UserError, match="count must be at least 1, got 0"):
        ChunkOptions(count=0)
    with pytest.raises(UserError, match="tokens must not be negative, got -1"):
        ChunkOptions(tokens=-1)


def test_a_move_must_gain_more_than_the_threshold():
    costs = np.array([[0, 1, 4, 9], [0, 0, 1, 5], [0, 0, 0, 2], [0, 0, 0, 0]], dtype=float)
    # From [0, 2, 3] (4 + 2) the move to [0, 1, 3] (1 + 5) gains nothing; from there, neither.
    assert search_chunks(costs, [0, 2, 3]) == [0, 2, 3]
    costs[1, 3] = 4.5
    assert search_chunks(costs, [0, 2, 3]) == [0, 1, 3]
    assert search_chunks(costs, [0, 2, 3], min_gain=0.4) == [0, 1, 3]
    assert search_chunks(costs, [0, 2, 3], min_gain=0.5) == [0, 2, 3]
