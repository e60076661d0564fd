"""Nothing in data, weights or checkpoints is executed; no key and no markup leaks into a file."""

import ast
import html
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from app_fixtures import tiny
from cwt.cli import main
from cwt.data.readers import read_examples
from cwt.errors import UserError
from cwt.files import read_json, write_json
from cwt.students.load import check_student, load_student
from cwt.training.checkpoint import _checksums
from page_fixtures import HOSTILE
from train_cases import stopped, trained

ROOT = Path(__file__).resolve().parents[1]
SECRETS = {"OPENAI_API_KEY": "sk-0123456789abcdef", "HF_TOKEN": "hf_abcdefghijklmnop"}


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


def test_the_trap_works(sprung):
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return stopped(tmp_path_factory.mktemp("stopped"))


@pytest.mark.parametrize(
    "name",
    ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"],
)
def test_code_in_a_checkpoint_is_refused(checkpoint, tmp_path, sprung, name):
    shutil.copytree(checkpoint.parent, tmp_path / "out")
    there = tmp_path / "out" / checkpoint.name
    torch.save({"step": 1, "trap": Trap(sprung)}, there / name)
    write_json(there / "checksums.json", _checksums(there))  # whoever planted it did that, too
    with pytest.raises(UserError, match="cannot be read"):
        trained(tmp_path / "out")
    assert not sprung.exists()


def test_code_in_weights_is_refused(tmp_path, sprung):
    tiny().save(tmp_path / "mine")
    (tmp_path / "mine/model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap(sprung)}, tmp_path / "mine/pytorch_model.bin")
    with pytest.raises((UserError, pickle.UnpicklingError)):
        load_student(str(tmp_path / "mine"))
    assert not sprung.exists()


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_code_beside_weights_is_refused(tmp_path, sprung, part):
    folder = tmp_path / "mine"
    tiny().save(folder)
    code = f"import os\nos.mkdir({str(sprung)!r})\nclass Config: pass\nclass Model: pass\n"
    (folder / "own.py").write_text(code)
    file = folder / ("config.json" if part == "config" else "tokenizer_config.json")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    if part == "tokenizer":
        own = {"AutoTokenizer": [None, "own.Model"]}
    kind = {"model_type": "own"} if part == "config" else {"tokenizer_class": "Own"}
    write_json(file, {**read_json(file), **kind, "auto_map": own})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_student(str(folder))
    if part == "config":
        with pytest.raises(UserError, match="cannot be loaded"):
            check_student(str(folder))
    assert not sprung.exists()


def test_what_looks_like_code_in_data_is_text(tmp_path, sprung):
    calls = [f"__import__('os').mkdir({str(sprung)!r})", "{{ 7 * 7 }}", "${7 * 7}", "{0.__class__}",
             "=1+1", "{question.__class__}"]  # fmt: skip
    rows = [
        {"question": call, "rationale": f"First {call} is. It is 6. The answer is 6"}
        for call in calls
    ]
    table = tmp_path / "f.csv"
    cells = "\n".join(
        f'"{r["question"]}","[{calls[0]}, 6]","6"' for r in rows
    )  # a list in a cell is read as a literal
    table.write_text(f"question,rationale,answer\n{cells}\nQ,First. Second. The answer is 6,6\n")
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_examples(tmp_path / "f.jsonl")
    assert [e.question for e in found.examples] == calls
    assert all(call in e.rationale for call, e in zip(calls, found.examples, strict=True))
    read_examples(table)
    student = tiny()
    assert [student.text(student.prompt(call)) for call in calls] == [f"{c}\n" for c in calls]
    assert not sprung.exists()


def test_a_run_holds_no_key_no_markup_of_others_and_no_pickle(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    rows = [
        {"question": f"{i} {HOSTILE}", "rationale": f"Say {HOSTILE} {i}. So. The answer is {i}"}
        for i in range(24)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "r"
    main([
        "run", "--data", str(tmp_path / "data.jsonl"), "--out", str(out), "--methods", "FTT",
        "--budget", "300", "--jobs", "1", "--data.validation-size", "3", "--data.test-size", "3",
        "--eval.max-new-tokens", "4", "--eval.latency-questions", "0", "--chunk.no-compare",
    ])  # fmt: skip
    files = [p for p in out.rglob("*") if p.is_file()]
    assert (out / "students/FTT/model.safetensors") in files
    assert not [p for p in files if p.suffix in (".pkl", ".bin", ".pt", ".pth")]
    for path in files:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path
    page = (out / "report.html").read_text()
    assert HOSTILE not in page
    assert html.escape(HOSTILE).replace("&quot;", "&#34;") in page
    assert page.count("<script") == 1
    assert "Content-Security-Policy" in page
    assert all((p.stat().st_size < 5 << 20) for p in files if p.suffix == ".html")


def test_no_module_evaluates_text_or_trusts_code():
    """`eval`, `exec`, `pickle`, `trust_remote_code=True`, `weights_only=False`: nowhere."""
    for path in [*(ROOT / "python/cwt").rglob("*.py"), *(ROOT / "cwt_ext").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                trusted = ("trust_remote_code", True), ("weights_only", False), ("shell", True)
                assert (node.arg, node.value.value) not in trusted, f"{path}:{node.value.lineno}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve"}, f"{path}:{node.lineno}"
