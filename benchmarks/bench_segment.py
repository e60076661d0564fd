"""Speed of `cwt_ext.segment` against ruptures' KernelCPD (cosine), d = 384, one thread.

The two run alternately in one process on the same data (ruptures gets its float64 copy made
beforehand); the ratio is the median of the paired ratios of CPU time, the times are medians.
`cwt_ext` is given float32 and objective="ls", the problem that KernelCPD solves, and is checked to
return the same breakpoints; "norm" takes the same time.

    python benchmarks/bench_segment.py [repetitions, 15]
    python -m pytest benchmarks/bench_segment.py --benchmark-only [--quick]

The first prints the table of benchmarks/README.md, the second measures wall time under
pytest-benchmark.
"""

import os

if __name__ == "__main__":  # under pytest other features are measured in the same process
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cases
import numpy as np
import ruptures
from harness import CPU, WALL, Work, measure, ratio, ratio_of, timed

from cwt_ext import _segment, segment, segment_batch

FEATURE = cases.SEGMENT
D = 384
ROOT = Path(__file__).resolve().parents[1]
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


class Texts:
    """Embeddings of one long text, or of many short ones, and every way to cut them."""

    def __init__(self, lengths, ks, seed=0):
        rng = np.random.default_rng(seed)
        self.ks = ks
        self.xs = [rng.normal(size=(n, D)).astype(np.float32) for n in lengths]
        self.doubles = [x.astype(np.float64) for x in self.xs]
        self.check()

    def check(self):
        """Both libraries solve the same problem."""
        for ours, rival in zip(self.ours("ls"), self.rival(), strict=True):
            assert ours.boundaries[1:].tolist() == list(rival)

    def ours(self, objective, threads=1):
        if len(self.xs) == 1:
            return [segment(self.xs[0], k=self.ks[0], objective=objective)]
        return segment_batch(self.xs, k=self.ks, objective=objective, threads=threads)

    def rival(self):
        return [kernel_cpd(x, k) for x, k in zip(self.doubles, self.ks, strict=True)]

    def work(self, rival: str, work: str = cases.CALL) -> Work:
        calls: dict[str, Callable] = {
            "ours": lambda: self.ours("ls"),
            "ours, norm": lambda: self.ours("norm"),
            "ours, 2 threads": lambda: self.ours("ls", threads=2),
            "ruptures KernelCPD": self.rival,
        }
        return Work(calls[rival])

    def copied(self) -> tuple[Work, int]:
        """Returns np.copyto of all embeddings, and the bytes that it moves."""
        source = np.concatenate(self.xs)
        target = np.empty_like(source)
        return Work(lambda: np.copyto(target, source)), 2 * source.nbytes

    def size(self, work: str) -> tuple[str, int]:
        """Returns what the task needs; the n^2 d operations of the Gram matrix decide."""
        return "n d itemsize (embeddings read)", sum(x.nbytes for x in self.xs)


def rationales(count: int) -> Texts:
    """Returns texts of 12..40 units, to be cut into chunks of about 6."""
    lengths = np.random.default_rng(0).integers(12, 41, count)
    return Texts(lengths, np.maximum(2, np.round(lengths / 6)).astype(int).tolist())


@functools.lru_cache(maxsize=1)
def inputs(shape) -> Texts:
    return rationales(shape[1]) if shape[0] == "rationales" else Texts([shape[0]], [shape[1]])


def test_segment(case, measure):
    measure(inputs(case.shape))


def pair(texts, repetitions):
    """Returns (our median, the rival's, the ratio), of CPU time, run alternately."""
    ours, rival = texts.work("ours"), texts.work("ruptures KernelCPD")
    times = []
    for i in range(repetitions + 1):
        if i % 2:
            a, b = timed(ours)[CPU], timed(rival)[CPU]
        else:
            b, a = timed(rival)[CPU], timed(ours)[CPU]
        times.append((a, b))
    a, b = zip(*times[1:], strict=True)  # the first run warms up
    return np.median(a), np.median(b), ratio(b, a)


def show(case, ours, rival, found, wanted):
    quartiles = f"{found.median:.1f}x ({found.low:.1f}..{found.high:.1f})"
    print(f"| {case} | {ours} | {rival} | {quartiles} | {wanted} |", flush=True)


def batch_case(repetitions):
    count = 1000
    texts = rationales(count)
    a, b, found = pair(texts, repetitions)
    one, many = f"{a / count * 1e6:.1f} us", f"{b / count * 1e6:.0f} us"
    show("rationales, n = 12..40, each", one, many, found, ">= 15x, <= 18 us")
    times = measure({"1": texts.work("ours"), "2": texts.work("ours, 2 threads")}, 2 * repetitions)
    found = ratio_of(times, "1", "2", WALL)
    show("the same on 2 threads over 1, wall time", "", "", found, ">= 1.8x on 2 idle cores")


def single_case(n, k, repetitions, wanted):
    a, b, found = pair(Texts([n], [k]), repetitions)
    show(f"n = {n}, K = {k}", f"{a * 1e3:.2f} ms", f"{b * 1e3:.1f} ms", found, wanted)


def main():
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{_segment.instruction_set()}, ruptures {ruptures.version.version}, load {load}\n")
    print("| case | cwt_ext | ruptures | ratio (quartiles) | wanted |")
    print("|---|---|---|---|---|")
    batch_case(repetitions)
    single_case(200, 10, 4 * repetitions, ">= 12x")
    single_case(1000, 20, repetitions, ">= 20x")
    single_case(4000, 40, max(3, repetitions // 5), ">= 30x")
    x = np.random.default_rng(0).normal(size=(4000, D)).astype(np.float32)
    work = Work(lambda: segment(x, k=40, max_len=200))
    limited = [timed(work)[CPU] for _ in range(repetitions)]
    print(f"| n = 4000, K = 40, max_len 200 | {np.median(limited) * 1e3:.1f} ms | | | <= 35 ms |")
    out = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=ROOT
    )
    print(f"| n = 20000, K = 200, max_len 400 | {float(out.stdout):.0f} MB | | | <= 150 MB |")


if __name__ == "__main__":
    main()
