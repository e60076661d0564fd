"""Speed of `cwt_ext.segment` against ruptures' KernelCPD (cosine), d = 384, one thread.

The two run alternately in one process on the same data (ruptures gets its float64 copy made
beforehand); the ratio is the median of the paired ratios of CPU time, the times are medians.
`cwt_ext` is given float32 and objective="ls", the problem that KernelCPD solves, and is checked to
return the same breakpoints; "norm" takes the same time.

    python benchmarks/bench_segment.py [repetitions, 15]
    python -m pytest benchmarks/bench_segment.py --benchmark-only

The first prints the table of benchmarks/README.md, the second absolute wall times of both.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import subprocess
import sys
import time

import numpy as np
import pytest
import ruptures

from cwt_ext import _segment, segment, segment_batch

D = 384
MEMORY = r"""
import re, numpy as np
from cwt_ext import segment
def peak():  # KiB of this process alone; ru_maxrss begins with its parent's
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
x = np.random.default_rng(0).standard_normal((20_000, 384), np.float32)
segment(x[:500], k=5)
before = peak()
segment(x, k=200, max_len=400)
print((peak() - before) / 1024)
"""


def kernel_cpd(x, k):
    return ruptures.KernelCPD(kernel="cosine", min_size=1).fit(x).predict(n_bkps=k - 1)


def timed(function, clock=time.process_time):
    start = clock()
    result = function()
    return clock() - start, result


def pair(ours, rival, repetitions):
    """Returns (our median, the rival's, the median ratio, its quartiles), run alternately."""
    times = []
    for i in range(repetitions + 1):
        if i % 2:
            a, b = timed(ours)[0], timed(rival)[0]
        else:
            b, a = timed(rival)[0], timed(ours)[0]
        times.append((a, b))
    a, b = np.array(times[1:]).T  # the first run warms up
    return np.median(a), np.median(b), np.percentile(b / a, [50, 25, 75])


def show(case, ours, rival, ratio, wanted):
    quartiles = f"{ratio[0]:.1f}x ({ratio[1]:.1f}..{ratio[2]:.1f})"
    print(f"| {case} | {ours} | {rival} | {quartiles} | {wanted} |", flush=True)


def batch_case(rng, repetitions):
    lengths = rng.integers(12, 41, 1000)
    ks = np.maximum(2, np.round(lengths / 6)).astype(int).tolist()
    xs = [rng.normal(size=(n, D)).astype(np.float32) for n in lengths]
    doubles = [x.astype(np.float64) for x in xs]
    count = len(xs)

    def ours(threads=1):
        return segment_batch(xs, k=ks, objective="ls", threads=threads)

    def rival():
        return [kernel_cpd(x, k) for x, k in zip(doubles, ks, strict=True)]

    for a, b in zip(ours(), rival(), strict=True):
        assert a.boundaries[1:].tolist() == list(b)
    a, b, ratio = pair(ours, rival, repetitions)
    one, many = f"{a / count * 1e6:.1f} us", f"{b / count * 1e6:.0f} us"
    show("rationales, n = 12..40, each", one, many, ratio, ">= 15x, <= 18 us")
    scaling = []
    for _ in range(2 * repetitions):
        single = timed(lambda: ours(1), time.perf_counter)[0]
        scaling.append(single / timed(lambda: ours(2), time.perf_counter)[0])
    ratio = np.percentile(scaling, [50, 25, 75])
    show("the same on 2 threads over 1, wall time", "", "", ratio, ">= 1.8x on 2 idle cores")


def single_case(rng, n, k, repetitions, wanted):
    x = rng.normal(size=(n, D)).astype(np.float32)
    double = x.astype(np.float64)
    found = segment(x, k=k, objective="ls").boundaries[1:].tolist()
    assert found == list(kernel_cpd(double, k))
    a, b, ratio = pair(
        lambda: segment(x, k=k, objective="ls"), lambda: kernel_cpd(double, k), repetitions
    )
    show(f"n = {n}, K = {k}", f"{a * 1e3:.2f} ms", f"{b * 1e3:.1f} ms", ratio, wanted)


@pytest.mark.parametrize(("n", "k"), [(26, 4), (200, 10), (1000, 20)])
@pytest.mark.parametrize("library", ["cwt_ext", "ruptures"])
def test_segment(benchmark, library, n, k):
    x = np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)
    benchmark.group = f"n = {n}, K = {k}"
    if library == "ruptures":
        found = benchmark(kernel_cpd, x.astype(np.float64), k)
    else:
        found = benchmark(segment, x, k=k, objective="ls").boundaries[1:]
    assert list(found) == list(kernel_cpd(x.astype(np.float64), k))


def main():
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{_segment.instruction_set()}, ruptures {ruptures.version.version}, load {load}\n")
    print("| case | cwt_ext | ruptures | ratio (quartiles) | wanted |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    batch_case(rng, repetitions)
    single_case(rng, 200, 10, 4 * repetitions, ">= 12x")
    single_case(rng, 1000, 20, repetitions, ">= 20x")
    single_case(rng, 4000, 40, max(3, repetitions // 5), ">= 30x")
    x = rng.normal(size=(4000, D)).astype(np.float32)
    limited = [timed(lambda: segment(x, k=40, max_len=200))[0] for _ in range(repetitions)]
    print(f"| n = 4000, K = 40, max_len 200 | {np.median(limited) * 1e3:.1f} ms | | | <= 35 ms |")
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    print(f"| n = 20000, K = 200, max_len 400 | {float(out.stdout):.0f} MB | | | <= 150 MB |")


if __name__ == "__main__":
    main()
