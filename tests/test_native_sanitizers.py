"""The native library under sanitizers: its Python tests, on libraries that are built with them.

The CUDA kernels have theirs in `test_cuda_simt.py`, the segmenter on threads in
`test_segment_sanitizers.py`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX", "g++")
OPERATORS = ["chunk_loss", "chunk_loss_errors", "chunk_loss_plan", "linear_chunk_loss"]
SEGMENTER = ["segment", "segment_batch", "segment_fuzz"]
# Left out: what starts a Python of its own, a compiler or a signal that the preloaded runtime
# changes, and tables larger than any memory, which its allocator refuses in its own way.
LEFT_OUT = "every_instruction_set or compiles or ctrl_c or docstrings or that_no_memory_holds"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or shutil.which(COMPILER) is None,
        reason=f"needs Linux and {COMPILER}",
    ),
]


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-6000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def sanitized(folder, sanitizers):
    """Builds the library with sanitizers; returns the folder that holds the package."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder]
    run(build, CWT_SANITIZE=sanitizers, CWT_CUDA="0")
    for path in (ROOT / "cwt_ext").iterdir():
        if path.suffix in (".py", ".pyi", ".typed") or path.name == "integrations":
            (folder / "cwt_ext" / path.name).symlink_to(path)
    return folder


def passed(folder, runtime, suites, **options):
    """Runs suites on the sanitized package; returns how many tests passed, all of them."""
    libraries = [
        run([COMPILER, f"-print-file-name={name}.so"]).strip() for name in (runtime, "libstdc++")
    ]
    out = run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k",
         f"not ({LEFT_OUT})", "-o", f"pythonpath={folder} python tests",
         *(f"tests/test_{name}.py" for name in suites)],
        LD_PRELOAD=" ".join(libraries), PYTHONPATH=str(folder), **options,
    )  # fmt: skip
    print(out.splitlines()[-1])
    found = re.search(r"(\d+) passed", out)
    assert found, out
    assert "failed" not in out.splitlines()[-1]
    return int(found[1])


def test_the_suites_under_address_and_undefined(tmp_path):
    folder = sanitized(tmp_path, "address,undefined")
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    assert passed(folder, "libasan", OPERATORS + SEGMENTER, **options) > 500


def test_the_suites_of_the_segmenter_under_thread(tmp_path):
    """The operators' threads are those of torch, whose OpenMP the sanitizer does not see."""
    folder = sanitized(tmp_path, "thread")
    options = {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1", "OMP_NUM_THREADS": "1"}
    assert passed(folder, "libtsan", SEGMENTER, **options) > 100
