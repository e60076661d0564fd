"""The numbers of the quick preset, to the last digit: a change that claims to change none is held
to it.

Another instruction set adds in another order, so the digits belong to a kind of machine, which
tests/data/quick_preset.json names. Every library is told to use AVX2, which newer processors of the
same vendor have as well.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cwt.files import read_json

ROOT = Path(__file__).resolve().parents[1]
HELD = read_json(Path(__file__).parent / "data" / "quick_preset.json")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "CWT_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}
SMALLER = [
    *("--data.train-size", "40", "--data.validation-size", "8", "--data.test-size", "20"),
    *("--budget", "3000", "--methods", "FTT,CWT,STT", "--train.parent", "CWT"),
    *("--skip.max-risk", "100", "--skip.rounds", "2", "--eval.max-new-tokens", "60"),
]


def machine():
    about = Path("/proc/cpuinfo")
    text = about.read_text() if about.exists() else ""
    vendors = [line.split(":")[1].strip() for line in text.splitlines() if "vendor_id" in line]
    return {
        "processor": platform.machine(),
        "vendor": vendors[0] if vendors else "unknown",
        "avx2": " avx2 " in text,
        "torch": torch.__version__,
    }


pytestmark = pytest.mark.skipif(
    machine() != HELD["machine"],
    reason=f"the digits are those of {HELD['machine']}, this is {machine()}",
)


def rows_of(out, *flags):
    """Runs the quick preset in a process of its own; returns the rows of its table."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    done = subprocess.run(
        [sys.executable, "-m", "cwt", "run", "--preset", "quick", "--eval.latency-questions", "0",
         *flags, "--out", str(out)],
        env={**os.environ, **AVX2, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_json(out / "report.json")["methods"]


def held_digits(rows, held):
    return [{key: row[key] for key in wanted} for row, wanted in zip(rows, held, strict=True)]


@pytest.mark.ci
def test_the_quick_preset_made_smaller_gives_the_same_digits(tmp_path):
    """Every stage: chunks, training, skips, generation."""
    rows = rows_of(tmp_path / "q", "--jobs", "1", *SMALLER)
    assert held_digits(rows, HELD["smaller"]) == HELD["smaller"]


@pytest.mark.slow
def test_the_quick_preset_gives_the_same_digits(tmp_path):
    """CWT_QUICK_RUN names a finished run under AVX2, so that CI makes one only."""
    if "CWT_QUICK_RUN" in os.environ:
        rows = read_json(ROOT / os.environ["CWT_QUICK_RUN"] / "report.json")["methods"]
    else:
        rows = rows_of(tmp_path / "q", "--jobs", "2")
    assert held_digits(rows, HELD["rows"]) == HELD["rows"]
