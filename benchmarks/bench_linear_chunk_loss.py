"""Speed of linear_chunk_loss on the CPU: hidden states and head to loss and both gradients.

    python benchmarks/bench_linear_chunk_loss.py [--rounds 3] [--quick]
    python -m pytest benchmarks/bench_linear_chunk_loss.py --benchmark-only [--quick]

The first prints a table a shape, every rival in turns in every round: median times of wall and of
CPU time, and the median of the paired ratios to ours. The second measures the same rivals under
pytest-benchmark, the forward and the backward pass too.
"""

import os

if __name__ == "__main__":  # waiting threads must not count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import functools
from collections.abc import Callable

import cases
import torch
import torch.nn.functional as F
from harness import Work, paired_tables
from rivals import Graph, compiled, cuda_only, differentiate, torch_linear, trl_linear
from torch import Tensor

import cwt_ext

FEATURE = cases.LINEAR_CHUNK_LOSS
C = cases.CHUNKS


def eager(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), labels)


class Hidden:
    """Inputs of one shape and dtype, and every variant of their loss."""

    def __init__(self, rows: int, width: int, vocab: int, dtype: str) -> None:
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        self.h = torch.randn(rows, width).to(kind).requires_grad_()
        self.w = (torch.randn(vocab, width) * width**-0.5).to(kind).requires_grad_()
        self.y = torch.randint(0, vocab, (rows,))
        self.ids = torch.arange(rows) * C // rows
        self.one = torch.arange(C) == 3
        self.buffer = torch.empty_like(self.w, requires_grad=False)

    def work(self, rival: str, work: str) -> Work:
        """Returns one variant. Raises Unavailable where it cannot run here."""
        return differentiate(self.graph(rival), work)

    def graph(self, rival: str) -> Callable[[], Graph]:
        graphs = {
            "ours": lambda: self.ours(num_chunks=C),
            "ours, 1 of 8": lambda: self.ours(active=self.one),
            "chunk_loss(h @ w.T, inplace)": self.unfused,
            "eager, rows of 1 of 8": lambda: self.rival(eager, self.ids == 3),
            "naive chunk loop": self.naive,
        }
        if rival in graphs:
            return graphs[rival]
        return functools.partial(self.rival, self.function(rival))

    @staticmethod
    def function(rival: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Returns f(hidden, head, labels) of a rival that needs nothing else."""
        make = {
            "eager": lambda: eager,
            "torch.compile": lambda: compiled(eager),
            "F.linear_cross_entropy": lambda: torch_linear(with_options=False),
            "F.linear_cross_entropy, options": lambda: torch_linear(with_options=True),
            "TRL": trl_linear,
            "Liger": lambda: cuda_only("liger_kernel", "Liger"),
            "quack": lambda: cuda_only("quack", "quack"),
        }
        return make[rival]()

    def copied(self) -> tuple[Work, int]:
        """Returns copy_ of the head, and the bytes that it moves."""
        return Work(lambda: self.buffer.copy_(self.w.detach())), 2 * self.w.nbytes

    def size(self, work: str) -> tuple[str, int]:
        """Returns what the task needs; the products of 2 N D V and 6 N D V operations decide."""
        read = self.h.nbytes + self.w.nbytes
        if work == cases.FORWARD:
            return "(N + V) D itemsize (hidden states and head read)", read
        return "2 (N + V) D itemsize (both read, both gradients written)", 2 * read

    def ours(self, **options) -> Graph:
        loss = cwt_ext.linear_chunk_loss(self.h, self.w, self.y, self.ids, **options).loss
        return loss, (self.h, self.w)

    def unfused(self) -> Graph:
        """Holds the logits, once."""
        logits = self.h @ self.w.T
        loss = cwt_ext.chunk_loss(logits, self.y, self.ids, num_chunks=C, inplace=True).loss
        return loss, (self.h, self.w)

    def rival(self, function: Callable, rows: Tensor | None = None) -> Graph:
        h, y = (self.h, self.y) if rows is None else (self.h[rows], self.y[rows])
        return function(h, self.w, y), (self.h, self.w)

    def naive(self) -> Graph:
        """A loop over the chunks, each with its own rows and product."""
        parts = []
        for chunk in range(C):
            rows = self.ids == chunk
            logits = F.linear(self.h[rows], self.w)
            parts.append(F.cross_entropy(logits, self.y[rows], reduction="sum"))
        return torch.stack(parts).sum() / len(self.y), (self.h, self.w)


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[int, int, int], dtype: str) -> Hidden:
    return Hidden(*shape, dtype)


def test_linear_chunk_loss(case, measure):
    measure(inputs(case.shape, case.dtype))


if __name__ == "__main__":
    paired_tables(FEATURE, inputs, __doc__, rounds=3)
