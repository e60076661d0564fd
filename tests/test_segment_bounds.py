"""Long inputs: what float32 products prove is what double precision finds, digit for digit.

With `path=True` the segmenter takes double products throughout.
"""

import numpy as np
import pytest
from segment_oracle import all_optima, cost_table, forbid

from cwt_ext import _segment, segment, segment_batch

N, D, K = 300, 96, 9
LIMITS = {
    "free": {},
    "units": {"min_len": 3, "max_len": 45},
    "tokens": {"weights": np.arange(N) % 7, "min_weight": 11, "max_weight": 180},
}


def counted(x, **arguments):
    """Returns the segmentation, and by how much (tried, proven) went up."""
    before = _segment.proof_counts()
    found = segment(x, **arguments)
    return found, tuple(np.subtract(_segment.proof_counts(), before))


def assert_equal(found, x, k, **arguments):
    """The result is that of double products, digit for digit."""
    expected = segment(x, k=k, path=True, **arguments)
    assert found.boundaries.tolist() == expected.boundaries.tolist()
    assert found.chunk_costs.tolist() == expected.chunk_costs.tolist()
    assert found.cost == expected.cost


@pytest.mark.parametrize("objective", ["norm", "ls"])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("style", ["noise", "planted", "shifted", "zeros", "tiny", "doubles"])
def test_proven_optima_are_those_of_double_products(style, limits, objective):
    rng = np.random.default_rng(len(style))
    x = rng.normal(size=(N, D))
    if style == "planted":
        x += rng.normal(size=(K, D))[np.sort(rng.integers(0, K, N))]
    if style == "shifted":
        x += rng.normal(size=D)
    if style == "zeros":  # two apart: more would tie
        x[[40, 200]] = 0
    if style == "tiny":  # below the least float32, and above the largest, where they are squared
        x = x * 10.0 ** rng.choice([-30, 25], (N, 1))
    x = x if style == "doubles" else x.astype(np.float32)
    found, (tried, proven) = counted(x, k=K, objective=objective, **limits)
    assert (tried, proven) == (1, 1)
    assert_equal(found, x, K, objective=objective, **limits)


@pytest.mark.parametrize("objective", ["norm", "ls"])
@pytest.mark.parametrize("d", [64, 257, 700])  # one chain of products; a slab and one; three slabs
def test_they_equal_the_oracle(d, objective):
    x = np.random.default_rng(d).normal(size=(160, d)).astype(np.float32)
    table = forbid(cost_table(x, "embeddings", objective), max_len=60)
    cost, boundaries = all_optima(table)[5]
    found, counts = counted(x, k=6, objective=objective, max_len=60)
    assert counts == (1, 1)
    assert found.boundaries.tolist() == boundaries
    assert found.cost == pytest.approx(cost, rel=1e-12)


@pytest.mark.parametrize("gap", [0, 1e-14, 1e-10, 1e-7, 1e-3])
@pytest.mark.parametrize("objective", ["norm", "ls"])
def test_what_bounds_leave_open_is_decided_in_double(objective, gap):
    """Mirrored units: every cut has a twin of the same cost, until one half moves by `gap`."""
    rng = np.random.default_rng(3)
    half = rng.normal(size=(90, D))
    x = np.concatenate([half, half[::-1]])
    x[:90] += gap * rng.normal(size=half.shape)
    found, (tried, proven) = counted(x, k=4, objective=objective)
    assert tried == 1
    assert proven == (gap >= 1e-7)  # closer than that, double precision's own order decides
    assert_equal(found, x, 4, objective=objective)


def test_units_that_are_too_much_alike_are_not_tried():
    rng = np.random.default_rng(0)
    x = rng.normal(size=D) + 0.05 * rng.normal(size=(N, D))
    found, counts = counted(x, k=K)
    assert counts == (0, 0)
    assert_equal(found, x, K)


def test_a_batch_on_threads_counts_each_of_its_items():
    xs = np.random.default_rng(1).normal(size=(6, 200, D)).astype(np.float32)
    before = _segment.proof_counts()
    found = segment_batch(list(xs), k=[5] * 6, threads=3)
    assert tuple(np.subtract(_segment.proof_counts(), before)) == (6, 6)
    for result, x in zip(found, xs, strict=True):
        assert_equal(result, x, 5)


def test_errors_are_those_of_short_inputs():
    x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    with pytest.raises(ValueError, match="no segmentation satisfies n=300, k=3"):
        segment(x, k=3, max_len=99)
    x[257, 3] = np.inf
    x[280, 3] = np.nan
    with pytest.raises(ValueError, match="row 257 is not"):
        segment(x, k=3)
