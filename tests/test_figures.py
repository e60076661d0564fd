"""The pictures of the documents: drawn from reports and tables, for light and for dark pages."""

import dataclasses
import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from documents import ROOT, named


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures():
    return script("figures")


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


def test_the_figures_of_the_benchmarks_are_those_of_their_tables():
    """Where this fails: python docs/figures_of_benchmarks.py."""
    drawn = script("figures_of_benchmarks")
    text = drawn.SOURCE.read_text(encoding="utf-8")
    for name, figure in drawn.FIGURES.items():
        svg = (ROOT / f"docs/figures/{name}.svg").read_text(encoding="utf-8")
        assert svg == drawn.draw(figure, text), name
        assert f"figures/{name}.svg" in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")


def test_a_bar_is_as_long_as_its_number_and_a_table_that_changed_is_noticed():
    drawn = script("figures_of_benchmarks")
    page = "| who | ms |\n|-|-|\n| ours | **2.5** (1) |\n| theirs | 10 |\n\n| other |\n|-|\n| 1 |\n"
    bars = {("theirs",): "theirs", ("ours",): "cwt_ext"}
    figure = drawn.Figure("Time", ("who",), "ms", bars, " ms", ("base", 5.0))
    assert drawn.lengths(figure, page) == {"base": 5.0, "theirs": 10.0, "cwt_ext": 2.5}
    svg = ElementTree.fromstring(drawn.draw(figure, page))
    rows = svg.findall("{http://www.w3.org/2000/svg}rect")[1:]
    widths = [float(bar.get("width")) for bar in rows]
    assert widths == pytest.approx([widths[1] / 2, widths[1], widths[1] / 4], abs=0.1)
    assert [bar.get("class") for bar in rows] == ["other", "other", "ours"]
    for wrong, message in (
        ({"table": ("nobody",)}, "found 0"),
        ({"column": "s"}, "wanted a column 's'"),
        ({"bars": {("someone",): "x"}}, "wanted one row"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn.lengths(dataclasses.replace(figure, **wrong), page)


@pytest.mark.parametrize("path", named(sorted((ROOT / "docs/figures").glob("*.svg"))))
def test_pictures_have_colours_for_light_and_dark(path):
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert "<title" in text
