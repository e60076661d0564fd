"""Rows read in pieces, with what they share read once, against passes over whole rows."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.skipping import search
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.students import prefix_cache
from cwt.students.causal import CausalStudent
from cwt.students.prefix_cache import Reading, cannot_share, read, reading_after, shared_tokens
from cwt.students.tokenized import whole_sequence
from test_families import FAMILIES, family
from test_whole_text import KINDS, traces
from test_whole_text import student as with_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

WINDOW = 16  # tokens that a layer sees, where a family has such layers
WINDOWS = {
    "gemma2": {},
    "gemma3_text": {"sliding_window_pattern": 2},
    "mistral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}
SHAPES = [*FAMILIES, *(f"{name}, window" for name in WINDOWS)]


def shaped(name, monkeypatch):
    """A small random student in float64, some with a window shorter than every row."""
    name, _, window = name.partition(", ")
    if window:
        options = {**FAMILIES[name], **WINDOWS[name], "sliding_window": WINDOW}
        monkeypatch.setitem(FAMILIES, name, options)
    student = family(name)
    for weight in student.model.parameters():  # 0.4 saturates
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    student.model.double().eval()
    return student


def rows_of(student, n=3, tokens=150):
    some = [whole_sequence(student.tokenize(e)).ids for e in examples(2 * n)]
    return [(a + b)[: tokens - 20 * i] for i, (a, b) in enumerate(zip(some[::2], some[1::2], strict=True))]


def whole(student, ids):
    """{place: (is the arg-max, p)} of every token but the first, in one pass over one row."""
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    table = logits[:-1].softmax(-1)
    return {
        t: (int(logits[t - 1].argmax()) == ids[t], float(table[t - 1, ids[t]]))
        for t in range(1, len(ids))
    }


def check(row, wanted):
    assert row.finished
    assert len(row.scores) == len(row.wanted) > 0
    for place, (right, p) in zip(row.wanted, row.scores, strict=True):
        assert p == pytest.approx(wanted[place][1], rel=1e-6, abs=1e-12), place
        assert right == wanted[place][0]


@pytest.mark.parametrize("name", SHAPES)
def test_pieces_give_what_a_whole_pass_gives(name, monkeypatch):
    student = shaped(name, monkeypatch)
    rows = rows_of(student)
    tables = [whole(student, ids) for ids in rows]
    read_rows = [Reading(ids, range(1, len(ids))) for ids in rows]
    while left := [row for row in read_rows if not row.finished]:
        read(student, left, 32)  # of three lengths: they end after each other
    for row, table in zip(read_rows, tables, strict=True):
        check(row, table)
        assert row.done == row.spent == len(row.ids) - 1
    # Rows that leave something out, each at another place, read on side by side.
    rng, others = random.Random(0), []
    for row, at in zip(read_rows, (20, 70, 45), strict=True):
        ids = [*row.ids[:at], *row.ids[at + 9 :]]
        asked = sorted(rng.sample(range(at + 1, len(ids)), 12))
        others.append(reading_after(ids, asked, row))
        assert others[-1].done == at
    while left := [row for row in others if not row.finished]:
        read(student, left, 25)
    for row in others:
        check(row, whole(student, row.ids))
        assert row.spent == row.wanted[-1] - row.done + row.spent  # TODO
