"""Speed of `chunk_loss` and `linear_chunk_loss` on a GPU against every rival that runs there.

Rivals: eager torch, torch.compile, Liger, quack, F.linear_cross_entropy, Apple's CCE. One that
cannot run is listed with its reason. Every work is queued behind a wait of the device, so that the
host's time is not part of what the events around it measure; works run in turns; medians. The share
is that of the rate of cudaMemcpy (bytes read and written), measured between them in the same run.

    python benchmarks/bench_chunk_loss_gpu.py [--quick] [--repetitions 20] [--json FILE]
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Unavailable, Work
from rivals import compiled, differentiate, require, torch_linear
from torch import Tensor

from cwt_ext import _ops, chunk_loss, linear_chunk_loss

BF16, F32 = torch.bfloat16, torch.float32
SHAPES = [  # rows, vocabulary, dtype
    (8192, 32000, BF16),
    (8192, 50257, BF16),
    (8192, 128256, BF16),
    (4096, 262144, BF16),
    (4096, 32000, F32),
]
LINEAR_SHAPES = [(8192, 2048, 128256), (8192, 4096, 128256), (4096, 576, 49152)]  # rows, D, V
CHUNKS = 8
COPY = "cudaMemcpy"
SLEEP_CYCLES = 3_000_000  # 1.5 to 2 ms: longer than any of these needs to be queued


@dataclass(frozen=True)
class Result:
    """One cell. `milliseconds` is None where the rival cannot run, for the `reason`."""

    task: str
    shape: tuple[int, ...]
    dtype: str
    rival: str
    bytes: int  # that the task needs; 0: not a question of bytes
    milliseconds: float | None
    quartiles: tuple[float, float] | None = None
    copy_share: float | None = None
    peak_bytes: int | None = None  # of memory, beyond what was there before
    reason: str = ""


Makers = dict[str, Callable[[], Work]]


def refuse_without_gpu() -> None:
    """Ends the program where it could measure nothing."""
    if not torch.cuda.is_available():
        sys.exit(f"bench_chunk_loss_gpu: no CUDA device (torch {torch.__version__}).")
    if "cuda" not in _ops.backends():
        sys.exit("bench_chunk_loss_gpu: cwt_ext was built without CUDA (no nvcc, or CWT_CUDA=0).")


def load(module: str, name: str) -> Any:
    """Returns a module of a rival; raises Unavailable with the reason where it does not import."""
    require(module.split(".")[0], name)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a rival may raise anything
        raise Unavailable(f"{module}: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def milliseconds(work: Work) -> float:
    """Returns the time of one run on the device."""
    arguments = work.prepare()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SLEEP_CYCLES)
    start.record()
    work.run(*arguments)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_memory(work: Work) -> int:
    """Returns the bytes that one run allocates at most."""
    arguments = work.prepare()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work.run(*arguments)
    return torch.cuda.max_memory_allocated() - before


def usable(makers: Makers) -> tuple[dict[str, Work], dict[str, int], dict[str, str]]:
    """Returns the works that run, their peak memory, and the reasons of the others."""
    works, peaks, reasons = {}, {}, {}
    for name, make in makers.items():
        try:
            work = make()
            for _ in range(2):  # kernels are compiled and tuned
                work.run(*work.prepare())
            torch.cuda.synchronize()
            peaks[name] = peak_memory(work)
            works[name] = work
        except Exception as error:  # a rival may raise anything
            if isinstance(error, torch.AcceleratorError):
                raise  # the device is lost: nothing after it would be measured
            kind = "" if isinstance(error, Unavailable) else f"{type(error).__name__}: "
            reasons[name] = kind + first_line(error)
        torch.cuda.empty_cache()
    return works, peaks, reasons


def measure(
    task: str, shape: tuple[int, ...], dtype: torch.dtype, size: int, makers: Makers, rounds: int
) -> Iterator[Result]:
    """Yields a result for every maker. `size` in bytes; the copy among them moves as many."""
    works, peaks, reasons = usable(makers)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(milliseconds(work))
    fixed = (task, shape, str(dtype).removeprefix("torch."))
    for name in makers:
        if name in reasons:
            yield Result(*fixed, name, size, None, reason=reasons[name])
            continue
        low, middle, high = statistics.quantiles(times[name], n=4, method="inclusive")
        share = statistics.median(times[COPY]) / middle if size else None
        yield Result(*fixed, name, size, middle, (low, high), share, peaks[name])


def print_table(results: list[Result]) -> None:
    """Prints the results of one task and shape."""
    first = results[0]
    title = f"{first.task}, {' x '.join(map(str, first.shape))} {first.dtype}"
    print(f"\n{title}" + (f": {first.bytes / 1e9:.3f} GB" if first.bytes else ""))
    ours = next((r.milliseconds for r in results if r.rival == "cwt_ext"), None)
    for r in sorted(results, key=lambda r: r.milliseconds or float("inf")):
        if r.milliseconds is None:
            print(f"  {r.rival:28} not measured: {r.reason}")
            continue
        line = f"  {r.rival:28} {r.milliseconds:8.3f} ms"
        line += f" ({r.quartiles[0]:.3f}..{r.quartiles[1]:.3f})"
        line += f" {r.milliseconds / ours:6.2f} x ours" if ours else ""
        if r.copy_share is not None:
            rate = r.bytes / r.milliseconds / 1e6
            line += f" {rate:6.0f} GB/s {r.copy_share:6.1%} of {COPY}"
        print(f"{line} {r.peak_bytes / 2**20:8.0f} MiB more")
    sys.stdout.flush()


# What is compared.


def eager(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def liger(logits: Tensor, labels: Tensor) -> Tensor:
    loss = load("liger_kernel.transformers.functional", "Liger").liger_cross_entropy(logits, labels)
    return loss[0] if isinstance(loss, tuple) else loss


def quack(logits: Tensor, labels: Tensor) -> Tensor:
    return load("quack.cross_entropy", "quack").cross_entropy(logits, labels, reduction="mean")


def quack_forward(logits: Tensor, labels: Tensor) -> Tensor:
    module = load("quack.cross_entropy", "quack")
    return module.cross_entropy_fwd(logits, labels, return_dx=True)


def copy_of(size: int) -> Callable[[], Work]:
    """Returns the maker of a copy that reads and writes `size` bytes in all."""

    def make() -> Work:
        source = torch.zeros(size // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return Work(lambda: target.copy_(source))

    return make


@dataclass(frozen=True)
class Logits:
    """The inputs of one shape."""

    logits: Tensor
    labels: Tensor
    ids: Tensor
    buffer: Tensor

    @classmethod
    def make(cls, rows: int, vocab: int, dtype: torch.dtype) -> "Logits":
        logits = torch.randn(rows, vocab, device="cuda", dtype=dtype, requires_grad=True)
        labels = torch.randint(vocab, (rows,), device="cuda")
        ids = torch.arange(rows, device="cuda") * CHUNKS // rows
        return cls(logits, labels, ids, torch.empty_like(logits, requires_grad=False))

    def ours(self, x: Tensor, **options: Any) -> Tensor:
        return chunk_loss(x, self.labels, self.ids, num_chunks=CHUNKS, **options).loss

    def work(self, loss: Callable[[Tensor], Tensor], kind: str) -> Callable[[], Work]:
        def make() -> Work:
            return differentiate(lambda: (loss(self.logits), (self.logits,)), kind)

        return make

    def rival(self, loss: Callable[[Tensor, Tensor], Tensor], kind: str) -> Callable[[], Work]:
        return self.work(lambda x: loss(x, self.labels), kind)

    def in_place(self) -> Work:
        """The gradient takes the place of the logits, which are no leaf, as behind a model."""

        def run(x: Tensor) -> None:
            torch.autograd.grad(self.ours(x, inplace=True), x)

        return Work(run, lambda: (self.logits * 1,))

    def liger_both(self) -> Work:
        """Liger's gradient overwrites its input: what it is given must be its own."""
        own = self.logits.detach().clone().requires_grad_()
        return differentiate(lambda: (liger(own, self.labels), (own,)), "both")

    def compiled(self, kind: str) -> Callable[[], Work]:
        return lambda: self.rival(compiled(eager), kind)()


