"""What this installation has, and whether its numbers are right: python -m cwt_ext.doctor."""

from __future__ import annotations

import ctypes
import platform
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import cwt_ext

_HERE = Path(__file__).resolve().parent


def _line(name: str, value: object) -> None:
    print(f"  {name:<22} {value}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def report_versions() -> None:
    """Prints versions of everything that takes part."""
    print("versions")
    _line("cwt-ext", f"{cwt_ext.__version__}, package: {_version('cwt-ext')}")
    _line("python", f"{platform.python_version()} at {sys.executable}")
    _line("platform", platform.platform())
    _line("cwt_ext folder", _HERE)
    for package in ("torch", "numpy", "transformers", "accelerate"):
        _line(package, _version(package))


def check_library() -> None:
    """Prints which native libraries load; raises with a hint where one does not."""
    print("native libraries")
    import torch

    from cwt_ext import _ops, _segment
    from cwt_ext.segment import available_cores

    _line("operators", _ops.library_path())
    _line("segmenter", _segment.__file__)
    _line("backends built", ", ".join(_ops.backends()))
    _line("CPU instruction set", _ops.cpu_capability())
    _line("torch threads", torch.get_num_threads())
    _line("cores available", available_cores())
    _report_cuda(torch, "cuda" in _ops.backends())
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if pages.is_file():
        mode = pages.read_text().split("[")[-1].split("]")[0]
        _line("huge pages", mode)
        if mode == "never":
            print("  hint: large fresh gradients cost about twice as much without huge pages; use")
            print("        inplace=True or grad_buffer, or set transparent_hugepage to madvise.")


def _driver_version() -> str:
    """Returns the newest CUDA that the driver serves, as in 13.0."""
    version = ctypes.c_int()
    status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    if status != 0:
        return f"unknown: cuDriverGetVersion ended with {status}"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _report_cuda(torch: ModuleType, built: bool) -> None:
    _line("torch's CUDA", torch.version.cuda or "none: a CPU build")
    if not torch.cuda.is_available():
        _line("CUDA device", "none")
        return
    major, minor = torch.cuda.get_device_capability()
    _line("CUDA device", f"{torch.cuda.get_device_name()}, architecture {major}.{minor}")
    _line("CUDA driver", f"for CUDA up to {_driver_version()}")
    if not built:
        print("  hint: a CUDA device is here, but this build has no CUDA kernels: reinstall with")
        print("        the CUDA toolkit (nvcc) on PATH or CUDA_HOME set.")
    if major < 8:
        print("  hint: the CUDA kernels need architecture 8.0 or later: keep the loss on the CPU.")


def check_chunk_loss() -> None:
    """Raises unless chunk_loss agrees with the float64 oracle on every device and dtype."""
    import torch

    from cwt_ext import _ops, reference

    devices = [d for d in _ops.backends() if d == "cpu" or torch.cuda.is_available()]
    bounds = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
    for device in devices:
        for dtype, bound in bounds.items():
            g = torch.Generator().manual_seed(0)
            x = (torch.randn(12, 1031, generator=g) * 3).to(dtype).to(device).requires_grad_()
            labels = torch.randint(0, 1031, (12,), generator=g)
            ids = torch.arange(12) % 3
            active = torch.tensor([True, False, True])
            loss = cwt_ext.chunk_loss(
                x, labels.to(device), ids.to(device), active=active.to(device)
            ).loss
            (grad,) = torch.autograd.grad(loss, x)
            want = reference.chunk_loss(x.detach().cpu(), labels, ids, active=active)
            error = (grad.cpu().double() - want.grad).norm() / want.grad.norm()
            off = abs(float(loss.detach()) - float(want.loss))
            _line(f"chunk_loss {device} {str(dtype)[6:]}", f"gradient error {error:.1e}")
            if not (error < bound and off < 1e-4):
                raise RuntimeError(
                    f"chunk_loss on {device} in {dtype}: gradient error {error:.1e} (at most "
                    f"{bound}), loss off by {off:.1e} (at most 1e-4)."
                )


def check_segment() -> None:
    """Raises unless the segmenter finds the one obvious cut."""
    import numpy as np

    x = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 3, dtype=np.float32)
    boundaries = cwt_ext.segment(x, k=2).boundaries.tolist()
    _line("segment", f"boundaries {boundaries}")
    if boundaries != [0, 4, 7]:
        raise RuntimeError(f"segment: wanted boundaries [0, 4, 7], got {boundaries}.")


_HINTS = {
    "No module named 'torch'": "install torch >= 2.10 into this environment.",
    "is missing": (
        "the native library was never built: pip install ., or in a checkout python setup.py "
        "build_ext --inplace. Is another checkout earlier on sys.path?"
    ),
    "undefined symbol": (
        "the library was built against a newer torch than the one that runs: rebuild with this "
        "torch, or upgrade torch to >= 2.10."
    ),
    "GLIBCXX": "the C++ runtime is older than the compiler that built the library: rebuild here.",
    "driver version is insufficient": (
        "the kernels were built with a newer CUDA toolkit than the driver knows: update the "
        "driver, or rebuild with a toolkit no newer than the driver's CUDA (nvidia-smi shows it)."
    ),
    "no kernel image is available": (
        "the kernels were not built for this GPU: rebuild with TORCH_CUDA_ARCH_LIST set to its "
        "architecture, which stands above."
    ),
    "CWT_CPU_CAPABILITY": "unset CWT_CPU_CAPABILITY to let the library choose.",
}


def _attempt(title: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception as error:
        print(f"FAILED {title}: {type(error).__name__}: {error}")
        if not isinstance(error, ImportError | RuntimeError | ValueError):
            traceback.print_exc()
        for sign, hint in _HINTS.items():
            if sign in str(error):
                print(f"  hint: {hint}")
        return False
    return True


def main() -> int:
    """Runs every check; returns 0 where all passed, else 1."""
    report_versions()
    if not _attempt("native libraries", check_library):
        return 1
    print("self-check against the reference")
    passed = [
        _attempt("chunk_loss", check_chunk_loss),
        _attempt("segment", check_segment),
    ]
    print("all good" if all(passed) else "something is wrong: see FAILED above")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
