"""The segmenter under ASan + UBSan and TSan, and its plain kernels, each in its own process."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/segment").glob("segmenter*.cpp"))
FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-fno-math-errno", f"-I{ROOT / 'csrc'}"]
MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# The tests that the plain kernels run.
PLAIN = "longer or ties or both-embeddings or tensors or proven or oracle"
COMPILER = os.environ.get("CXX", "g++")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which(COMPILER) is None,
    reason=f"needs Linux and {COMPILER}",
)


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def compile_all(sources, flags, folder):
    """Compiles the sources two at a time, the _avx2 ones for that set; returns the objects."""
    x86 = platform.machine() in ("x86_64", "AMD64")

    def compile_one(source):
        wide = ["-mavx2", "-mfma", "-mf16c"] if source.stem.endswith("_avx2") else []
        target = folder / f"{source.stem}.o"
        run([COMPILER, *FLAGS, *flags, *wide, "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, [s for s in sources if x86 or "avx" not in s.stem]))


@pytest.mark.ci
@pytest.mark.parametrize("flags", [MEMORY, THREADS], ids=["address+undefined", "thread"])
def test_random_problems_one_by_one_and_on_four_threads(flags, tmp_path):
    objects = compile_all([*SOURCES, ROOT / "tests/segment_sanitize.cpp"], flags, tmp_path)
    run([COMPILER, *objects, *flags, "-pthread", "-o", tmp_path / "driver"])
    for generic in ({}, {"CWT_SEGMENT_GENERIC": "1"}):
        assert ", 0 differ" in run([tmp_path / "driver"], **generic)


@pytest.mark.ci
def test_bindings_under_address_and_undefined(tmp_path):
    """The fuzzing of the bindings once more, on a module built with sanitizers."""
    package = tmp_path / "cwt_ext"
    package.mkdir()
    for file in (ROOT / "cwt_ext").iterdir():
        if file.suffix in (".py", ".so") and not file.name.startswith("_segment"):
            (package / file.name).symlink_to(file)
    headers = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    sources = [*SOURCES, ROOT / "csrc/segment/bindings.cpp"]
    objects = compile_all(sources, [*MEMORY, *headers, "-fvisibility=hidden"], tmp_path)
    module = package / f"_segment{sysconfig.get_config_var('EXT_SUFFIX')}"
    run([COMPILER, *objects, *MEMORY, "-shared", "-pthread", "-o", module])
    libraries = [
        run([COMPILER, f"-print-file-name={lib}.so"]).strip() for lib in ("libasan", "libstdc++")
    ]
    out = run(
        [*PYTEST, "-o", f"pythonpath={tmp_path}", "tests/test_segment_fuzz.py"],
        LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONPATH=str(tmp_path),
    )
    assert "3 passed" in out


@pytest.mark.ci
def test_the_plain_kernels_pass_the_same_tests():
    out = run(
        [*PYTEST, "tests/test_segment.py", "tests/test_segment_bounds.py", "-k", PLAIN],
        CWT_SEGMENT_GENERIC="1",
        PYTHONPATH=str(ROOT),
    )
    assert " passed" in out
    assert "generic" in run(
        [sys.executable, "-c", "from cwt_ext import _segment; print(_segment.instruction_set())"],
        CWT_SEGMENT_GENERIC="1",
        PYTHONPATH=str(ROOT),
    )
