"""The CPU kernels of instruction sets that this machine may lack, compiled with SIMDe.

tests/simde stands for <immintrin.h> and <arm_neon.h>: every instruction becomes portable C. The
library is built anew around the kernels, and the tests of chunk_loss run on it.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX", "g++")
CPU = ROOT / "csrc/chunk_loss/cpu"
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fno-math-errno", "-DNDEBUG", f"-I{ROOT / 'csrc'}"]
NAMES = {
    "avx512": ["-D__builtin_cpu_supports(x)=1"],  # so that it is chosen
    "neon": ["-DCWT_EMULATE_NEON"],
}

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64") or shutil.which(COMPILER) is None,
        reason=f"needs an x86-64 processor and {COMPILER}",
    ),
]


def has_simde():
    code = "#include <simde/arm/neon.h>\n#include <simde/x86/avx512.h>\n"
    command = [COMPILER, "-x", "c++", "-E", "-o", os.devnull, "-"]
    return subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0


def run(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def build(name, folder):
    """Builds libcwt_ext.so in `folder` with the kernels `name` emulated."""
    include = Path(torch.__file__).parent / "include"
    with_torch = [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
    with_torch.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    emulated = CPU / f"rows_{name}.cpp"
    sources = [ROOT / "csrc/ops.cpp", CPU / "chunk_loss_cpu.cpp", emulated]
    sources += [CPU / "rows_baseline.cpp", CPU / "rows_float64.cpp"]
    if name == "avx512":
        sources.append(CPU / "rows_avx2.cpp")

    def compile_one(source):
        flags = [*FLAGS, *NAMES[name]]
        if source == emulated:
            flags.insert(0, f"-I{ROOT / 'tests/simde'}")
        elif source.stem == "rows_avx2":
            flags += ["-mavx2", "-mfma", "-mf16c"]
        else:
            flags += with_torch
        run([COMPILER, *flags, "-c", source, "-o", folder / f"{source.stem}.o"])
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    run([COMPILER, "-shared", *objects, *libraries, "-o", folder / "libcwt_ext.so"])


@pytest.mark.parametrize("name", list(NAMES))
def test_emulated_kernels_equal_the_oracle(name, tmp_path):
    if not has_simde():
        pytest.skip("there are no headers of SIMDe (Debian: libsimde-dev)")
    shutil.copytree(
        ROOT / "cwt_ext",
        tmp_path / "cwt_ext",
        ignore=shutil.ignore_patterns("libcwt_ext*", "_seg*"),
    )
    segmenter = next((ROOT / "cwt_ext").glob("_segment*.so"))
    shutil.copy(segmenter, tmp_path / "cwt_ext")
    build(name, tmp_path / "cwt_ext")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "CWT_CPU_CAPABILITY": name}
    seen = run(
        [sys.executable, "-P", "-c", "from cwt_ext import _ops; print(_ops.cpu_capability())"],
        env=env,
    )
    assert seen.strip() == name
    pytest_on_copy = [sys.executable, "-P", "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    pytest_on_copy += ["-o", f"pythonpath={tmp_path}", ROOT / "tests/test_chunk_loss.py"]
    printed = run(
        [*pytest_on_copy, "-k", "not instruction_set and not threads"],
        env=env,
        cwd=ROOT,
    )
    assert " passed" in printed
    assert " failed" not in printed
