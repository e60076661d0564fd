"""python -m cwt_ext.doctor: what it prints, and that it notices what is wrong."""

import os
import shutil
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


def test_a_library_that_was_never_built_is_named(tmp_path):
    """The doctor answers where `import cwt_ext` has nothing to load."""
    root = Path(__file__).parents[1]
    shutil.copytree(root / "cwt_ext", tmp_path / "cwt_ext", ignore=shutil.ignore_patterns("*.so"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def python(*arguments):
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)

    done = python("-m", "cwt_ext.doctor")
    assert done.returncode == 1, done.stderr
    assert "libcwt_ext.so is missing" in done.stdout
    assert "hint: the native library was never built" in done.stdout
    done = python("-c", "import cwt_ext; cwt_ext.chunk_loss")
    assert "ImportError: cwt_ext: the native library" in done.stderr
    assert "ImportError" in python("-c", "from cwt_ext import segment").stderr


class OldGpu:
    """torch.cuda of a machine with a GPU that the kernels do not run on."""

    is_available = staticmethod(lambda: True)
    get_device_capability = staticmethod(lambda: (7, 5))
    get_device_name = staticmethod(lambda: "Tesla T4")


def test_a_gpu_that_is_too_old_or_has_no_kernels_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch, "cuda", OldGpu)
    monkeypatch.setattr(doctor, "_driver_version", lambda: "12.4")
    doctor._report_cuda(torch, built=False)
    printed = capsys.readouterr().out
    assert "Tesla T4, architecture 7.5" in printed
    assert "for CUDA up to 12.4" in printed
    assert "no CUDA kernels" in printed
    assert "need architecture 8.0 or later" in printed


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", "update the driver"),
        ("no kernel image is available for execution", "rebuild with TORCH_CUDA_ARCH_LIST"),
    ],
)
def test_errors_of_cuda_come_with_what_to_do(error, hint, capsys):
    def check():
        raise RuntimeError(f"chunk_loss: CUDA error in asking for limits: {error}.")

    assert not doctor._attempt("chunk_loss", check)
    assert hint in capsys.readouterr().out


# cwt doctor


def test_the_application_has_a_doctor(capsys, tmp_path):
    from cwt.cli import main

    main(["doctor", "--out", str(tmp_path / "runs")])
    printed = capsys.readouterr().out
    for expected in ("chunk_loss cpu bfloat16", "transformers", "training runs on"):
        assert expected in printed
    assert f"GiB in {tmp_path}" in printed
    assert "...The answer is 25" in printed
    assert printed.splitlines()[-1] == "cwt: all good"


def test_a_missing_package_and_a_changed_student_are_named(monkeypatch, capsys, tmp_path):
    from cwt import doctor as application
    from cwt.students.causal import CausalStudent
    from packaging.requirements import Requirement

    wanted = ["torch>=99", "no-such-package>=2.1", "numpy>=1"]
    monkeypatch.setattr(application, "_requirements", lambda: [Requirement(w) for w in wanted])
    monkeypatch.setattr(CausalStudent, "text", lambda self, ids: "The answer is 26")
    assert application.diagnose_installation(tmp_path) == 1
    printed = capsys.readouterr().out
    assert f"wanted torch>=99 (found: {torch.__version__}), no-such-package>=2.1 (found" in printed
    assert "(found: none); run pip install 'cwt-ext[app]'" in printed
    assert "FAILED student: asked" in printed
    assert printed.splitlines()[-1] == "cwt: something is wrong: see FAILED above"


def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch, capsys, tmp_path):
    from cwt import doctor as application
    from cwt.errors import UserError

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(application.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be written to \(Permission denied"):
        application.report_disk(tmp_path / "a" / "b")
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(application.shutil, "disk_usage", lambda _: usage)
    application.report_disk(tmp_path)
    printed = capsys.readouterr().out
    assert "1.0 GiB in" in printed
    assert "hint: every row" in printed
