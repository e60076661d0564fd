"""The numbers of the quick preset, to the last digit: a change that claims to change none is held
to it. They depend on the kind of machine, which tests/data/quick_preset.json names."""

import platform
from pathlib import Path

import pytest
import torch
from cwt.cli import main
from cwt.files import read_json

HELD = read_json(Path(__file__).parent / "data" / "quick_preset.json")


def machine():
    return {
        "processor": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


@pytest.mark.skipif(
    machine() != HELD["machine"],
    reason=f"the digits are those of {HELD['machine']}, this is {machine()}",
)
def test_the_quick_preset_gives_the_same_digits(tmp_path):
    flags = ["--preset", "quick", "--eval.latency-questions", "0", "--jobs", "2"]
    main(["run", *flags, "--out", str(tmp_path / "q")])
    rows = read_json(tmp_path / "q/report.json")["methods"]
    assert [
        {key: row[key] for key in held} for row, held in zip(rows, HELD["rows"], strict=True)
    ] == (HELD["rows"])
