"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_the_library_imports_torch_and_numpy_only():
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "cwt_ext"}
    for path in (ROOT / "cwt_ext").glob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            assert set(imports(path)) <= allowed, path


def test_only_one_file_says_torch_ops():
    users = [p.name for p in (ROOT / "cwt_ext").glob("*.py") if "torch.ops" in p.read_text()]
    assert users == ["_ops.py"]


def test_importing_the_library_loads_neither_transformers_nor_the_application():
    code = "import sys, cwt_ext; print(sorted({'transformers', 'cwt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_setup_py_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 150


@pytest.mark.parametrize("room", ["cwt_ext", "python/cwt"])
def test_files_are_short(room):
    for path in (ROOT / room).glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
