"""The supervision report: every token of a row in one part, and the loss of each part."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from app_fixtures import examples, tiny
from cwt.students import supervision as module
from cwt.students.chat import PromptStyle
from cwt.students.supervision import PARTS, supervision, supervision_lines, written_parts
from cwt.students.tokenized import PromptTokenizer, whole_sequence
from test_families import family


def thinking(example):
    first, *middle, last = example.units
    return replace(example, units=("<think>" + first, *middle, "</think>" + last))


def test_every_token_is_in_one_part_and_texts_are_those_of_the_parts():
    student = tiny()
    example = thinking(examples(1)[0])
    tokenized = student.tokenize(example)
    parts = written_parts(tokenized)
    ids = [i for unit in tokenized.units for i in unit]
    texts = {p: student.text([i for i, q in zip(ids, parts, strict=True) if q == p]) for p in PARTS}
    assert texts["markers"] == "<think></think>"
    assert texts["rationale"] == "".join(example.units[:-1]).removeprefix("<think>")
    assert texts["answer"] == example.units[-1].removeprefix("</think>")
    assert [i for i, p in zip(ids, parts, strict=True) if p == "end"] == [student.tokenizer.eos]


def test_shares_are_those_of_the_plain_loss(monkeypatch):
    student = tiny()
    items = [student.tokenize(thinking(e)) for e in examples(5)]
    rows = [whole_sequence(x) for x in items]
    monkeypatch.setattr(module, "_MEASURED", sum(len(r.ids) for r in rows[:3]))
    found = supervision(student, items)
    assert found["measured_rows"] == 3
    assert list(found["parts"]) == list(PARTS)
    tokens = {part: figures["tokens"] for part, figures in found["parts"].items()}
    assert sum(tokens.values()) == sum(len(row.ids) for row in rows)
    assert tokens["end"] == 5
    assert tokens["template"] == 5  # the line feed after each question
    bearing = sum(row.loss_tokens for row in rows)
    nll = dict.fromkeys(PARTS, 0.0)
    for item, row in zip(items[:3], rows, strict=False):
        with torch.no_grad():
            logits = student.model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        values = F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
        for part, value in zip(written_parts(item), values[row.prompt - 1 :].tolist(), strict=True):
            nll[part] += value
    for part, figures in found["parts"].items():
        written = part not in ("question", "template")
        assert figures["token_share"] == (tokens[part] / bearing if written else 0)
        assert figures["loss_share"] == pytest.approx(nll[part] / sum(nll.values()), rel=1e-4)
    told = supervision_lines(found)
    assert "of the loss (3 rows)" in told[0]
    assert [line.split()[0] for line in told[1:]] == list(PARTS)
    assert f"{found['parts']['answer']['loss_share']:.1%}" in told[5]


def test_rows_too_long_to_measure_are_counted_alone(monkeypatch):
    monkeypatch.setattr(module, "_MEASURED", 5)
    student = tiny()
    found = supervision(student, [student.tokenize(e) for e in examples(2)])
    assert found["measured_rows"] == 0
    assert {figures["loss_share"] for figures in found["parts"].values()} == {None}
    assert found["parts"]["rationale"]["tokens"] > 0
    assert "not measured" in supervision_lines(found)[1]


def test_rows_beyond_the_positions_are_not_measured():
    student = tiny()
    items = [student.tokenize(e) for e in examples(6)]
    lengths = [len(whole_sequence(x).ids) for x in items]
    limit = sorted(lengths)[3]
    found = supervision(student, items, limit)
    fit = [x for x, n in zip(items, lengths, strict=True) if n <= limit]
    assert found["measured_rows"] == len(fit) < 6
    alone = supervision(student, fit)
    for part, figures in found["parts"].items():
        wanted = alone["parts"][part]["loss_share"]
        assert figures["loss_share"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("template", ["{question}\n", "Q: {question} Think.\nA:", "{question}"])
def test_template_tokens_are_those_outside_the_question(template):
    prompts = PromptTokenizer(tiny().tokenizer.tokenizer, PromptStyle(template))
    before, after = template.split("{question}")
    for question in ("How many apples are left?", "a <|endoftext|> b", "Sum 3 and 4."):
        outside = len(prompts.ids(before)) + len(prompts.ids(after))
        assert prompts.template_tokens(question) == outside


def test_the_encoders_end_is_of_the_template():
    student = family("t5")
    question = examples(1)[0].question
    extra = len(student.prompt(question)) - len(student.ids(question))
    assert student.tokenizer.template_tokens(question) == extra > 0
