"""`cwt_ext.segment_batch`: what `segment` says, item by item, whatever the threads."""

import doctest
import signal
import subprocess
import sys
import time
from pathlib import Path

import guarded_memory
import numpy as np
import pytest
import torch

from cwt_ext import segment, segment_batch

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 90, 400)
XS = [RNG.normal(size=(n, 24)).astype([np.float32, np.float64][n % 2]) for n in LENGTHS]


def assert_equal(batch, one_by_one):
    assert len(batch) == len(one_by_one)
    for got, want in zip(batch, one_by_one, strict=True):
        assert got.boundaries.tolist() == want.boundaries.tolist()
        assert got.chunk_costs.tolist() == want.chunk_costs.tolist()
        assert got.cost == want.cost
        assert got.path == ()


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("objective", ["norm", "ls"])
def test_same_as_one_by_one_to_the_last_bit(threads, objective):
    ks = np.maximum(1, LENGTHS // 6)
    batch = segment_batch(XS, k=ks, objective=objective, threads=threads)
    one_by_one = [segment(x, k=k, objective=objective) for x, k in zip(XS, ks, strict=True)]
    assert_equal(batch, one_by_one)


def test_penalties_and_weights_per_item():
    penalties = RNG.uniform(0, 2, len(XS))
    weights = [RNG.integers(1, 50, n) for n in LENGTHS]
    options = {"max_len": 12, "max_weight": 200.0}
    batch = segment_batch(XS, penalty=penalties, weights=weights, **options)
    items = zip(XS, penalties, weights, strict=True)
    assert_equal(batch, [segment(x, penalty=p, weights=w, **options) for x, p, w in items])
    auto = segment_batch(XS, penalty="auto", threads=2)
    assert_equal(auto, [segment(x, penalty="auto") for x in XS])


def test_other_kinds_and_tensors():
    costs = [RNG.normal(size=(n + 1, n + 1)) for n in LENGTHS[:50]]
    batch = segment_batch(costs, k=1, kind="cost")
    assert [s.cost for s in batch] == [c[0, -1] for c in costs]
    tensors = [torch.tensor(x) for x in XS]
    assert_equal(segment_batch(tensors, penalty=0.5), segment_batch(XS, penalty=0.5))


def test_the_examples_of_the_docstrings_run():
    results = doctest.testmod(sys.modules["cwt_ext.segment"])
    assert (results.attempted, results.failed) == (8, 0)


def test_nothing_in_nothing_out():
    assert segment_batch([], k=3) == []
    assert segment_batch([], penalty=[]) == []


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_item_at_fault_is_named(threads):
    ks = np.ones(len(XS), dtype=int)
    ks[[37, 250, 399]] = LENGTHS[[37, 250, 399]] + 1
    n = LENGTHS[37]
    with pytest.raises(ValueError, match=rf"^segment_batch: item 37: k must .* n={n}, k={n + 1},"):
        segment_batch(XS, k=ks, threads=threads)


def test_bad_items_and_lengths_are_named():
    bad = [np.ones((3, 2)), np.ones(3)]
    with pytest.raises(ValueError, match=r"segment_batch: item 1: x must be \(n, d\)"):
        segment_batch(bad, k=1)
    with pytest.raises(
        TypeError, match="segment_batch: item 1: x must be float16, bfloat16, float32"
    ):
        segment_batch([bad[0], np.ones((3, 2), dtype=int)], k=1)
    with pytest.raises(ValueError, match="item 0: no segmentation satisfies n=3, k=2, min_len=2"):
        segment_batch([bad[0]], k=2, min_len=2)
    with pytest.raises(ValueError, match=r"item 1: weights must be \(3,\), got shape \(2,\)"):
        segment_batch([bad[0]] * 2, k=1, weights=[[1, 1, 1], [1, 1]])
    with pytest.raises(ValueError, match="segment_batch: k must be one per item, 1, got 2"):
        segment_batch([bad[0]], k=[1, 2])
    with pytest.raises(ValueError, match="segment_batch: threads must be at least 1, got 0"):
        segment_batch([bad[0]], k=1, threads=0)
    with pytest.raises(ValueError, match="item 0: exactly one of k and penalty"):
        segment_batch([bad[0]])


GIL = """
import sys, threading
import numpy as np
from cwt_ext import segment, segment_batch
from guarded_memory import PAGE, Pages, wait_at_closed_pages

size = 64 * PAGE
pages = Pages(size)
x = np.frombuffer(pages.buffer, np.float64).reshape(-1, 64)
x[:] = np.random.default_rng(0).normal(size=x.shape)
want = segment(x, k=9).boundaries.tolist()
wait_at_closed_pages()
pages.protect(size - PAGE, size, closed=True)
start = threading.Lock()
start.acquire()

def open_the_page():
    start.acquire()
    pages.protect(size - PAGE, size, closed=False)
    sys.stdout.write("opened\\n")  # whole: another thread may print between parts

sys.setswitchinterval(1e6)  # the GIL changes hands only where its holder blocks or releases it
thread = threading.Thread(target=open_the_page)
thread.start()
start.release()
found = {call}
sys.stdout.write("found\\n")
thread.join()
assert found.boundaries.tolist() == want
"""


@pytest.mark.skipif(bool(guarded_memory.MISSING), reason=guarded_memory.MISSING)
@pytest.mark.parametrize(
    "call", ["segment(x, k=9)", "segment_batch([x], k=9)[0]", "segment_batch([x] * 40, k=9)[39]"]
)
def test_other_python_threads_run_meanwhile(call):
    """The call cannot end before another Python thread, which needs the GIL, opens a page of x."""
    done = guarded_memory.run_apart(GIL.format(call=call), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["opened", "found"]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_path_of_every_item(threads):
    xs = [
        rng.standard_normal((n, 5))
        for n, rng in ((n, np.random.default_rng(n)) for n in (4, 9, 30, 6))
    ]
    found = segment_batch(xs, k=[2, 4, 5, 3], path=True, threads=threads)
    for x, k, got in zip(xs, [2, 4, 5, 3], found, strict=True):
        want = segment(x, k=k, path=True)
        assert [p.k for p in got.path] == list(range(1, k + 1))
        for a, b in zip(got.path, want.path, strict=True):
            assert a.boundaries.tolist() == b.boundaries.tolist()
            assert a.cost == b.cost
    with pytest.raises(ValueError, match=r"^segment_batch: path=True needs k"):
        segment_batch(xs, penalty=1.0, path=True)


LONG = {
    "segment": "segment(rng.standard_normal((30000, 256)), k=500)",
    "segment_batch": "segment_batch([rng.standard_normal((9000, 256))] * 40, k=200, threads=2)",
}


@pytest.mark.parametrize("what", list(LONG))
def test_ctrl_c_ends_it_within_a_second(what):
    code = (
        "import numpy as np; from cwt_ext import segment, segment_batch\n"
        "rng = np.random.default_rng(0); print('begins', flush=True)\n"
        f"try: {LONG[what]}\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout.readline() == "begins\n"
    time.sleep(2)
    assert process.poll() is None, "it was over before it could be interrupted"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert printed == "interrupted\n"
    assert time.monotonic() - begin < 10  # one, on an idle machine
