"""The CUDA library loads under a CUDA build of torch, GPU or not, and setup.py heeds CWT_CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "cwt_ext/libcwt_ext_cuda.so"

SCRIPT = """
import json, torch
from torch._subclasses.fake_tensor import FakeTensorMode
import cwt_ext
from cwt_ext import _ops

def arguments(device, need_grad):
    logits = torch.zeros(6, 40, dtype=torch.bfloat16, device=device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    none = [None, None, None]
    return [logits, labels, labels, *none, 2, 3, -100, 0.0, 0.0, 0.0, 1, False, need_grad, False]

def facts(tensors):
    return [[list(x.shape), str(x.dtype)] for x in tensors]

has = torch._C._dispatch_has_kernel_for_dispatch_key
names = ["chunk_loss", "chunk_loss_no_autograd", "chunk_loss_out", "chunk_loss_plan"]
names += ["chunk_loss_stats", "chunk_loss_backward", "chunk_loss_backward_"]
with FakeTensorMode():
    fake = torch.ops.cwt.chunk_loss(*arguments("cuda", True))
    devices = sorted({x.device.type for x in fake})
print(json.dumps({
    "cuda": torch.version.cuda,
    "registered": [n for n in names if has("cwt::" + n, "CUDA")],
    "backends": _ops.backends(),
    "fake": facts(fake),
    "devices": devices,
    "real": facts(torch.ops.cwt.chunk_loss(*arguments("cpu", True))),
}))
"""


def cuda_python():
    """Returns an interpreter whose torch is a CUDA build, or None."""
    if torch.version.cuda is not None:
        return sys.executable
    return os.environ.get("CWT_CUDA_PYTHON")


NO_CUDA_TORCH = (
    f"torch {torch.__version__} is no CUDA build, and CWT_CUDA_PYTHON names no interpreter with one"
)


@pytest.fixture(scope="module")
def report():
    """What a process under a CUDA build of torch finds."""
    if not LIBRARY.is_file():
        pytest.skip(f"{LIBRARY.name} was not built: there was no nvcc, or CWT_CUDA=0")
    python = cuda_python()
    if python is None:
        pytest.skip(NO_CUDA_TORCH)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, "-c", SCRIPT], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_operator_has_a_cuda_kernel(report):
    assert report["cuda"]
    assert report["registered"] == [
        "chunk_loss",
        "chunk_loss_no_autograd",
        "chunk_loss_out",
        "chunk_loss_plan",
        "chunk_loss_stats",
        "chunk_loss_backward",
        "chunk_loss_backward_",
    ]
    assert report["backends"] == ["cpu", "cuda"]


def test_fake_kernels_have_the_shapes_of_real_ones(report):
    """Fake tensors on a CUDA device; the real ones come from the CPU kernels of one contract."""
    assert report["fake"] == report["real"]
    assert report["devices"] == ["cuda"]


def test_a_cpu_build_of_torch_does_not_load_the_cuda_library():
    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    from cwt_ext import _ops

    assert _ops.backends() == ["cpu"]
    assert "libcwt_ext_cuda.so" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "CWT_CUDA=1: must be auto, 0, or 1 with nvcc on PATH"),
        ("yes", "CWT_CUDA=yes: must be auto, 0, or 1 with nvcc on PATH"),
    ],
)
def test_setup_refuses_loudly(tmp_path, value, message):
    """CWT_CUDA=1 without nvcc, or a value that means nothing, ends the build with the reason."""
    env = {**os.environ, "CWT_CUDA": value, "PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True, env=env
    )
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("value", ["auto", "0"])
def test_setup_does_without_nvcc(tmp_path, value):
    env = {**os.environ, "CWT_CUDA": value, "PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "cwt-ext"