def logits_tasks(x: Logits, quick: bool) -> Iterator[tuple[str, int, Makers]]:
    """Yields (task, bytes, makers)."""
    size = x.logits.numel() * x.logits.element_size()
    plain = x.logits.detach()
    loss: Makers = {
        "cwt_ext": x.work(x.ours, "forward"),
        "cwt_ext, no statistics": x.work(lambda t: x.ours(t, stats=False), "forward"),
        COPY: copy_of(size),
        "eager": x.rival(eager, "forward"),
        "Liger": x.rival(liger, "forward"),
        "quack": x.rival(quack, "forward"),
    }
    both: Makers = {
        "cwt_ext": x.work(x.ours, "both"),
        "cwt_ext, grad_buffer": x.work(lambda t: x.ours(t, grad_buffer=x.buffer), "both"),
        "cwt_ext, in place": x.in_place,
        COPY: copy_of(2 * size),
        "eager": x.rival(eager, "both"),
        "Liger": x.liger_both,
        "quack": x.rival(quack, "both"),
        "quack, cross_entropy_fwd": lambda: Work(lambda: quack_forward(plain, x.labels)),
    }
    if not quick:  # compiling takes a minute a shape
        loss["torch.compile"] = x.compiled("forward")
        both["torch.compile"] = x.compiled("both")
    yield "loss and statistics", size, loss
    yield "loss, statistics and gradient", 2 * size, both
    one = torch.arange(CHUNKS, device="cuda") == 3
    yield (
        "1 of 8 chunks active, loss and statistics",
        size // CHUNKS,
        {
            "cwt_ext": x.work(lambda t: x.ours(t, active=one), "forward"),
            COPY: copy_of(size // CHUNKS),
        },
    )
    yield (
        "loss, statistics and the mean gradients' norms",
        2 * size,
        {
            "cwt_ext": x.work(lambda t: x.ours(t, mean_grad_norm=True), "forward"),
            COPY: copy_of(2 * size),
        },
    )


def liger_linear(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    module = load("liger_kernel.transformers.functional", "Liger")
    loss = module.liger_fused_linear_cross_entropy(hidden, head, labels)
    return loss[0] if isinstance(loss, tuple) else loss


def cce(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return load("cut_cross_entropy", "CCE").linear_cross_entropy(hidden, head, labels)


def linear_makers(rows: int, width: int, vocab: int, quick: bool) -> Makers:
    """Returns the works on one shape: loss and the gradients of hidden states and head."""
    hidden = torch.randn(rows, width, device="cuda", dtype=BF16, requires_grad=True)
    head = (torch.randn(vocab, width, device="cuda") * width**-0.5).to(BF16).requires_grad_()
    labels = torch.randint(vocab, (rows,), device="cuda")
    ids = torch.arange(rows, device="cuda") * CHUNKS // rows

    def ours() -> Tensor:
        return linear_chunk_loss(hidden, head, labels, ids, num_chunks=CHUNKS).loss

    def eager_linear(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, w).float(), y)

    def both(loss: Callable[[], Tensor]) -> Callable[[], Work]:
        return lambda: differentiate(lambda: (loss(), (hidden, head)), "both")

    makers: Makers = {
        "cwt_ext": both(ours),
        "chunk_loss on logits, in place": both(
            lambda: (
                chunk_loss(
                    F.linear(hidden, head), labels, ids, num_chunks=CHUNKS, inplace=True
                ).loss
            )
        ),
        "eager": both(lambda: eager_linear(hidden, head, labels)),
        "Liger": both(lambda: liger_linear(hidden, head, labels)),
        "CCE": both(lambda: cce(hidden, head, labels)),
        "F.linear_cross_entropy": both(lambda: torch_linear(False)(hidden, head, labels)),
    }
    if not quick:

        def compiled_linear() -> Work:
            function = compiled(eager_linear)
            return both(lambda: function(hidden, head, labels))()

        makers["torch.compile"] = compiled_linear
    return makers


def results(quick: bool, rounds: int) -> Iterator[list[Result]]:
    """Yields one table after another."""
    for rows, vocab, dtype in SHAPES:
        x = Logits.make(rows, vocab, dtype)
        for task, size, makers in logits_tasks(x, quick):
            yield list(measure(task, (rows, vocab), dtype, size, makers, rounds))
        del x, makers
        torch.cuda.empty_cache()
    for shape in LINEAR_SHAPES:
        makers = linear_makers(*shape, quick)
        task = "linear_chunk_loss: loss and gradients"
        yield list(measure(task, shape, BF16, 0, makers, max(2, rounds // 4)))
        del makers
        torch.cuda.empty_cache()


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=20, help="of each work")
    parser.add_argument("--quick", action="store_true", help="5 repetitions, no torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    refuse_without_gpu()
    rounds = 5 if options.quick else options.repetitions
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    about = {
        "device": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "commit": output_of("git", "rev-parse", "--short", "HEAD") or "unknown",
        "repetitions": rounds,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    found: list[Result] = []
    for table in results(options.quick, rounds):
        print_table(table)
        found += table
        if options.json:  # after every table: what was measured outlives an interruption
            text = json.dumps({**about, "results": [asdict(r) for r in found]}, indent=1)
            options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
