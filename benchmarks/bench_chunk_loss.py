"""Speed of chunk_loss on the CPU: loss, statistics and gradient, against what a user would write.

    python benchmarks/bench_chunk_loss.py [--rounds 9] [--quick]
    python -m pytest benchmarks/bench_chunk_loss.py --benchmark-only [--quick]

The first prints the tables of benchmarks/README.md, the second measures the same variants under
pytest-benchmark, the forward and the backward pass too. The variants of a table run one after
another in every round; a ratio is the median over the rounds of the paired ratios, once of wall
time and once of CPU time (which other processes disturb less). Each call computes the loss and the
gradient with respect to the logits (torch.autograd.grad). Eager torch is measured twice: as it
comes, and in a process with THP_MEM_ALLOC_ENABLE=1. A fresh gradient too: among the rivals, and
alone in a process, where no rival frees gigabytes in between.
"""

import os

if __name__ == "__main__":  # waiting threads must not count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import cases
import torch
import torch.nn.functional as F
from harness import CPU, WALL, Unavailable, Work, measure, ratio_of
from rivals import Graph, compiled, cuda_only, differentiate

import cwt_ext

FEATURE = cases.CHUNK_LOSS
C = cases.CHUNKS


class Logits:
    """Inputs of one shape and dtype, and every variant of their loss."""

    def __init__(self, rows: int, vocab: int, dtype: str) -> None:
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        self.x = (torch.randn(rows, vocab) * 2).to(kind).requires_grad_()
        self.y = torch.randint(0, vocab, (rows,))
        self.ids = torch.arange(rows) * C // rows
        self.buffer = torch.empty(rows, vocab, dtype=kind)
        self.all = torch.ones(C, dtype=torch.bool)
        self.one = torch.arange(C) == 3

    def work(self, rival: str, work: str) -> Work:
        """Returns one variant. Raises Unavailable where it cannot run here."""
        if rival == "copy_":
            return self.copied()[0]
        if rival == "copy_, fresh":
            return Work(lambda: torch.empty_like(self.buffer).copy_(self.x.detach()))
        if rival == "eager, cheapest statistics":
            return differentiate(self.eager_rows, work, self.cheapest_statistics)
        return differentiate(self.graph(rival), work)

    def graph(self, rival: str) -> Callable[[], Graph]:
        graphs = {
            "ours": lambda: self.ours(),
            "ours, no statistics": lambda: self.ours(stats=False),
            "ours, mean_grad_norm": lambda: self.ours(mean_grad_norm=True),
            "ours, in place": self.inplace,
            "ours, fresh": lambda: self.ours(grad_buffer=None),
            "ours, fresh, 1 of 8": lambda: self.ours(grad_buffer=None, active=self.one),
            "eager": lambda: self.eager(F.cross_entropy),
            "eager, statistics": lambda: self.eager_statistics(mean=False),
            "eager, statistics, mean": lambda: self.eager_statistics(mean=True),
            "naive chunk loop": self.naive,
        }
        if rival == "torch.compile":
            return functools.partial(self.eager, compiled(F.cross_entropy))
        if rival == "Liger":
            return cuda_only("liger_kernel", "Liger")
        if rival == "quack":
            return cuda_only("quack", "quack")
        return graphs[rival]

    def copied(self) -> tuple[Work, int]:
        """Returns copy_ of the logits, and the bytes that it moves."""
        return Work(lambda: self.buffer.copy_(self.x.detach())), 2 * self.buffer.nbytes

    def size(self, work: str) -> tuple[str, int]:
        """Returns what the task needs: each logit read once, each gradient written once."""
        if work == cases.FORWARD:
            return "N V itemsize (logits read)", self.buffer.nbytes
        return "2 N V itemsize (logits read, gradient written)", 2 * self.buffer.nbytes

    def ours(self, **options) -> Graph:
        options = {"active": self.all, "grad_buffer": self.buffer, **options}
        if not torch.is_grad_enabled():
            options["grad_buffer"] = None
        return cwt_ext.chunk_loss(self.x, self.y, self.ids, **options).loss, (self.x,)

    def inplace(self) -> Graph:
        """On whatever the buffer holds: the time does not depend on the values."""
        leaf = self.buffer.detach().requires_grad_()
        z = leaf.view_as(leaf)
        loss = cwt_ext.chunk_loss(z, self.y, self.ids, active=self.all, inplace=True).loss
        return loss, (leaf,)

    def eager(self, function: Callable) -> Graph:
        return function(self.x, self.y), (self.x,)

    def naive(self) -> Graph:
        """A loop over the chunks, each with its own rows: what gives the loss of each chunk."""
        parts = []
        for chunk in range(C):
            rows = self.ids == chunk
            parts.append(F.cross_entropy(self.x[rows], self.y[rows], reduction="sum"))
        return torch.stack(parts).sum() / len(self.y), (self.x,)

    def eager_statistics(self, mean: bool) -> Graph:
        """What one writes to see the same numbers: softmax once more, and plain reductions."""
        losses = F.cross_entropy(self.x, self.y, reduction="none")
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
            self.statistics = torch.zeros(6, C).index_add_(1, self.ids, rows)
            if mean:
                pulls = torch.zeros(C, p.shape[1]).index_add_(0, self.ids, p)
                self.mean_grad_norm = (pulls / self.statistics[0][:, None]).norm(dim=1)
        return losses.mean(), (self.x,)

    def eager_rows(self) -> Graph:
        losses = F.cross_entropy(self.x, self.y, reduction="none")
        self.losses = losses.detach()
        return losses.mean(), (self.x,)

    def cheapest_statistics(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """The gradient that autograd made anyway gives the norms; entropy and accuracy left out."""
        (grad,) = gradients
        with torch.no_grad():
            norm = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32) * len(grad)
            rows = torch.stack([torch.ones_like(norm), self.losses.float(), norm, norm**2])
            self.statistics = torch.zeros(4, C).index_add_(1, self.ids, rows)


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[int, int], dtype: str) -> Logits:
    return Logits(*shape, dtype)


