"""Speed of `cwt_ext.chunk_loss` on a GPU against eager torch, torch.compile, Liger, quack and CCE.

Loss with statistics, with and without the gradient; every variant that is installed, interleaved,
timed with CUDA events, median of the repetitions. GB/s counts the bytes that the task needs, as a
formula of the table; the share is of the device's memory bandwidth.

    python benchmarks/bench_chunk_loss_gpu.py [repetitions, 30]
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

from cwt_ext import _ops, chunk_loss

PEAK = {"H100 PCIe": 2.04e12, "H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12, "B200": 8.0e12}
SHAPES = [(8192, 128256), (8192, 50257), (8192, 32000)]
# What was asked for on an H100, ms.
GOALS = {
    ("gradient", 128256): 1.50,
    ("loss", 128256): 0.72,
    ("gradient", 32000): 0.40,
}


def refuse_without_gpu() -> None:
    """Ends the program where it could measure nothing."""
    if not torch.cuda.is_available():
        sys.exit(f"bench_chunk_loss_gpu: no CUDA device (torch {torch.__version__}).")
    if "cuda" not in _ops.backends():
        sys.exit("bench_chunk_loss_gpu: cwt_ext was built without CUDA (no nvcc, or CWT_CUDA=0).")


def eager(logits, labels):
    return F.cross_entropy(logits.float(), labels)


def rivals() -> dict[str, Callable]:
    """Returns {name: loss(logits, labels)} of every rival that is installed."""
    found = {"eager torch": eager, "torch.compile": torch.compile(eager)}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_cross_entropy

        found["Liger"] = liger_cross_entropy
    if importlib.util.find_spec("quack"):
        from quack.cross_entropy import cross_entropy

        found["quack"] = lambda x, y: cross_entropy(x, y, reduction="mean")
    return found


def linear_rivals() -> dict[str, Callable]:
    """Returns {name: loss(hidden, head, labels)}: these never hold logits, and pay for the GEMM."""
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        return {"CCE": linear_cross_entropy}
    return {}


def measure(variants: dict[str, Callable], repetitions: int) -> dict[str, float]:
    """Returns the median milliseconds of each variant, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 3):
        for name, run in variants.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            if repetition >= 3:  # compilers and clocks warm up
                times[name].append(start.elapsed_time(end))
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def with_gradient(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> Callable:
    def run():
        logits.grad = None
        loss(logits).backward()

    return run


def without_gradient(loss: Callable, logits: torch.Tensor) -> Callable:
    def run():
        with torch.no_grad():
            loss(logits)

    return run


def table(title: str, times: dict[str, float], size: float, peak: float, goal: float | None):
    """Prints one row per variant; `size` in bytes."""
    print(f"\n{title}: {size / 1e9:.2f} GB, {size / peak * 1e3:.2f} ms at the peak")
    for name, ms in sorted(times.items(), key=lambda item: item[1]):
        rate = size / ms / 1e6
        print(f"  {name:24} {ms:8.3f} ms {rate:8.0f} GB/s {rate * 1e9 / peak:6.1%} of the peak")
    if goal is not None:
        ours = times["cwt_ext"]
        print(f"  goal {goal:.2f} ms: {'met' if ours <= goal else f'MISSED by {ours / goal:.2f}x'}")


def one_shape(rows: int, vocab: int, repetitions: int, peak: float) -> None:
    logits = torch.randn(rows, vocab, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(vocab, (rows,), device="cuda")
    ids = torch.arange(rows, device="cuda") * 8 // rows
    buffer = torch.empty_like(logits, requires_grad=False)

    def ours(x, active=None, mean_grad_norm=False, grad_buffer=None):
        return chunk_loss(
            x, labels, ids, num_chunks=8, active=active, mean_grad_norm=mean_grad_norm,
            grad_buffer=grad_buffer,
        ).loss  # fmt: skip

    losses = {"cwt_ext": ours, "cwt_ext, grad_buffer": lambda x: ours(x, grad_buffer=buffer)}
    losses |= {name: (lambda x, f=f: f(x, labels)) for name, f in rivals().items()}
    size = 2.0 * rows * vocab
    plain = {n: without_gradient(f, logits) for n, f in losses.items() if "buffer" not in n}
    shape = f"{rows} x {vocab} bfloat16"
    table(f"loss, {shape}, 2 N V", measure(plain, repetitions), size, peak,
          GOALS.get(("loss", vocab)))  # fmt: skip
    # Liger's gradient overwrites its input: what it is given must be its own.
    full = {n: with_gradient(f, logits) for n, f in losses.items() if n != "Liger"}
    if "Liger" in losses:
        own = logits.detach().clone().requires_grad_()
        full["Liger"] = with_gradient(losses["Liger"], own)
    table(f"loss + gradient, {shape}, 4 N V", measure(full, repetitions), 2 * size, peak,
          GOALS.get(("gradient", vocab)))  # fmt: skip
    one = torch.arange(8, device="cuda") == 3
    active = {
        "cwt_ext": without_gradient(lambda x: ours(x, one), logits),
        "cwt_ext, dense gradient": with_gradient(lambda x: ours(x, one), logits),
        "cwt_ext, mean_grad_norm": without_gradient(lambda x: ours(x, one, True), logits),
    }
    table(f"1 of 8 chunks active, {shape}, N V / 4", measure(active, repetitions), size / 8, peak,
          None)  # fmt: skip


def linear(repetitions: int) -> None:
    """The loss from hidden states, where a rival that needs no logits is installed."""
    found = linear_rivals()
    if not found:
        print("\nCCE (cut_cross_entropy) is not installed: nothing to compare from hidden states.")
        return
    hidden = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(128256, 4096, device="cuda", dtype=torch.bfloat16) * 0.02
    labels = torch.randint(128256, (8192,), device="cuda")
    ids = torch.zeros(8192, dtype=torch.int64, device="cuda")
    variants = {
        "cwt_ext on logits": lambda: chunk_loss(
            hidden @ head.T, labels, ids, num_chunks=1, inplace=True
        ).loss.backward()
    }
    for name, f in found.items():
        variants[name] = lambda f=f: f(hidden, head, labels).backward()
    for name, ms in measure(variants, repetitions).items():
        print(f"  8192 x 4096 -> 128256, {name:20} {ms:8.3f} ms")


def main() -> None:
    refuse_without_gpu()
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    device = torch.cuda.get_device_name()
    peak = next((rate for name, rate in PEAK.items() if name in device), float("nan"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    print(f"{device}, driver {driver}, torch {torch.__version__}, commit {commit}, median of "
          f"{repetitions}, peak {peak / 1e12:.2f} TB/s")  # fmt: skip
    absent = [n for n in ("liger_kernel", "quack", "cut_cross_entropy")
              if importlib.util.find_spec(n) is None]  # fmt: skip
    print(f"not installed: {', '.join(absent) or 'nothing'}")
    for rows, vocab in SHAPES:
        one_shape(rows, vocab, repetitions, peak)
    linear(repetitions)


if __name__ == "__main__":
    main()
