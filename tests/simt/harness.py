"""Builds tests/simt/run_chunk_loss.cpp and runs cases through it: the CUDA kernels on this CPU."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import compiled
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REAL_TYPES = {None: 0, torch.bool: 1, torch.float32: 2, torch.float64: 3}
REDUCTIONS = {"sum": 0, "token_mean": 1, "chunk_mean": 2, "none": 3}
ROW_STATS = ["nll", "logsumexp", "grad_norm", "entropy", "correct"]
CHUNK_STATS = ["tokens", "nll_sum", "correct", "entropy_sum", "grad_norm_sum", "grad_sq_sum"]
CHUNK_STATS += ["mean_grad_norm"]
SANITIZERS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
}
NO_GRAD, OWN_BUFFER, IN_PLACE = range(3)
FORWARD, BACKWARD, PLAN = range(3)
HEADER_FIELDS = 31  # of Header in run_chunk_loss.cpp


@functools.cache
def cuda_include() -> Path | None:
    """Returns the toolkit's include folder as nvcc itself names it, or None."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    text = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True).stderr
    found = re.search(r'^#\$ INCLUDES="-I([^"]+)"', text, re.MULTILINE)
    return Path(found[1]) if found else None


def missing() -> str:
    """Returns why the kernels cannot be executed here, or an empty string."""
    if platform.system() != "Linux":
        return f"fibers with sanitizers are set up for Linux, not {platform.system()}"
    if shutil.which("g++") is None:
        return "there is no g++ on PATH"
    if cuda_include() is None:
        return "there is no nvcc on PATH, whose headers define __half and __nv_bfloat16"
    return ""


@functools.cache
def fixed_addresses() -> list[str]:
    """Returns a command prefix: older ThreadSanitizers fail where addresses are very random."""
    prefix = ["setarch", "-R"]
    able = shutil.which("setarch") and subprocess.run([*prefix, "true"], capture_output=True)
    return prefix if able and able.returncode == 0 else []  # containers may forbid it


class Runner:
    """A program that executes the kernels; what is kept of an earlier build is not built again."""

    def __init__(self, folder: Path, sanitizer: str, source: Path | None = None) -> None:
        self.program = folder / f"run_chunk_loss_{sanitizer}"
        self.sanitizer = sanitizer
        source = source or ROOT / "tests/simt/run_chunk_loss.cpp"
        flags = ["-std=c++20", "-O1", "-g1", "-DCWT_SIMT", "-Wall", "-Wno-unknown-pragmas"]
        flags += SANITIZERS[sanitizer]
        folders = [source.parents[2] / "csrc", source.parent]
        self.kept = compiled.place(["g++", "nvcc"], flags, folders)
        self.message, self.build = "", None
        if (said := compiled.find(self.kept)) is not None:
            self.program, self.message = self.kept, said
            return
        include = [f"-I{ROOT / 'tests/simt'}", "-isystem", str(cuda_include())]
        command = ["g++", *flags, *include, str(source), "-o", str(self.program)]
        self.build = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Waits for the build and keeps it, and what the compiler said."""
        if self.build and self.build.stderr and not self.build.stderr.closed:
            self.message = self.build.communicate()[1]
            if self.build.returncode == 0:
                compiled.keep(self.program, self.kept, self.message)

    def stop(self) -> None:
        """Ends a build that nobody has waited for."""
        if self.build and self.build.poll() is None:
            self.build.kill()
        self.wait()

    def run(self, payload: bytes, env: dict[str, str] | None = None) -> tuple[bytes, str, int]:
        """Returns (standard output, standard error, exit status) of one run."""
        self.wait()
        built = self.build is None or self.build.returncode == 0
        assert built, f"the {self.sanitizer} build failed:\n{self.message}"
        options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(
            [*(fixed_addresses() if self.sanitizer == "tsan" else []), str(self.program)],
            input=payload,
            capture_output=True,
            env={**os.environ, **options, **(env or {})},
        )
        return done.stdout, done.stderr.decode(errors="replace"), done.returncode


@dataclasses.dataclass
class Case:
    """One call of the operator, with the launch to try it under."""

    logits: Tensor  # (N, V) or (B, T, V), any strides
    labels: Tensor
    chunk_ids: Tensor
    num_chunks: int
    active: Tensor | None = None
    weight: Tensor | None = None
    normalizer: float | None = None
    reduction: str = "token_mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    stats: bool | str = True
    mean_grad_norm: bool = False
    grad_mode: int = OWN_BUFFER
    grad_row_gap: int = 0  # elements between the rows of the gradient
    offset: int = 0  # elements of the logits past a 16-byte boundary
    grad_offset: int = 0
    block_threads: int = 64
    shared_bytes: int = 232448
    multiprocessors: int = 3
    schedules: int = 3
    clusters: bool = True

    def layout(self) -> tuple[int, int, int, int]:
        x = self.logits
        outer = x.stride(0) if x.dim() == 3 else 0
        return x.shape[-2], outer, x.stride(-2), x.stride(-1)

    def rows(self) -> int:
        return self.logits.shape[:-1].numel()

    def read(self) -> Tensor:
        """Returns (N,) bool: rows whose logits may be read."""
        y, c, v = self.labels, self.chunk_ids.long(), self.logits.shape[-1]
        valid = (y >= 0) & (y < v) & (y != self.ignore_index) & (c >= 0) & (c < self.num_chunks)
        if self.stats == "all":
            return valid
        counts = valid if self.weight is None else valid & (self.weight != 0)
        if self.active is None or self.num_chunks == 0:
            return counts
        return counts & (self.active[c.clamp(0, self.num_chunks - 1)] != 0)


def raw(x: Tensor | None) -> bytes:
    """Returns the memory of a contiguous tensor."""
    if x is None or x.numel() == 0:
        return b""
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def storage(x: Tensor) -> Tensor:
    """Returns the memory that a strided tensor spans, from its first element on."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1 if x.numel() else 0,), (1,))


