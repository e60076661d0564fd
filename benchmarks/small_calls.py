"""What a call costs before any work: loss and gradient of one row of 8 logits, against eager torch.

    python benchmarks/small_calls.py [--rounds 61] [--calls 60]

Every round times each case once, so that other programs on the machine weigh on all alike. Time is
CPU time of the thread; a ratio is the median of the rounds' ratios to the rival that runs with it.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import cwt_ext

SHAPE = (1, 8)  # rows, vocabulary
HIDDEN = (6, 4)  # rows, width of linear_chunk_loss, with a vocabulary of 9


def cases():
    """Returns {name: (call, name of the rival)}; a rival's is its own."""
    x, labels = torch.randn(SHAPE, requires_grad=True), torch.zeros(1, dtype=torch.int64)
    ids, active = torch.zeros_like(labels), torch.ones(1, dtype=torch.bool)
    hidden, head = torch.randn(HIDDEN, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    words, parts = torch.arange(6), torch.arange(6) // 2
    grad = torch.autograd.grad

    def ours(**options):
        return lambda: grad(cwt_ext.chunk_loss(x, labels, ids, **options).loss, x)

    def linear(**options):
        call = cwt_ext.linear_chunk_loss
        return lambda: grad(call(hidden, head, words, parts, **options).loss, (hidden, head))

    plain, fused = "F.cross_entropy", "F.linear, F.cross_entropy"
    return {
        plain: (lambda: grad(F.cross_entropy(x, labels), x), plain),
        "chunk_loss": (ours(), plain),
        "chunk_loss, num_chunks": (ours(num_chunks=1), plain),
        "chunk_loss, active": (ours(active=active), plain),
        "chunk_loss, stats=False": (ours(stats=False), plain),
        "chunk_loss, stats=False, num_chunks": (ours(stats=False, num_chunks=1), plain),
        fused: (
            lambda: grad(F.cross_entropy(F.linear(hidden, head), words), (hidden, head)),
            fused,
        ),
        "linear_chunk_loss": (linear(), fused),
        "linear_chunk_loss, stats=False": (linear(stats=False), fused),
    }


def seconds_of(call, calls):
    """Returns the CPU seconds of one of `calls` calls."""
    begin = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - begin) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--calls", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = cases()
    for call, _ in chosen.values():
        seconds_of(call, options.calls)
    times = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, (call, _) in chosen.items():
            times[name].append(seconds_of(call, options.calls))
    print(f"{'':38}{'us':>8}{'ratio':>8}   quartiles")
    for name, (_, rival) in chosen.items():
        ratios = [a / b for a, b in zip(times[name], times[rival], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        us = statistics.median(times[name]) * 1e6
        print(f"{name:38}{us:8.1f}{middle:8.2f}   {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
