"""Shared by the tests of the documents: which there are, their examples and their commands."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "csrc/*.md")
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
    code = re.sub(r"RunConfig\((?=\n)", "RunConfig(eval=cwt.EvalConfig(max_new_tokens=20),", code)
    return re.sub(r"(generate_examples\(\S+ )\[[\d, ]+\]", shrunk_sizes, code)


def shrunk_sizes(match):
    return match[1] + str([8] * len(re.findall(r"\d+", match[0].split("[")[1])))


def indented(text):
    """Yields the lines of shell in a text without fences, continued lines joined."""
    current = ""
    for line in text.splitlines():
        if re.match(r" {6,}\S", line) and current:
            current = current.rstrip("\\ ") + " " + line.strip()
            continue
        if current:
            yield current
        current = line.strip() if re.match(r" {4}\S", line) else ""
    if current:
        yield current


def shown_commands(path):
    """Yields the words of every `cwt` command on a line of its own, in a document."""
    for line in indented(FENCE.sub("", path.read_text(encoding="utf-8"))):
        for part in line.split("#")[0].split("&&"):
            if part.strip().startswith("cwt "):
                yield shlex.split(part)[1:]


def commands(path):
    """Yields the words of every `cwt` command in a document, in running text first."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        if span.startswith("cwt ") and "COMMAND" not in span:
            yield shlex.split(span)[1:]
    yield from shown_commands(path)
