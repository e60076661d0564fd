"""The documents: links resolve, examples run, commands parse, acronyms are spelled out."""

import dataclasses
import re
from pathlib import Path

import pytest
from documents import DOCUMENTS, FENCE, ROOT, blocks, commands, named, shown_commands, shrunk

# Links


def anchor(heading):
    """The name that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return kept.replace(" ", "-")


def test_links_lead_somewhere():
    checked = 0
    for path in DOCUMENTS:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, name = target.partition("#")
            found = (path.parent / file) if file else path
            assert found.exists(), f"{path.relative_to(ROOT)}: {target}"
            if name:
                headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert name in map(anchor, headings), f"{path.relative_to(ROOT)}: {target}"
            checked += 1
    assert checked > 30


# Python


def test_examples_are_shrunk_where_it_takes_time():
    code = 'cwt.generate_examples("coin", [600, 100], seed=0); Recipe(budget=400_000, batch_size=2)'
    assert shrunk(code) == (
        'cwt.generate_examples("coin", [8, 8], seed=0); Recipe(budget=300, batch_size=2)'
    )


# Executed with the commands around them by tests/test_walkthroughs.py.
WALKS = {"quickstart.md", "tutorial.md"}
# The first needs an exported file; tests/test_export.py makes one and runs its examples on it.
ELSEWHERE = {"exporting.md"} | WALKS


@pytest.mark.parametrize(
    "path", named(p for p in DOCUMENTS if blocks(p, "python") and p.name not in ELSEWHERE)
)
def test_python_examples_run(path, tmp_path, monkeypatch, capsys):
    """All examples of a document in one namespace, in order, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for i, code in enumerate(blocks(path, "python")):
        exec(compile(shrunk(code), f"{path.name}, example {i + 1}", "exec"), names)
    assert capsys.readouterr().out.strip(), "an example that shows nothing"


# Commands


@pytest.mark.parametrize("path", named(p for p in DOCUMENTS if list(commands(p))))
def test_commands_parse(path, tmp_path, monkeypatch, capsys):
    from cwt.cli import COMMANDS, _parse
    from cwt.pipeline.methods import method_named, selected_methods

    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / "docs/running.md", "yaml"):
        Path(code.splitlines()[0].strip("# ")).write_text(code)
    for words in commands(path):
        assert words[0] in COMMANDS, f"cwt {' '.join(words)}"
        if len(words) == 1:
            continue  # a command's name in running text, without its options
        try:
            command = _parse(words[0], words[1:])
        except SystemExit as stopped:
            asked = "--help" in words and stopped.code == 0
            assert asked, f"{' '.join(words)}: {capsys.readouterr().err}"
            continue
        if words[0] in ("run", "sweep"):
            selected_methods(command.options)
        if hasattr(command, "method"):
            method_named(command.method)


def test_commands_are_found():
    found = list(commands(ROOT / "benchmarks/evidence/processed.md"))
    assert len(found) == 1
    assert found[0][:3] == ["sweep", "--tasks", "arithmetic,objects"]
    assert found[0][-2:] == ["--train.budget-unit", "processed_tokens"]
    everywhere = [words for path in DOCUMENTS for words in commands(path)]
    assert len(everywhere) > 30


# Why the commands that a document shows are parsed and not executed.
NOT_EXECUTED = {
    "README.md": "the demo takes minutes, the others need the reader's files",
    "docs/install.md": "`cwt doctor` alone, which test_doctor.py runs",
    "docs/running.md": "needs the reader's files; test_run.py and test_cli.py run every command",
    "docs/students.md": "needs a student and files; test_families.py and test_chat.py have them",
    "docs/teaching.md": "needs a server or a teacher; test_teach_models.py has both",
    "docs/exporting.md": "needs a run; test_export.py has one",
    "docs/reading-the-report.md": "needs a run; test_run.py has one",
    "docs/scaling.md": "starts processes; test_train.py and test_sweep.py do",
}


@pytest.mark.parametrize("path", named(p for p in DOCUMENTS if list(shown_commands(p))))
def test_commands_are_executed_or_it_is_said_why_not(path):
    name = str(path.relative_to(ROOT))
    evidence = name.startswith("benchmarks/")  # hours
    assert (path.name in WALKS) + (name in NOT_EXECUTED) + evidence == 1, name


def test_every_command_is_described():
    from cwt.cli import COMMANDS

    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`cwt {name}" not in text and name != "run"] == []


def test_every_public_name_is_in_the_reference():
    import cwt

    import cwt_ext

    for package in (cwt, cwt_ext):
        page = ROOT / f"docs/reference/{package.__name__}.md"
        shown = re.findall(r"^::: \S+\.(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        missing = set(package.__all__) - {*shown, "__version__"}
        assert not missing, f"{page.name}: {missing}"


def test_every_row_is_described():
    from cwt.pipeline.methods import METHODS

    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in text] == []


def test_every_field_of_the_report_is_described():
    from cwt.pipeline.results import Row

    text = (ROOT / "docs/reading-the-report.md").read_text(encoding="utf-8")
    fields = [field.name for field in dataclasses.fields(Row)]
    assert [name for name in fields if f"| `{name}` |" not in text] == []


# Language

ACRONYMS = {
    "FTT": "full-thinking training",
    "AC": "average chunking",
    "DP": "dynamic programming",
    "SBC": "search-based chunking",
    "CWT": "chunk-wise training",
    "STT": "skip-thinking training",
    "NLL": "negative log-likelihood",
}


def prose(path):
    """A document without code, links' targets and the markers of the README."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("path", named(DOCUMENTS))
def test_acronyms_are_spelled_out_at_first_use(path):
    text = prose(path)
    for acronym, name in ACRONYMS.items():
        if found := re.search(rf"\b{acronym}\b", text):
            # Before it ("full-thinking training (FTT)") or right after it ("FTT, full-...").
            around = text[: found.end() + len(name) + 20].lower()
            assert name in around, f"{path.relative_to(ROOT)}: {acronym} before {name!r}"
