"""Shared by the tests of the application: the embedded student and a few examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cwt.data.example import Example

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.realdata(DATA)


def tiny():
    from cwt.students.load import load_student

    return load_student("tiny")


def examples(n: int, task: str = "arithmetic", chunks: int = 4) -> list[Example]:
    """Generated examples, evenly divided into chunks."""
    from cwt.data.tasks import generate_examples
    from cwt.training.chunking import average_chunks

    return [
        e.chunked([*average_chunks(len(e.units) - 1, chunks), len(e.units)])
        for e in generate_examples(task, [n], seed=1)[0]
    ]


def squeezed(text: str) -> str:
    """A text with every stretch of white space as one space, so that padding of tables is none."""
    return " ".join(text.split())
