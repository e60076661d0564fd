"""python -m cwt_ext.doctor: what it prints, and that it notices what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cwt_ext
from cwt_ext import doctor, reference


def test_a_healthy_installation_passes(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for expected in ("torch", "CPU instruction set", "chunk_loss cpu bfloat16", "all good"):
        assert expected in printed


def test_one_version():
    root = Path(__file__).parents[1]
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [cwt_ext.__version__], done.stderr


def test_wrong_numbers_are_noticed(monkeypatch, capsys):
    right = reference.chunk_loss

    def wrong(*args, **options):
        want = right(*args, **options)
        return want._replace(grad=want.grad * 1.01 + torch.full_like(want.grad, 1e-3))

    monkeypatch.setattr(reference, "chunk_loss", wrong)
    assert doctor.main() == 1
    assert "FAILED chunk_loss" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sse9", "avx1024"])
def test_an_unknown_instruction_set_is_refused_with_a_hint(name):
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "cwt_ext.doctor"],
        env={**os.environ, "CWT_CPU_CAPABILITY": name, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 1
    assert f"got '{name}'" in done.stdout
    assert "unset CWT_CPU_CAPABILITY" in done.stdout
