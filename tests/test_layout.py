"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
APPLICATION = ROOT / "python" / "cwt"

# What each room of the application may import, beside itself, cwt_ext, and what is in every hand.
EVERYONE = {"at_hand", "errors", "files", "interrupts", "processes", "progress"}
ROOMS = {
    "data": set(),
    "teaching": {"data"},
    "students": {"data"},
    "training": {"data", "students"},
    "skipping": {"data", "students"},
    "evaluation": {"data", "students", "teaching"},
    "report": set(),
    "config": {"data", "training", "skipping"},
    "pipeline": {
        "config", "data", "students", "training", "skipping", "evaluation", "report",
    },
}  # fmt: skip
ENTRIES = {"__init__", "__main__", "cli", "commands", "doctor"}


def imported_modules(path):
    """Every module that a file imports, wherever it does so, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module, node.lineno


def imports(path):
    return {module.split(".")[0] for module, _ in imported_modules(path)}


def room_of(path):
    return path.relative_to(APPLICATION).with_suffix("").parts[0]


def test_the_library_imports_torch_and_numpy_only():
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "cwt_ext"}
    for path in (ROOT / "cwt_ext").glob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            assert imports(path) <= allowed, path


def test_the_integrations_import_a_trainer_where_they_are_named_for_it():
    allowed = set(sys.stdlib_module_names) | {"torch", "cwt_ext"}
    own = {"transformers_trainer": {"transformers"}, "sft_trainer": {"trl"}}
    files = list((ROOT / "cwt_ext/integrations").glob("*.py"))
    assert len(files) > len(own)
    for path in files:
        assert imports(path) <= allowed | own.get(path.stem, set()), path


def test_every_room_of_the_application_has_a_place_in_the_order():
    rooms = {room_of(p) for p in APPLICATION.rglob("*.py")}
    assert rooms == set(ROOMS) | EVERYONE | ENTRIES


@pytest.mark.parametrize("room", [*ROOMS, *sorted(EVERYONE)])
def test_rooms_import_in_one_direction(room):
    allowed = ROOMS.get(room, set()) | EVERYONE | {room}
    files = [p for p in APPLICATION.rglob("*.py") if room_of(p) == room]
    assert files
    for path in files:
        for module, line in imported_modules(path):
            if module.startswith("cwt."):
                assert module.split(".")[1] in allowed, f"{path}:{line} imports {module}"
            assert module != "cwt", f"{path}:{line} imports the whole application"


def test_the_order_of_the_rooms_has_no_circle():
    from graphlib import TopologicalSorter

    order = list(TopologicalSorter(ROOMS).static_order())
    assert order.index("data") < order.index("students") < order.index("training")
    assert order[-1] == "pipeline"


def test_the_report_needs_no_model():
    for path in (APPLICATION / "report").glob("*.py"):
        assert not imports(path) & {"torch", "transformers", "accelerate", "cwt_ext"}, path


def test_only_one_file_says_torch_ops():
    users = [p.name for p in (ROOT / "cwt_ext").glob("*.py") if "torch.ops" in p.read_text()]
    assert users == ["_ops.py"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cwt_ext", {"transformers", "cwt"}),
        ("cwt_ext.integrations", {"transformers", "accelerate", "trl", "cwt"}),
        ("cwt", {"torch", "transformers", "cwt_ext"}),
        ("cwt.cli", {"torch", "transformers", "cwt_ext"}),
        ("cwt.report.page", {"torch", "transformers"}),
    ],
)
def test_importing_a_part_does_not_load_the_others(module, absent):
    code = f"import sys, {module}; print(sorted({absent} & set(sys.modules)))"
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'python')!r}]; "
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("room", ["cwt_ext", "python/cwt"])
def test_functions_are_short(room):
    """Past 60 lines, its docstring aside, a function holds a second idea."""
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = node.body[1].lineno if text and len(node.body) > 1 else first.lineno
                assert node.end_lineno - start < 60, f"{path}:{node.lineno} {node.name}"


def test_the_native_table_of_contents_holds_schemas_alone():
    text = (ROOT / "csrc/ops.cpp").read_text()
    body = text[text.index("STABLE_TORCH_LIBRARY(") :]
    assert body.count("m.def(") == body.count('m.def(R"(') > 4
    assert "{" not in body.split("{", 1)[1]


def test_the_mathematics_of_the_loss_knows_no_torch():
    for path in [ROOT / "csrc/chunk_loss/contract.h", *(ROOT / "csrc/chunk_loss").rglob("*.cuh")]:
        assert "#include <torch" not in path.read_text(), path
