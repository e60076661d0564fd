"""What users of other segmenters suffer from, each as a test of ours; and ruptures as a rival."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from segment_oracle import cost_table

from cwt_ext import segment, segment_batch


def documents(seed, n, d, topics, noise):
    rng = np.random.default_rng(seed)
    topic = np.sort(rng.integers(0, topics, n))
    return rng.normal(size=(topics, d))[topic] + noise * rng.normal(size=(n, d))


def test_hard_maximum_length_is_never_exceeded():
    """LangChain, LlamaIndex and chonkie have none."""
    x = documents(0, 120, 16, 3, 0.1)
    for objective, max_len in itertools.product(["norm", "ls"], [1, 2, 7, 40]):
        found = segment(x, penalty=0.5, max_len=max_len, objective=objective)
        assert np.diff(found.boundaries).max() <= max_len
    weights = np.random.default_rng(0).integers(1, 60, 120)
    found = segment(x, penalty=0.5, weights=weights, max_weight=100)
    assert np.add.reduceat(weights, found.boundaries[:-1]).max() <= 100


def test_minimum_length_really_holds():
    """chonkie lets short chunks through."""
    x = documents(1, 90, 8, 30, 0.0)
    for min_len in (2, 5, 30, 90):
        for aim in ({"penalty": 0.0}, {"k": 90 // min_len}):
            assert np.diff(segment(x, min_len=min_len, **aim).boundaries).min() >= min_len


def test_minimum_length_delays_pruning():
    """ruptures' PELT prunes before the minimum allows the better start: two chunks, not one."""
    x = np.array([[0.0], [1.0], [0.0], [0.0], [1.0]])
    found = segment(x, penalty=0.1, objective="ls", min_len=2)
    assert found.boundaries.tolist() == [0, 5]


def test_path_of_costs_and_no_change():
    """ruptures returns no cost, and no segmentation with one chunk."""
    x = documents(2, 60, 12, 4, 0.2)
    path = segment(x, k=8, path=True, objective="ls").path
    costs = [s.cost for s in path]
    assert [s.k for s in path] == list(range(1, 9))
    assert costs == sorted(costs, reverse=True)
    drops = -np.diff(costs)
    assert drops[2] > 10 * drops[3]  # the elbow is at the true number of topics
    assert path[0].boundaries.tolist() == [0, 60]
    same = np.ones((30, 5))
    assert segment(same, penalty="auto").boundaries.tolist() == [0, 30]


def test_infeasible_input_is_an_error_and_not_a_crash():
    with pytest.raises(ValueError, match="n=5, k=2, min_len=3"):
        segment(np.ones((5, 2)), k=2, min_len=3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_fifty_thousand_units_need_no_square_matrix():
    """Measured in a fresh process: a 50,000 x 50,000 matrix is 10 GB in float32."""
    program = r"""
import re, numpy as np
from cwt_ext import segment
def peak():  # KiB of this process alone; ru_maxrss begins with its parent's
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
x = np.random.default_rng(0).standard_normal((50_000, 4), np.float32)
segment(x[:1000], k=10, max_len=500)
before = peak()
assert len(segment(x, k=150, max_len=500).chunk_costs) == 150
print((peak() - before) / 1024)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 120  # MB: 60 of layers, 30 of back-pointers


def test_many_short_documents_at_once():
    """sktime's users loop in Python; here one call, whose every answer is `segment`'s."""
    xs = [documents(seed, 5 + seed % 30, 16, 3, 0.5) for seed in range(3000)]
    found = segment_batch(xs, k=2, min_len=2)
    for i in range(0, 3000, 100):
        assert found[i].boundaries.tolist() == segment(xs[i], k=2, min_len=2).boundaries.tolist()


@pytest.mark.parametrize("min_size", [1, 3])
@pytest.mark.parametrize("kernel", ["cosine", "linear"])
def test_ruptures_finds_the_same_breakpoints(kernel, min_size):
    """Wherever KernelCPD can say it: k >= 2, no maximum, no zero rows."""
    ruptures = pytest.importorskip("ruptures", reason="the rival is not installed")
    for seed in range(60):
        n = 12 + seed
        x = documents(seed, n, 9, 4, 1.0)
        k = 2 + seed % (n // (2 * min_size) - 1)
        algorithm = ruptures.KernelCPD(kernel=kernel, min_size=min_size).fit(x)
        want = [0, *algorithm.predict(n_bkps=k - 1)]
        if kernel == "cosine":
            found = segment(x, k=k, objective="ls", min_len=min_size)
        else:
            found = segment(x @ x.T, k=k, kind="similarity", objective="ls", min_len=min_size)
        assert found.boundaries.tolist() == want
        kind = "embeddings" if kernel == "cosine" else "similarity"
        table = cost_table(x if kernel == "cosine" else x @ x.T, kind, "ls")
        total = sum(table[i, j] for i, j in itertools.pairwise(want))
        assert found.cost == pytest.approx(total, rel=1e-9)
