"""`cwt_ext.segment` against a plain float64 dynamic programme and against brute force."""

import itertools
import json
import re
import zlib

import numpy as np
import pytest
import torch
from app_fixtures import DATA, needs_data
from segment_oracle import all_optima, brute_force, cost_table, forbid, penalised_optimum

from cwt_ext import cost_matrix, segment, segment_batch

LIMITS = {
    "free": (),
    "units": ("min_len", "max_len"),
    "tokens": ("min_weight", "max_weight"),
    "both": ("min_len", "max_len", "min_weight", "max_weight"),
}


def make_units(rng, n, d):
    """Random, planted, repeated and zero rows, in turn."""
    style = rng.integers(4)
    x = rng.normal(size=(n, d))
    if style == 1:
        x = rng.normal(size=(n, d))[np.sort(rng.integers(0, max(1, n // 4), n))] + 0.3 * x
    if style == 2:
        x = x[rng.integers(0, max(1, n // 3), n)]
    if style == 3:
        x[rng.random(n) < 0.3] = 0
    return x


def make_limits(rng, n, names):
    weights = rng.integers(0, 60, n).astype(float)
    low, high = int(rng.integers(1, 4)), int(rng.integers(3, n + 3))
    limits = {
        "min_len": low,
        "max_len": high,
        "min_weight": float(rng.integers(0, 60)),
        "max_weight": float(rng.integers(60, 60 * n // 2 + 61)),
    }
    limits = {name: limits[name] for name in names}
    return limits | ({"weights": weights} if "min_weight" in names else {})


def table_cost(table, boundaries):
    return sum(table[i, j] for i, j in itertools.pairwise(boundaries))


def check(found, table, expected):
    """The boundaries are allowed and cost the optimum; the reported costs are theirs."""
    b = found.boundaries.tolist()
    assert found.boundaries.dtype == np.int64
    assert b[0] == 0
    assert b[-1] == len(table) - 1
    scale = max(1.0, abs(expected))
    assert abs(table_cost(table, b) - expected) <= 1e-9 * scale
    assert abs(found.cost - expected) <= 1e-9 * scale
    for cost, i, j in zip(found.chunk_costs, b[:-1], b[1:], strict=True):
        assert abs(cost - table[i, j]) <= 1e-9 * max(1.0, abs(table[i, j]))


def check_everything(x, kind, objective, limits, rng):
    """Every k, the path and three penalties of one problem; returns the number of comparisons."""
    table = forbid(cost_table(x, kind, objective), **limits)
    n = len(table) - 1
    common = {"kind": kind, "objective": objective, **limits}
    optima = all_optima(table)
    for k, optimum in enumerate(optima, 1):
        if optimum is None:
            with pytest.raises(
                ValueError, match=rf"n={n}, k={k}, min_len=\d+, max_len=|no chunk can"
            ):
                segment(x, k=k, **common)
        else:
            check(segment(x, k=k, **common), table, optimum[0])
    feasible = [k for k, optimum in enumerate(optima, 1) if optimum is not None]
    if feasible:
        path = segment(x, k=feasible[-1], path=True, **common).path
        assert [s.k for s in path] == feasible
        for s in path:
            check(s, table, optima[s.k - 1][0])
    for penalty in (0.0, *rng.uniform(0, 2, 2)):
        expected = penalised_optimum(table, penalty)
        if not np.isfinite(expected):
            with pytest.raises(ValueError, match=f"n={n}, k=None"):
                segment(x, penalty=penalty, **common)
            continue
        found = segment(x, penalty=penalty, **common)
        check(found, table, expected - penalty * found.k)
    return n + len(feasible) + 3


@pytest.mark.parametrize("objective", ["norm", "ls"])
@pytest.mark.parametrize("kind", ["embeddings", "similarity", "cost"])
@pytest.mark.parametrize("names", LIMITS.values(), ids=LIMITS)
def test_every_k_path_and_penalty_equal_the_oracle(kind, objective, names):
    rng = np.random.default_rng([len(kind), len(objective), len(names)])
    compared = 0
    while compared < 450:  # 24 parametrisations: 10,800 comparisons
        n, d = int(rng.integers(1, 26)), int(rng.integers(2, 40))
        x = make_units(rng, n, d)
        if kind == "similarity":
            x = x @ x.T + rng.normal(size=(n, n)) * rng.integers(0, 2)
        if kind == "cost":
            x = rng.normal(size=(n + 1, n + 1))
        x = x.astype([np.float32, np.float64][compared % 2])
        compared += check_everything(x, kind, objective, make_limits(rng, n, names), rng)


def test_the_oracle_equals_brute_force():
    rng = np.random.default_rng(0)
    for n in range(1, 10):
        table = forbid(cost_table(rng.normal(size=(n, 3)), "embeddings", "ls"), max_len=n // 2 + 1)
        for k, optimum in enumerate(all_optima(table), 1):
            expected = brute_force(table, k)
            assert (optimum[0] if optimum else np.inf) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "d", "k", "max_len"),
    [
        (47, 384, 5, None),  # one block less one
        (48, 384, 5, None),  # one block
        (49, 384, 48, None),  # a block and one unit, more layers than one pass holds
        (97, 5, 60, None),  # three blocks, rows shorter than a slab
        (150, 700, 9, 20),  # rows of three slabs; the ring of panels goes round
        (211, 257, 40, 7),  # a slab and one element; prime n
        (300, 3, 1, None),  # one chunk
        (300, 3, 300, 1),  # every unit alone
    ],
)
@pytest.mark.parametrize("objective", ["norm", "ls"])
def test_longer_inputs(n, d, k, max_len, objective):
    rng = np.random.default_rng(n)
    x = make_units(rng, n, d).astype(np.float32)
    table = forbid(cost_table(x, "embeddings", objective), max_len=max_len)
    optima = all_optima(table)
    check(segment(x, k=k, max_len=max_len, objective=objective), table, optima[k - 1][0])
    found = segment(x, penalty=0.7, max_len=max_len, objective=objective)
    check(found, table, penalised_optimum(table, 0.7) - 0.7 * found.k)
    similarity = x.astype(np.float64) @ x.T
    table = forbid(cost_table(similarity, "similarity", objective), max_len=max_len)
    found = segment(similarity, k=k, kind="similarity", max_len=max_len, objective=objective)
    check(found, table, all_optima(table)[k - 1][0])


@pytest.mark.parametrize("penalty", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("min_len", [1, 2, 60])
@pytest.mark.parametrize("objective", ["norm", "ls"])
def test_pruning_of_long_inputs_is_exact(objective, min_len, penalty):
    rng = np.random.default_rng(min_len)
    n = 500  # pruning begins at 193
    x = rng.normal(size=(n, 6))[np.sort(rng.integers(0, 40, n))] + 0.3 * rng.normal(size=(n, 6))
    weights = rng.integers(1, 9, n)
    length = np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]
    table = np.where(length < min_len, np.inf, cost_table(x, "embeddings", objective))
    found = segment(x, penalty=penalty, min_len=min_len, objective=objective)
    check(found, table, penalised_optimum(table, penalty) - penalty * found.k)
    prefix = np.concatenate([[0], np.cumsum(weights)])
    load = prefix[None, :] - prefix[:, None]
    table = np.where((load < 200) | (load > 900), np.inf, table)
    limits = {"min_len": min_len, "weights": weights, "min_weight": 200, "max_weight": 900}
    found = segment(x, penalty=penalty, objective=objective, **limits)
    check(found, table, penalised_optimum(table, penalty) - penalty * found.k)


@pytest.mark.parametrize("n", [1, 2, 7, 60, 130])
def test_ties_go_to_the_first(n):
    rng = np.random.default_rng(n)
    for high in (1, 2, 4):  # whole numbers: sums are exact and ties are everywhere
        cost = rng.integers(0, high, (n + 1, n + 1)).astype(np.float64)
        optima = all_optima(cost_table(cost, "cost", "norm"))
        for k in {1, (n + 1) // 2, n}:
            found = segment(cost, k=k, kind="cost")
            assert found.boundaries.tolist() == optima[k - 1][1]
            assert found.cost == optima[k - 1][0]
        found = segment(cost, penalty=1.0, kind="cost")
        assert found.cost + found.k == penalised_optimum(cost_table(cost, "cost", "norm"), 1.0)


def test_tensors_strides_and_byte_order_do_not_matter():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 16))
    want = segment(x, k=4).boundaries.tolist()
    wide = np.zeros((60, 40))
    wide[::2, 5:21] = x
    tensor = torch.tensor(x, requires_grad=True)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), dtype=np.uint8)[1:].view(np.float64)
    for same in (
        wide[::2, 5:21],
        np.asfortranarray(x),
        x.astype(">f8"),
        unaligned.reshape(x.shape),
        tensor,
        tensor.detach().T.contiguous().T,
    ):
        assert segment(same, k=4).boundaries.tolist() == want
    read_only = x.copy()
    read_only.setflags(write=False)
    assert segment(read_only, k=4).boundaries.tolist() == want


def test_cost_below_the_diagonal_and_outside_the_limits_is_never_read():
    rng = np.random.default_rng(1)
    cost = rng.normal(size=(21, 21))
    want = segment(cost, k=6, kind="cost", min_len=2, max_len=5)
    length = np.arange(21)[None, :] - np.arange(21)[:, None]
    cost[(length < 2) | (length > 5)] = np.nan
    found = segment(cost, k=6, kind="cost", min_len=2, max_len=5)
    assert found.boundaries.tolist() == want.boundaries.tolist()


def test_a_callable_cost_is_asked_once_for_each_chunk_that_the_limits_allow():
    asked = []

    def cost(i, j):
        asked.append((i, j))
        return (j - i - 2.5) ** 2 + 0.01 * i

    costs = cost_matrix(cost, 20, min_len=2, max_len=6)
    assert asked == [(i, j) for i in range(20) for j in range(i + 2, min(20, i + 6) + 1)]
    found = segment(costs, k=7, kind="cost", min_len=2, max_len=6)
    table = forbid(np.array([[cost(i, j) for j in range(21)] for i in range(21)]), 2, 6)
    table[np.tri(21, dtype=bool)] = np.inf
    assert found.cost == pytest.approx(brute_force(table, 7), rel=1e-12)
    for wrong in ({"n": 0}, {"n": 5, "min_len": 0}, {"n": 5, "min_len": 3, "max_len": 2}):
        with pytest.raises(ValueError, match=f"cost_matrix: .*n={wrong['n']}"):
            cost_matrix(cost, **wrong)


@needs_data
def test_real_rationales_equal_the_oracle():
    """The sentences of 40 rationales, and 300 of them end to end, as counts of hashed words."""
    rows = json.loads((DATA / "svamp/SVAMP_ChatGPT_level5_ranked.json").read_text())
    rationales = [re.split(r"(?<=[.?!])\s+", row["output"]) for row in rows[:40]]
    rationales.append([unit for r in rationales for unit in r][:300])
    rng, compared = np.random.default_rng(0), 0
    for units in rationales:
        x = np.zeros((len(units), 257))
        for row, unit in zip(x, units, strict=True):
            for word in unit.lower().split():
                row[zlib.crc32(word.encode()) % 257] += 1
        for objective in ("norm", "ls"):
            if len(units) < 60:
                limits = make_limits(rng, len(units), LIMITS["both"])
                compared += check_everything(x, "embeddings", objective, limits, rng)
                continue
            table = cost_table(x, "embeddings", objective)
            optima = all_optima(forbid(table, max_len=40))
            for k in (8, 20, 60):
                found = segment(x, k=k, objective=objective, max_len=40)
                check(found, table, optima[k - 1][0])
    assert compared > 300


def test_auto_penalty_is_the_documented_one():
    x = np.random.default_rng(2).normal(size=(80, 8))
    want = segment(x, penalty=0.08 * np.sqrt(80 * np.log(80)))
    assert segment(x, penalty="auto").boundaries.tolist() == want.boundaries.tolist()
    assert segment(x[:1], penalty="auto").boundaries.tolist() == [0, 1]


X = np.eye(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:0], "k": 1}, "at least one unit is wanted, got n=0"),
        ({"x": np.zeros((1, 1)), "k": 1, "kind": "cost"}, "got n=0"),
        ({"x": X[:, :0], "k": 1}, "at least one element are wanted, got d=0"),
        ({"x": X, "k": 7}, "k must be between 1 and n, got n=6, k=7, min_len=1, max_len=None"),
        ({"x": X, "k": 0}, "k must be between 1 and n, got n=6, k=0"),
        ({"x": X, "k": -2}, "k must be between 1 and n, got n=6, k=-2"),
        ({"x": X}, "exactly one of k and penalty is needed"),
        ({"x": X, "k": 2, "penalty": 1.0}, "exactly one of k and penalty is needed"),
        ({"x": X, "penalty": -1.0}, "penalty must be finite and at least 0, got -1"),
        ({"x": X, "penalty": np.nan}, "penalty must be finite"),
        ({"x": X, "penalty": np.inf}, "penalty must be finite"),
        ({"x": X, "penalty": "auto", "objective": "ls"}, "'auto' is for the norm"),
        ({"x": X, "penalty": 1.0, "path": True}, "path=True needs k"),
        ({"x": X, "k": 2, "max_len": 2}, "satisfies n=6, k=2, min_len=1, max_len=2"),
        ({"x": X, "k": 4, "min_len": 2}, "satisfies n=6, k=4, min_len=2, max_len=None"),
        ({"x": X, "penalty": 1.0, "min_len": 4, "max_len": 5}, "n=6, k=None, min_len=4, max_len=5"),
        ({"x": X, "k": 2, "min_len": 0}, "min_len must be at least 1, got 0"),
        ({"x": X, "k": 2, "min_len": 3, "max_len": 2}, "max_len must be at least min_len"),
        ({"x": X, "k": 2, "max_weight": 3.0}, "need weights"),
        ({"x": X, "k": 2, "weights": [1.0] * 5}, r"weights must be \(6,\), got shape \(5,\)"),
        (
            {"x": X, "k": 2, "weights": [1, 1, -1, 1, 1, 1]},
            "at least 0, got -1 for unit 2",
        ),
        ({"x": X, "k": 2, "weights": [1, np.nan, 1, 1, 1, 1]}, "got nan for unit 1"),
        (
            {"x": X, "k": 2, "weights": [1, 1, 1, 9, 1, 1], "max_weight": 8},
            "unit 3 weighs 9, more than max_weight.*n=6, k=2.*max_weight=8",
        ),
        (
            {"x": X, "k": 2, "weights": [1] * 6, "min_weight": 2, "max_weight": 1.5},
            "max_weight must be at least min_weight",
        ),
        (
            {"x": X, "k": 4, "weights": [1] * 6, "min_weight": 2},
            "satisfies n=6, k=4, min_len=1, max_len=None, min_weight=2, max_weight=None",
        ),
        (
            {"x": X, "k": 2, "weights": [1] * 6, "min_weight": np.nan},
            "min_weight must be at least 0",
        ),
        ({"x": X[0], "k": 2}, r"x must be \(n, d\) for kind='embeddings', got shape \(6,\)"),
        ({"x": X[:3], "k": 2, "kind": "similarity"}, r"x must be \(n, n\)"),
        ({"x": X[:3], "k": 2, "kind": "cost"}, r"x must be \(n\+1, n\+1\)"),
        ({"x": X, "k": 2, "kind": "costs"}, "kind must be"),
        ({"x": X, "k": 2, "objective": "l2"}, "objective must be"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        segment(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_values_that_are_not_finite_are_named_by_row(bad):
    x = np.ones((60, 5))
    x[57, 3] = bad
    with pytest.raises(ValueError, match="row 57 is not"):
        segment(x, k=2)
    if np.isfinite(bad):
        return
    with pytest.raises(ValueError, match="row 57 is not"):
        segment(x.astype(np.float32), k=2)
    similarity = np.ones((60, 60))
    similarity[57, 3] = bad
    with pytest.raises(ValueError, match="rows 3 and 57 are not"):
        segment(similarity, k=2, kind="similarity")
    cost = np.ones((61, 61))
    cost[3, 57] = bad
    with pytest.raises(ValueError, match=r"row 3 has -?(nan|inf) in column 57"):
        segment(cost, k=2, kind="cost")


@pytest.mark.parametrize(
    "x", [[[1.0]], X.astype(int), torch.eye(3).int(), X.astype(complex), torch.eye(3).cfloat()]
)
def test_other_types_are_refused(x):
    with pytest.raises(TypeError, match="x must be"):
        segment(x, k=1)


@pytest.mark.parametrize("kind", ["embeddings", "similarity", "cost"])
@pytest.mark.parametrize("half", ["numpy", torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened(half, kind):
    x = np.random.default_rng(1).standard_normal((14, 14)).astype(np.float32)
    x = x @ x.T if kind == "similarity" else x
    given = x.astype(np.float16) if half == "numpy" else torch.from_numpy(x).to(half)
    wide = given.astype(np.float64) if half == "numpy" else given.double()
    got, want = segment(given, k=4, kind=kind), segment(wide, k=4, kind=kind)
    assert got.boundaries.tolist() == want.boundaries.tolist()
    assert got.cost == pytest.approx(want.cost, rel=1e-12)
    (batch,) = segment_batch([given], k=4, kind=kind)
    assert batch.boundaries.tolist() == want.boundaries.tolist()


@pytest.mark.parametrize("k", [2.5, 2.0, "2", np.float64(2)])
def test_a_number_of_chunks_that_is_no_whole_number(k):
    with pytest.raises(TypeError, match=r"segment: k must be a whole number, got .*2"):
        segment(X, k=k)
    with pytest.raises(TypeError, match=r"segment_batch: item 1: k must be a whole number, got"):
        segment_batch([X, X], k=[2, k])
    assert segment(X, k=np.int32(2)).k == 2


def test_tables_that_no_memory_holds_are_refused():
    """5 million units in 300 chunks asked the system for 18 GB, and died of it."""
    x = np.broadcast_to(np.float32(1), (5_000_000, 1))
    with pytest.raises(
        ValueError, match=r"n=5000000 and k=300 need tables.*16\.8 GiB, more than 8"
    ):
        segment(x, k=300)
    with pytest.raises(ValueError, match="segment_batch: item 0: n=5000000 and k=300 need"):
        segment_batch([x], k=300)


@pytest.mark.parametrize("objective", ["norm", "ls"])
def test_zero_vectors_are_legal(objective):
    """ruptures divides 0 by 0 on them."""
    x = np.zeros((5, 4))
    found = segment(x, k=3, objective=objective)
    assert found.cost == 0
    x[3] = 2
    assert segment(x, k=1, objective=objective).cost == pytest.approx(
        -1 if objective == "norm" else 0.8
    )
    tiny = np.full((5, 4), 1e-200)
    assert segment(tiny, k=1, objective="norm").cost == 0


def test_minimum_length_holds_with_a_penalty():
    """ruptures' PELT prunes too early and answers [2, 5]."""
    x = np.array([[0.0], [1.0], [0.0], [0.0], [1.0]])
    assert segment(x, penalty=0.1, objective="ls", min_len=2).boundaries.tolist() == [0, 5]
