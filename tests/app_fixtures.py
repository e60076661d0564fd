"""Shared by the tests of the application: the embedded student and a few examples."""

from pathlib import Path

import pytest
from cwt.chunking import average_chunks
from cwt.data import Example, generate
from cwt.encode import Encoded, Encoder
from cwt.students import load_student

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the real rationales are not there ({DATA})"
)


def tiny():
    model, tokenizer = load_student("tiny")
    return model, Encoder(tokenizer)


def examples(n: int, task: str = "arithmetic") -> list[Example]:
    return generate(task, [n], seed=1)[0]


def encode(encoder: Encoder, some: list[Example], chunks: int = 4) -> list[Encoded]:
    return [
        encoder.encode(e, [*average_chunks(len(e.units) - 1, chunks), len(e.units)]) for e in some
    ]