def encode(case: Case) -> bytes:
    """Returns a case as run_chunk_loss reads it."""
    x, vocab = case.logits, case.logits.shape[-1]
    inner, outer, row, step = case.layout()
    pitch = vocab + case.grad_row_gap
    kinds = [None if t is None else t.dtype for t in (case.active, case.weight)]
    header = [FORWARD, TYPES.index(x.dtype), case.chunk_ids.dtype == torch.int64]
    header += [case.rows(), vocab, max(inner, 1), outer, row, step, case.offset, storage(x).numel()]
    header += [case.grad_mode, inner * pitch, pitch, case.grad_offset]
    header += [max(case.rows() * pitch - case.grad_row_gap, 0)]
    header += [case.num_chunks, REDUCTIONS[case.reduction], case.ignore_index]
    header += [{False: 0, True: 1, "all": 2}[case.stats], case.mean_grad_norm]
    header += [REAL_TYPES[kinds[0]], REAL_TYPES[kinds[1]], 0 if case.normalizer is None else 3]
    header += [case.block_threads, case.shared_bytes, case.multiprocessors, case.schedules, 0]
    header += [case.grad_row_gap, case.clusters]
    options = [case.label_smoothing, case.z_loss, case.softcap or 0.0]
    normal = b"" if case.normalizer is None else struct.pack("d", case.normalizer)
    # In place every row is written, and an expanded row belongs to others too: none is forbidden.
    shared = case.grad_mode == IN_PLACE or 0 in x.stride()
    forbidden = torch.zeros(case.rows()) if shared else ~case.read()
    parts = [raw(storage(x)), raw(case.labels), raw(case.chunk_ids), raw(case.active)]
    parts += [raw(case.weight), normal, raw(forbidden.to(torch.uint8))]
    assert len(header) == HEADER_FIELDS
    numbers = struct.pack(f"{len(header)}q", *map(int, header)) + struct.pack("3d", *options)
    return numbers + b"".join(parts)


def encode_plan(case: Case) -> bytes:
    """Returns chunk_loss_plan of a case as run_chunk_loss reads it."""
    whole = encode(dataclasses.replace(case, grad_mode=NO_GRAD))
    numbers = struct.calcsize("q") * HEADER_FIELDS
    after = numbers + struct.calcsize("3d") + len(raw(storage(case.logits)))
    inputs = whole[after : len(whole) - case.rows()]  # without the rows that must not be read
    return struct.pack("q", PLAN) + whole[struct.calcsize("q") : numbers] + inputs


def encode_backward(
    grad: Tensor, row_weight: Tensor, factor: Tensor, in_place: bool, **launch: int
) -> bytes:
    """Returns a call of chunk_loss_backward as run_chunk_loss reads it."""
    n, vocab = grad.shape
    settings = {"offset": 0, "grad_offset": 0, "schedules": 2, **launch}
    header = [BACKWARD, TYPES.index(grad.dtype), 0, n, vocab, n, 0, vocab, 1, settings["offset"]]
    header += [grad.numel(), 2 if in_place else 1, 0, vocab, settings["grad_offset"], 0]
    header += [0] * 8 + [64, 232448, 3, settings["schedules"], factor.dim(), 0, 0]
    return struct.pack(f"{len(header)}q", *header) + raw(grad) + raw(row_weight) + raw(factor)


class Output:
    """Reads what run_chunk_loss wrote, one call after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        part = bytearray(self.data[self.at : self.at + size])
        assert len(part) == size, "run_chunk_loss wrote less than expected"
        self.at += size
        return torch.frombuffer(part, dtype=dtype).view(shape) if count else torch.zeros(shape)

    def error(self) -> str:
        length = int(self.take((1,), torch.int64))
        text = self.data[self.at : self.at + length].decode()
        self.at += length
        return text

    def results(self, case: Case) -> dict[str, Any]:
        """Returns the results of a case; AssertionError when the machine found a fault."""
        error = self.error()
        assert not error, error
        x, n, c = case.logits, case.rows(), case.num_chunks
        acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        out: dict[str, Any] = {"loss": self.take((n,) if case.reduction == "none" else (), acc)}
        out["rows"] = dict(zip(ROW_STATS, self.take((5, n), acc), strict=True))
        out["chunks"] = dict(zip(CHUNK_STATS, self.take((7, c), acc), strict=True))
        out["errors"] = self.take((2 + c,), torch.int64)
        out["row_weight"] = self.take((n,), acc)
        if case.grad_mode == IN_PLACE:
            memory = self.take((storage(x).numel(),), x.dtype)
            out["grad"] = memory.as_strided(x.shape, x.stride()).reshape(n, x.shape[-1])
        elif case.grad_mode == OWN_BUFFER:
            pitch = x.shape[-1] + case.grad_row_gap
            memory = self.take((max(n * pitch - case.grad_row_gap, 0),), x.dtype)
            for t in range(1, n if case.grad_row_gap else 0):
                gap = memory[t * pitch - case.grad_row_gap : t * pitch].view(torch.uint8)
                assert (gap == 0xA5).all(), f"the gap before row {t} of the gradient was written"
            out["grad"] = memory.as_strided((n, x.shape[-1]), (pitch, 1))
        return out
