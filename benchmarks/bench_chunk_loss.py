"""Speed of chunk_loss on the CPU: loss, statistics and gradient, against what a user would write.

    python benchmarks/bench_chunk_loss.py [--rounds 9] [--quick]
    python -m pytest benchmarks/bench_chunk_loss.py --benchmark-only

The first prints the tables of benchmarks/README.md, the second absolute times. The variants of a
table run one after another in every round; a ratio is the median over the rounds of the paired
ratios, once of wall time and once of CPU time (which other processes disturb less). Each call
computes the loss and the gradient with respect to the logits (torch.autograd.grad). Eager torch is
measured twice: as it comes, and in a process with THP_MEM_ALLOC_ENABLE=1. A fresh gradient too:
among the rivals, and alone in a process, where no rival frees gigabytes in between.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not count as CPU time

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
import torch.nn.functional as F

import cwt_ext

SHAPES = [(512, 49152), (2048, 32000)]
DTYPES = [torch.float32, torch.bfloat16]
C = 8


class Case:
    """Inputs of one shape and dtype, and every variant as a function without arguments."""

    def __init__(self, rows, vocab, dtype):
        torch.manual_seed(0)
        self.x = (torch.randn(rows, vocab) * 2).to(dtype).requires_grad_()
        self.y = torch.randint(0, vocab, (rows,))
        self.ids = torch.arange(rows) * C // rows
        self.buffer = torch.empty(rows, vocab, dtype=dtype)
        self.all = torch.ones(C, dtype=torch.bool)
        self.one = torch.arange(C) == 3
        self.compiled = torch.compile(F.cross_entropy)
        self.logits = rows * vocab

    def ours(self, **options):
        options = {"active": self.all, "grad_buffer": self.buffer, **options}

        def step():
            loss = cwt_ext.chunk_loss(self.x, self.y, self.ids, **options).loss
            torch.autograd.grad(loss, self.x)

        return step

    def inplace(self):
        """On whatever the buffer holds: the time does not depend on the values."""
        leaf = self.buffer.detach().requires_grad_()
        z = leaf.view_as(leaf)
        loss = cwt_ext.chunk_loss(z, self.y, self.ids, active=self.all, inplace=True).loss
        torch.autograd.grad(loss, leaf)

    def copy(self):
        self.buffer.copy_(self.x.detach())

    def eager(self, function=F.cross_entropy):
        torch.autograd.grad(function(self.x, self.y), self.x)

    def eager_statistics(self, mean=False):
        """What one writes to see the same numbers: softmax once more, and plain reductions."""
        losses = F.cross_entropy(self.x, self.y, reduction="none")
        torch.autograd.grad(losses.mean(), self.x)
        with torch.no_grad():
            log_p = F.log_softmax(self.x.float(), -1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1)
            correct = (p.argmax(-1) == self.y).float()
            p[torch.arange(len(p)), self.y] -= 1
            norm = p.norm(dim=-1)
            rows = torch.stack(
                [torch.ones_like(norm), losses.float(), correct, entropy, norm, norm**2]
            )
            sums = torch.zeros(6, C).index_add_(1, self.ids, rows)
            if mean:
                pulls = torch.zeros(C, p.shape[1]).index_add_(0, self.ids, p)
                return sums, (pulls / sums[0][:, None]).norm(dim=1)
        return sums

    def eager_cheapest(self):
        """The gradient that autograd made anyway gives the norms; entropy and accuracy left out."""
        losses = F.cross_entropy(self.x, self.y, reduction="none")
        (grad,) = torch.autograd.grad(losses.mean(), self.x)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32) * len(grad)
            rows = torch.stack([torch.ones_like(norm), losses.float(), norm, norm**2])
            return torch.zeros(4, C).index_add_(1, self.ids, rows)


def variants(case):
    """Returns name -> function, ours first."""
    return {
        "copy_": case.copy,
        "ours": case.ours(),
        "ours, no statistics": case.ours(stats=False),
        "ours, mean_grad_norm": case.ours(mean_grad_norm=True),
        "copy_, fresh": lambda: torch.empty_like(case.buffer).copy_(case.x.detach()),
        "ours, fresh": case.ours(grad_buffer=None),
        "ours, fresh, 1 of 8": case.ours(grad_buffer=None, active=case.one),
        "ours, in place": case.inplace,
        "eager": case.eager,
        "eager, statistics": case.eager_statistics,
        "eager, statistics, mean": lambda: case.eager_statistics(mean=True),
        "eager, cheapest statistics": case.eager_cheapest,
        "torch.compile": lambda: case.eager(case.compiled),
    }


# (measure, numerator, denominator, wanted for float32, for bfloat16); "<" at most, ">" at least
MEASURES = [
    ("loss + statistics + gradient / copy_", "ours", "copy_", "<1.5", ""),
    ("the same in place / copy_", "ours, in place", "copy_", "<1.5", ""),
    ("fresh gradient / copy_, between large frees", "ours, fresh", "copy_", "", ""),
    ("statistics / without", "ours", "ours, no statistics", "<1.05", ""),
    ("mean_grad_norm / without", "ours, mean_grad_norm", "ours", "<1.3", ""),
    ("all / 1 of 8 chunks active, fresh", "ours, fresh", "ours, fresh, 1 of 8", ">6", ""),
    ("eager cross-entropy / ours", "eager", "ours", ">12", ""),
    ("eager with statistics / ours", "eager, statistics", "ours", ">30", ">25"),
    (
        "eager with mean_grad_norm / ours with",
        "eager, statistics, mean",
        "ours, mean_grad_norm",
        "",
        "",
    ),
    ("eager, cheapest statistics / ours", "eager, cheapest statistics", "ours", "", ""),
    ("torch.compile cross-entropy / ours", "torch.compile", "ours", ">9", ""),
]
THP_MEASURES = [
    ("THP eager cross-entropy / ours", "eager", "ours", ">4", ""),
    ("THP eager cross-entropy / ours, fresh", "eager", "ours, fresh", "", ""),
    ("THP eager, cheapest statistics / ours", "eager, cheapest statistics", "ours", ">5", ""),
    ("THP eager with statistics / ours", "eager, statistics", "ours", "", ""),
]


ALONE_MEASURES = [
    ("fresh gradient / copy_", "ours, fresh", "copy_", "<2.5", ""),
    ("copy_ into a fresh tensor / copy_", "copy_, fresh", "copy_", "", ""),
    ("all / 1 of 8 chunks active, fresh", "ours, fresh", "ours, fresh, 1 of 8", ">6", ""),
]
# Rivals measured in processes of their own: flag, prefix, measures, environment.
PROCESSES = [
    ("--thp", "THP ", THP_MEASURES, {"THP_MEM_ALLOC_ENABLE": "1"}),
    ("--alone", "alone ", ALONE_MEASURES, {}),
]


def measure(functions, rounds):
    """Returns name -> [(wall, cpu) seconds per round]; the first round warms up and is dropped."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: values[1:] for name, values in times.items()}


