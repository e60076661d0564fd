"""Which architectures setup.py hands to nvcc, for every nvcc and TORCH_CUDA_ARCH_LIST."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
from cuda_toolkit import arch_flags, find_nvcc  # noqa: E402

CUDA_12_0 = {50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90}
CUDA_13_0 = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121}


def codes(asked, known):
    """The code= parts, in order."""
    return [flag.split("code=")[-1] for flag in arch_flags(asked, known, "12.0")]


@pytest.mark.parametrize(
    ("asked", "known", "want"),
    [
        ("", CUDA_13_0, ["sm_80", "sm_90", "[sm_100,compute_100]"]),
        ("", CUDA_12_0, ["sm_80", "[sm_90,compute_90]"]),  # no Blackwell yet
        ("9.0", CUDA_13_0, ["sm_90"]),
        ("8.0;9.0+PTX", CUDA_12_0, ["sm_80", "[sm_90,compute_90]"]),
        ("8.6 9.0a", CUDA_12_0, ["sm_86", "sm_90a"]),
        ("Hopper", CUDA_12_0, ["sm_90"]),
        ("Ampere+PTX", CUDA_12_0, ["sm_80", "[sm_86,compute_86]"]),
        ("12.1", CUDA_13_0, ["sm_121"]),
    ],
)
def test_architectures(asked, known, want):
    assert codes(asked, known) == want


def test_what_is_too_old_is_left_out_aloud(capsys):
    assert codes("6.1;7.5+PTX;8.0", CUDA_12_0) == ["sm_80"]
    assert "6.1 is left out, the kernels need 8.0 or later" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("7.0;7.5", "names no architecture of 8.0 or later"),
        ("10.0", r"nvcc 12.0 does not know the architecture 10.0 .* It knows 50, .*90\."),
        ("Pascal", "has 'Pascal': wanted entries such as 9.0"),
        ("9", "has '9': wanted entries such as 9.0"),
        ("sm_90", "has 'sm_90': wanted entries such as 9.0"),
    ],
)
def test_what_means_nothing_ends_the_build_with_a_sentence(asked, message):
    with pytest.raises(SystemExit, match=message):
        arch_flags(asked, CUDA_12_0, "12.0")


def test_an_nvcc_without_any_of_them_ends_the_build():
    with pytest.raises(SystemExit, match=r"CUDA 11\.8 or later is needed"):
        arch_flags("", {50, 60, 70}, "10.2")


NVCC = """#!/bin/sh
case "$1" in
  -dryrun) echo '#$ INCLUDES="-I/toolkit/targets/x/include"  ' >&2 ;;
  --version) echo 'Cuda compilation tools, release 12.0, V12.0.140' ;;
  --list-gpu-arch) printf 'compute_80\\ncompute_90\\n' ;;
esac
"""


def test_an_nvcc_is_asked_for_its_toolkit_version_and_architectures(tmp_path, monkeypatch):
    (tmp_path / "nvcc").write_text(NVCC)
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("CWT_CUDA", "1")
    nvcc = find_nvcc()
    assert nvcc.path == str(tmp_path / "nvcc")
    assert nvcc.toolkit == Path("/toolkit/targets/x")
    assert nvcc.version == "12.0"
    assert [flag.split("=")[-1] for flag in nvcc.archs] == ["sm_80", "[sm_90,compute_90]"]
    monkeypatch.setenv("CWT_CUDA", "0")
    assert find_nvcc() is None


def test_cxx_is_nvccs_host_compiler_too(tmp_path):
    """In the build file that setup.py writes; ninja is not run."""
    (tmp_path / "nvcc").write_text(NVCC)
    (tmp_path / "nvcc").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CXX": "my-c++"}
    code = (
        "import sys, pathlib; sys.argv = ['setup.py', '--name']; import runpy;"
        "m = runpy.run_path('setup.py');"
        f"n = m['NinjaFile'](pathlib.Path({str(tmp_path)!r}));"
        "n.compile('csrc/chunk_loss/cuda/launch.cu', []); print('\\n'.join(n.lines))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "-ccbin=my-c++" in done.stdout
