"""`--thinking keep|wrap|strip`: markers are structure; what is inside a thought is no answer."""

import json

import pytest
from app_fixtures import tiny
from cwt.cli import main
from cwt.config import DataConfig
from cwt.data.answers.statement import opened_thought
from cwt.data.example import Example, load_examples
from cwt.data.readers import read_examples
from cwt.data.readers.think import with_marks, wrapped
from cwt.errors import UserError
from cwt.evaluation.generation import grade
from cwt.skipping.controls import random_skips
from cwt.students.causal import CausalStudent
from cwt.students.tokenized import PromptTokenizer

THOUGHT = "Two and two. The answer is 5? No, it is 4."
MARKED = f"<think>\n{THOUGHT}\n</think>\n\nThat makes 4. The answer is 4"
BARE = "Two and two. That makes 4. The answer is 4"


def read(tmp_path, thinking, *texts):
    path = tmp_path / "t.json"
    rows = [{"question": f"Q{i}?", "rationale": t, "answer": "4"} for i, t in enumerate(texts)]
    path.write_text(json.dumps(rows))
    return read_examples(path, thinking=thinking)


def test_what_becomes_of_the_markers(tmp_path):
    found = {t: read(tmp_path, t, MARKED, BARE).examples for t in ("strip", "keep", "wrap")}
    texts = {t: [e.rationale for e in examples] for t, examples in found.items()}
    assert texts["strip"] == [f"{THOUGHT}\n\nThat makes 4. The answer is 4", BARE]
    assert texts["keep"] == [MARKED, BARE]
    assert texts["wrap"] == [
        MARKED, "<think>\nTwo and two. That makes 4.\n</think>\n\nThe answer is 4"
    ]  # fmt: skip
    assert {e.answer for examples in found.values() for e in examples} == {"4"}


@pytest.mark.parametrize("thinking", ["keep", "wrap"])
def test_markers_stand_where_nothing_is_left_out(thinking, tmp_path):
    marked = [
        e for e in read(tmp_path, thinking, MARKED, BARE).examples if "<think>" in e.rationale
    ]
    assert len(marked) == (1 if thinking == "keep" else 2)
    for seed in range(5):
        for e in random_skips(marked, seed, [1] * len(marked)):
            left = "".join(e.units[u] for u in sorted(e.kept))
            assert left.count("<think>") == left.count("</think>") == 1
    for e in marked:
        assert e.units[0].startswith("<think>\n")
        assert "</think>" in e.units[-1]
        assert not any("think>" in e.units[u] for u in e.middle_units)


def test_the_answer_is_read_after_the_last_closing_marker(tmp_path):
    inside = "<think>\nTwo and two. So the answer is 4.\n</think>\n\nI am done now."
    (plain,) = read(tmp_path, "strip", inside).examples
    assert plain.units[-1] == " So the answer is 4.\n\nI am done now."
    for thinking in ("keep", "wrap"):
        (example,) = read(tmp_path, thinking, inside).examples
        assert example.units[-1] == "\n</think>\n\nI am done now.\nThe answer is 4"  # appended
    wrong = "<think>\nSo the answer is 4.\n</think>\n\nIt is late. The answer is 5"
    with pytest.raises(UserError, match="contradicts the gold answer"):
        read(tmp_path, "keep", wrong)
    for thinking in ("strip", "keep", "wrap"):
        with pytest.raises(UserError, match="a thought without an end"):
            read(tmp_path, thinking, "<think>\nTwo. The answer is 4")


def test_other_marks_are_kept_as_they_are_and_one_is_completed():
    assert with_marks("<reasoning>a</reasoning><answer>1</answer>") == (
        "<reasoning>\na\n</reasoning>\n\nThe answer is 1"
    )
    assert with_marks("a\n</think>\nThe answer is 1") == "<think>\na\n</think>\n\nThe answer is 1"
    assert wrapped(MARKED) == MARKED


R1 = "{question}<eos><think>\n"


def prompts():
    return PromptTokenizer(tiny().tokenizer.tokenizer, R1)


def test_a_thought_that_the_prompt_opens_is_not_opened_again(tmp_path):
    (example,) = read(tmp_path, "keep", MARKED).examples
    item = prompts().tokenize(example)
    text = prompts().text(sum(item.units, ()))
    assert text == MARKED.removeprefix("<think>\n")
    last = len(example.units) - 1
    shorter = item.keeping(frozenset({0, last}))
    left = (example.units[0] + example.units[last]).removeprefix("<think>\n")
    assert prompts().text(shorter.written.ids) == left
    with pytest.raises(UserError, match="opens a thought and the rationale closes none"):
        prompts().tokenize(Example("a", "Q?", ("One.", " The answer is 4"), "4"))


def test_an_unfinished_thought_has_no_answer():
    student, question = CausalStudent(tiny().model, prompts()), Example("a", "Q?", (), "4")
    plain = tiny()

    def graded(own, text):
        return grade(own, question, [*own.ids(text), own.tokenizer.eos])

    closed = graded(student, "Two and two.\n</think>\n\nThe answer is 4")
    assert (closed.answer, closed.correct, closed.well_formed) == ("4", True, True)
    opened = graded(student, "Two and two. The answer is 4")
    assert (opened.answer, opened.correct, opened.well_formed) == (None, False, False)
    assert graded(plain, "Two and two. The answer is 4").correct
    assert graded(plain, "<think>\nTwo. The answer is 4").answer is None
    assert graded(plain, "<think>\nThe answer is 5\n</think>\n\nThe answer is 4").correct
    assert opened_thought("Why <think> so?") == ""


def test_thinking_of_a_run(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "rationale": f"We add. {i} + 1 = {i + 1}. The answer "
             f"is {i + 1}", "answer": str(i + 1)} for i in range(40)]  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(rows))
    out = tmp_path / "run"
    main(["data", "--data", str(tmp_path / "t.json"), "--thinking", "wrap", "--out", str(out)])
    found = load_examples(out / "data/train.jsonl")
    assert found
    assert all(e.rationale.startswith("<think>\nWe add.") for e in found)
    assert all(e.units[-1].lstrip().startswith("</think>") for e in found)
    with pytest.raises(UserError, match="--thinking wrap needs --data"):
        DataConfig(thinking="wrap")