def ratio(times, a, b, kind):
    pairs = zip(times[a], times[b], strict=True)
    return statistics.median(x[kind] / y[kind] for x, y in pairs)


def table(rows, vocab, dtype, rounds, measures, prefix=""):
    case = Case(rows, vocab, dtype)
    functions = variants(case)
    if prefix:
        functions = {k: v for k, v in functions.items() if any(k in m[1:3] for m in measures)}
    times = measure(functions, rounds)
    name = f"{rows} x {vocab} {str(dtype)[6:]}"
    for label, values in times.items():
        wall, cpu = (statistics.median(v[k] for v in values) for k in (0, 1))
        print(f"| {prefix}{name} | {label} | {wall * 1e3:.1f} ms | {cpu * 1e3:.1f} ms |"
              f" {cpu / torch.get_num_threads() * 1e9 / case.logits:.3f} |")  # fmt: skip
    print()
    for label, a, b, *wanted in measures:
        wall, cpu = ratio(times, a, b, 0), ratio(times, a, b, 1)
        want = wanted[0 if dtype == torch.float32 else 1]
        print(f"| {name} | {label} | {wall:.2f} | {cpu:.2f} | {want} |")
    print(flush=True)


def growth(rounds):
    """How the cost grows: per logit of a counted row, over N, V, C, and with inactive rows."""
    print(
        "| N | V | C | counted rows | ms of CPU | ns per counted logit and thread |\n|-|-|-|-|-|-|"
    )
    for rows, vocab, chunks, share in [
        (256, 32000, 8, 1), (512, 32000, 8, 1), (1024, 32000, 8, 1), (512, 8000, 8, 1),
        (512, 128000, 8, 1), (512, 32000, 1, 1), (512, 32000, 512, 1), (1024, 32000, 8, 2),
        (2048, 32000, 8, 4), (4096, 32000, 8, 8),
    ]:  # fmt: skip
        x = torch.randn(rows, vocab).requires_grad_()
        y, ids = torch.randint(0, vocab, (rows,)), torch.arange(rows) * chunks // rows
        active = torch.arange(chunks) < max(1, chunks // share)

        def step(x=x, y=y, ids=ids, active=active):
            torch.autograd.grad(cwt_ext.chunk_loss(x, y, ids, active=active).loss, x)

        times = measure({"": step}, rounds)[""]
        cpu, counted = statistics.median(t[1] for t in times), rows // share
        each = cpu / torch.get_num_threads() * 1e9 / counted / vocab
        print(f"| {rows} | {vocab} | {chunks} | {counted} | {cpu * 1e3:.1f} | {each:.3f} |")
    print(flush=True)


def linear(rounds):
    """linear_chunk_loss against F.linear_cross_entropy and the unfused product, one table."""
    rows, width, vocab = 1024, 256, 32000
    h = torch.randn(rows, width).requires_grad_()
    w = (torch.randn(vocab, width) * width**-0.5).requires_grad_()
    y, ids = torch.randint(0, vocab, (rows,)), torch.arange(rows) * C // rows

    def ours(loss):
        return lambda: torch.autograd.grad(loss().loss, (h, w))

    one = torch.arange(C) == 3
    functions = {
        "linear_chunk_loss": ours(lambda: cwt_ext.linear_chunk_loss(h, w, y, ids, num_chunks=C)),
        "linear_chunk_loss, 1 of 8 active": ours(
            lambda: cwt_ext.linear_chunk_loss(h, w, y, ids, active=one)
        ),
        "chunk_loss(h @ w.T, inplace)": ours(
            lambda: cwt_ext.chunk_loss(h @ w.T, y, ids, num_chunks=C, inplace=True)
        ),
        "F.cross_entropy(h @ w.T)": lambda: torch.autograd.grad(
            F.cross_entropy(h @ w.T, y), (h, w)
        ),
    }
    if hasattr(F, "linear_cross_entropy"):
        functions["F.linear_cross_entropy"] = lambda: torch.autograd.grad(
            F.linear_cross_entropy(h, w, y), (h, w)
        )
    times = measure(functions, rounds)
    print(f"| {rows} x {width} x {vocab}, loss and both gradients | ms | ratio to ours |\n|-|-|-|")
    for name in functions:
        wall = statistics.median(t[0] for t in times[name])
        print(f"| {name} | {wall * 1e3:.0f} | {ratio(times, name, 'linear_chunk_loss', 0):.2f} |")
    print(flush=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["copy_", "ours", "ours, fresh", "eager", "eager, statistics"])
def test_chunk_loss(benchmark, shape, dtype, name):
    case = Case(*shape, dtype)
    benchmark.extra_info["logits"] = case.logits
    benchmark.pedantic(variants(case)[name], rounds=5, warmup_rounds=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    for flag, *_ in PROCESSES:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(True)
    shapes = SHAPES[:1] if options.quick else SHAPES
    for flag, prefix, measures, _ in PROCESSES:
        if getattr(options, flag.strip("-")):
            for shape in shapes:
                for dtype in DTYPES:
                    table(*shape, dtype, options.rounds, measures, prefix)
            return
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(),
             "torch capability": torch.backends.cpu.get_cpu_capability(),
             "load": os.getloadavg()}  # fmt: skip
    print(json.dumps(about), flush=True)
    for shape in shapes:
        for dtype in DTYPES:
            table(*shape, dtype, options.rounds, MEASURES)
    for flag, _, _, environment in PROCESSES:
        again = [sys.executable, __file__, flag, "--rounds", str(options.rounds)]
        again += ["--quick"] * options.quick
        subprocess.run(again, env={**os.environ, **environment}, check=True)
    growth(options.rounds)
    linear(max(3, options.rounds // 3))
    print(json.dumps({"load": os.getloadavg()}))


if __name__ == "__main__":
    main()
