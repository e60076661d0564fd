"""The documents: links resolve, examples run, commands parse, acronyms are spelled out."""

import dataclasses
import importlib.util
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
    if not path.name.startswith(".")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(paths):
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def blocks(path, language):
    return [
        code for found, code in FENCE.findall(path.read_text(encoding="utf-8")) if found == language
    ]


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

SMALL = {
    "budget": 300,
    "train_size": 6,
    "validation_size": 2,
    "test_size": 2,
}


def shrunk(code):
    """The code with budgets and sizes that take seconds; everything else as it stands."""
    for name, value in SMALL.items():
        code = re.sub(rf"\b{name}=[\d_]+", f"{name}={value}", code)
    return re.sub(r"(generate_examples\(\S+ )\[[\d, ]+\]", shrunk_sizes, code)


def shrunk_sizes(match):
    return match[1] + str([4] * len(re.findall(r"\d+", match[0].split("[")[1])))


def test_examples_are_shrunk_where_it_takes_time():
    code = 'cwt.generate_examples("coin", [600, 100], seed=0); Recipe(budget=400_000, batch_size=2)'
    assert shrunk(code) == (
        'cwt.generate_examples("coin", [4, 4], seed=0); Recipe(budget=300, batch_size=2)'
    )


# Its examples need an exported file; tests/test_export.py makes one and runs them on it.
ELSEWHERE = {"exporting.md"}


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


def lines_of_code(path):
    """Yields the lines of shell that a document shows, continued lines joined."""
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))
    yield from (span for span in spans if span.startswith("cwt ") and "COMMAND" not in span)
    current = ""
    for line in FENCE.sub("", text).splitlines():
        if re.match(r" {6,}\S", line) and current:
            current = current.rstrip("\\ ") + " " + line.strip()
            continue
        if current:
            yield current
        current = line.strip() if re.match(r" {4}\S", line) else ""
    if current:
        yield current


def commands(path):
    """Yields the words of every `cwt` command in a document."""
    for line in lines_of_code(path):
        for part in line.split("#")[0].split("&&"):
            words = shlex.split(part)
            if words[:1] == ["cwt"] and len(words) > 1:
                yield words[1:]


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


def test_every_command_is_described():
    from cwt.cli import COMMANDS

    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`cwt {name}" not in text and name != "run"] == []


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


# Figures


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_report(figures):
    rows = [
        {
            "name": name,
            "accuracy": 0.9 + i / 100,
            "accuracy_interval": [0.85 + i / 100, 0.93 + i / 100],
            "generated_tokens": 120.0 - 20 * i,
            "latency_seconds": None if i else 0.0312,
            "skipped_share": 0.571 if name == "STT" else None,
            "loss_tokens": 400_000 + i,
            "total_loss_tokens": 720_000 + i,
            "total_processed_tokens": 1_500_000 + i,
        }
        for i, name in enumerate(figures.MAIN_ROWS)
    ]
    config = {"student": "tiny", "seed": 3}
    config |= {"data": {"task": "coin", "file": ""}, "train": {"parent": "FTT-small-batch"}}
    return {"config": config, "data": {"test": 250}, "methods": rows}


def test_the_table_has_every_row_as_reported(figures):
    text, _, table = figures.table(a_report(figures)).partition("\n\n")
    text, lines = " ".join(text.split()), table.splitlines()
    assert text.startswith("STT answers 93.0 % of 250 held-out coin questions right and writes 60 ")
    assert "STT needs 60 % of them" in text  # 60 of 100 tokens
    assert lines[2] == "| FTT | 90.0 | 85.0-93.0 | 120.0 | 31 | - | 720,000 | 1,500,000 | 400,000 |"
    assert (
        lines[5] == "| STT | 93.0 | 88.0-96.0 | 60.0 | - | 57.1 | 720,003 | 1,500,003 | 400,003 |"
    )


def test_the_table_replaces_what_is_between_the_markers_and_nothing_else(figures):
    page = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    once = figures.with_table(page, a_report(figures))
    assert once.startswith(f"before\n{figures.BEGIN}\nSTT")
    assert once.endswith(f"{figures.END}\nafter\n")
    assert "old" not in once
    assert figures.with_table(once, a_report(figures)) == once
    for bad in ("no markers", figures.BEGIN, page + page, f"{figures.END}{figures.BEGIN}"):
        with pytest.raises(ValueError, match="wanted the markers"):
            figures.with_table(bad, a_report(figures))


def test_the_figure_puts_each_point_where_its_figures_are(figures):
    report = a_report(figures)
    svg = ElementTree.fromstring(figures.figure(report))
    space = "{http://www.w3.org/2000/svg}"
    points = [
        (float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{space}circle")
    ]  # one a row, in the order of the rows
    rows = report["methods"]
    assert len(points) == len(rows)
    xs, ys = zip(*points, strict=True)
    for a, b in ((0, 1), (1, 3)):  # distances on the page are distances in tokens and in points
        tokens = rows[a]["generated_tokens"] - rows[b]["generated_tokens"]
        points_of = rows[a]["accuracy"] - rows[b]["accuracy"]
        assert (xs[a] - xs[b]) / tokens == pytest.approx((xs[0] - xs[3]) / 60, abs=0.01)
        assert (ys[a] - ys[b]) / points_of == pytest.approx((ys[0] - ys[3]) / -0.03, rel=0.02)
    texts = [t.text for t in svg.iter(f"{space}text")]
    assert "STT: 93.0 %, 60 tokens" in texts
    del report["methods"][0]
    with pytest.raises(ValueError, match=r"\['FTT'\] are not there"):
        figures.figure(report)


def test_the_readme_shows_what_the_script_writes(figures):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(figures.BEGIN)[1].split(figures.END)[0]
    assert "| " + " | ".join(figures.COLUMNS) + " |" in block
    for name in figures.MAIN_ROWS:
        row = re.search(rf"^\| {name} \| ([\d.]+) \| \S+ \| ([\d.]+) ", block, re.MULTILINE)
        label = f"{name}: {row[1]} %, {float(row[2]):.0f} tokens"
        assert label in (ROOT / "docs/figures/demo.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", named(sorted((ROOT / "docs/figures").glob("*.svg"))))
def test_pictures_have_colours_for_light_and_dark(path):
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert "<title" in text