def test_chunk_loss(case, measure):
    measure(inputs(case.shape, case.dtype))


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


def table(shape, dtype, rounds, measures, prefix=""):
    logits = Logits(*shape, dtype)
    works = {}
    for rival in FEATURE.rivals:
        if prefix and not any(rival.name in m[1:3] for m in measures):
            continue
        try:
            works[rival.name] = logits.work(rival.name, cases.BOTH)
        except Unavailable as reason:
            print(f"not measured: {reason}")
    times = measure(works, rounds)
    name = f"{shape[0]} x {shape[1]} {dtype}"
    for label, values in times.items():
        wall, cpu = (statistics.median(v[k] for v in values) for k in (WALL, CPU))
        print(f"| {prefix}{name} | {label} | {wall * 1e3:.1f} ms | {cpu * 1e3:.1f} ms |"
              f" {cpu / torch.get_num_threads() * 1e9 / logits.x.numel():.3f} |")  # fmt: skip
    print()
    for label, a, b, *wanted in measures:
        wall, cpu = (ratio_of(times, a, b, kind).median for kind in (WALL, CPU))
        want = wanted[0 if dtype == "float32" else 1]
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

        times = measure({"": Work(step)}, rounds)[""]
        cpu, counted = statistics.median(t[CPU] for t in times), rows // share
        each = cpu / torch.get_num_threads() * 1e9 / counted / vocab
        print(f"| {rows} | {vocab} | {chunks} | {counted} | {cpu * 1e3:.1f} | {each:.3f} |")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    for flag, *_ in PROCESSES:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    grid = FEATURE.published
    tables = [(shape, dtype) for shape in grid.shapes[: 1 if options.quick else None]
              for dtype in grid.dtypes]  # fmt: skip
    for flag, prefix, measures, _ in PROCESSES:
        if getattr(options, flag.strip("-")):
            for shape, dtype in tables:
                table(shape, dtype, options.rounds, measures, prefix)
            return
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(),
             "torch capability": torch.backends.cpu.get_cpu_capability(),
             "load": os.getloadavg()}  # fmt: skip
    print(json.dumps(about), flush=True)
    for shape, dtype in tables:
        table(shape, dtype, options.rounds, MEASURES)
    for flag, _, _, environment in PROCESSES:
        again = [sys.executable, __file__, flag, "--rounds", str(options.rounds)]
        again += ["--quick"] * options.quick
        subprocess.run(again, env={**os.environ, **environment}, check=True)
    growth(options.rounds)
    print(json.dumps({"load": os.getloadavg()}))


if __name__ == "__main__":
    main()
