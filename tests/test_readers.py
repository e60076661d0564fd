"""Every format of a row is read, and what is no row is listed with its reason."""

import json
import re

import pytest
from cwt.data import readers
from cwt.data.readers import read_examples
from cwt.data.readers.raw import Unusable, as_answer, as_text
from cwt.data.readers.think import without_marks
from cwt.errors import UserError
from reader_rows import BODY, SUM, THINK, THOUGHT, UNITS, dropped, one, put

# Every format of a row: what the file holds, the question, the units.
FORMATS = {
    "alpaca": ({"instruction": "Q", "input": "with this", "output": SUM}, "Q\nwith this", UNITS),
    "alpaca without input": ({"instruction": "Q", "input": "", "output": SUM}, "Q", UNITS),
    "alpaca with gold": ({"instruction": "Q", "output": BODY, "answer": 6.0}, "Q", UNITS),
    "prompt": ({"prompt": "Q", "completion": SUM}, "Q", UNITS),
    "prompt of turns": (
        {
            "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
            "completion": [{"role": "assistant", "content": SUM}],
        },
        "Q",
        UNITS,
    ),
    "verl": ({"prompt": [{"role": "user", "content": "Q"}], "completion": SUM}, "Q", UNITS),
    "messages": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": SUM}]},
        "Q",
        UNITS,
    ),
    "messages of parts, with reasoning": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {
                    "role": "assistant",
                    "reasoning_content": "There are 3 of 2.\nThat makes 3 * 2 = 6.",
                    "content": "The answer is 6",
                },
            ]
        },
        "Q",
        THOUGHT,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": SUM}]},
        "Q",
        UNITS,
    ),
    "gsm8k": (
        {"question": "Q", "answer": "3 of 2.\nThat makes 3 * 2 = <<3*2=6>>6.\n#### 6"},
        "Q",
        ("3 of 2.", "\nThat makes 3 * 2 = 6.", "\nThe answer is 6"),
    ),
    "alpaca of gsm8k": (
        {"instruction": "Q", "output": "3 of 2.\nThat makes 3 * 2 = <<3*2=6>>6.\n\n#### 6\n"},
        "Q",
        ("3 of 2.", "\nThat makes 3 * 2 = 6.", "\nThe answer is 6"),
    ),
    "columns": ({"question": "Q", "rationale": BODY, "answer": "6"}, "Q", UNITS),
    "problem, solution": (
        {"problem": "Q", "solution": "There are 3 of 2. So it is \\boxed{6}."},
        "Q",
        ("There are 3 of 2.", " So it is \\boxed{6}."),
    ),
    "prompt, thinking, response": (
        {
            "prompt": "Q",
            "thinking": "There are 3 of 2.\nThat makes 3 * 2 = 6.",
            "response": "The answer is 6",
        },
        "Q",
        THOUGHT,
    ),
    "reasoning, bare response": ({"query": "Q", "reasoning": BODY, "response": "6"}, "Q", UNITS),
    "camel case": ({"Question": "Q", "chainOfThought": BODY, "Final Answer": 6}, "Q", UNITS),
    "another's solution": (
        {"problem": "Q", "cot": SUM, "solution": "Three twos: \\boxed{6}.", "answer": "6"},
        "Q",
        UNITS,
    ),
    "solution after a thought": (
        {
            "problem": "Q",
            "reasoning": "There are 3 of 2.\nThat makes 3 * 2 = 6.",
            "solution": "The answer is 6",
            "answer": "6",
        },
        "Q",
        THOUGHT,
    ),
    "messages without the reply": (
        {"messages": [{"role": "user", "content": "Solve Q."}], "problem": "Q", "cot": SUM},
        "Q",
        UNITS,
    ),
    "answer is the argument": ({"question": "Q", "answer": SUM}, "Q", UNITS),
    "list of steps": (
        {"question": "Q", "steps": ["There are 3 of 2.", "That makes 3 * 2 = 6."], "answer": "6"},
        "Q",
        ("There are 3 of 2.", "\nThat makes 3 * 2 = 6.", "\nThe answer is 6"),
    ),
    "thought": ({"instruction": "Q", "output": THINK}, "Q", THOUGHT),
    "body": ({"Body": "B.", "Question": "Q", "cot": SUM, "Answer": 6.0}, "B. Q", UNITS),
    "options": (
        {"question": "Q", "options": ["A)1", "B)6"], "rationale": SUM, "answer": "6"},
        "Q\nAnswer choices: A)1, B)6",
        UNITS,
    ),
    "choices of labels": (
        {
            "question": "Q",
            "choices": {"label": ["A", "B"], "text": ["one", "six"]},
            "rationale": SUM,
        },
        "Q\nAnswer choices: (A) one, (B) six",
        UNITS,
    ),
    "fine-tune-cot": (
        {
            "question": "Q",
            "answer": "6.0",
            "reasoning_completion": " \n\nThere are 3 of 2.\nThat makes 3 * 2 = 6.",
            "completion": " 6 pieces.",
            "reasoning_finish_reason": "stop",
        },
        "Q",
        ("There are 3 of 2.", "\nThat makes 3 * 2 = 6.", "\nTherefore, the answer is 6 pieces."),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    row, question, units = FORMATS[name]
    (example,) = one(tmp_path, row)
    assert (example.question, example.units) == (question, units)
    assert example.answer in ("6", "6.0")


def test_named_columns(tmp_path):
    row = {"frage": "Q", "weg": BODY, "ergebnis": "6", "answer": "not this"}
    names = {"question": "frage", "rationale": "weg", "answer": "ergebnis"}
    (example,) = one(tmp_path, row, columns=names)
    assert (example.question, example.units, example.answer) == ("Q", UNITS, "6")
    (example,) = one(tmp_path, row, columns={**names, "rationale": "absent"}, rationales=False)
    assert (example.units, example.answer) == ((), "6")
    gsm8k = {"frage": "Q", "loesung": "There are 3 of 2.\nThat makes <<3*2=6>>6.\n#### 6"}
    (example,) = one(tmp_path, gsm8k, columns={"question": "frage", "answer": "loesung"})
    assert (example.units[-1], example.answer) == ("\nThe answer is 6", "6")
    with pytest.raises(UserError, match="no column 'ergebniss'"):
        one(tmp_path, row, columns={**names, "answer": "ergebniss"})
    with pytest.raises(UserError, match=r"no column 'fragen'.*got the columns frage, weg"):
        one(tmp_path, row, columns={**names, "question": "fragen"})
    with pytest.raises(UserError, match=r"wanted question=NAME with rationale=NAME.*got fragw=x"):
        one(tmp_path, row, columns={"fragw": "x"})


def test_several_samples_of_a_question(tmp_path):
    other = "Another way. " + SUM
    rows = [
        {"id": "a", "instruction": "Q?", "output": [SUM, other]},
        {"id": "a", "instruction": " q? ", "output": SUM},  # the first one again
        {"id": "a", "instruction": "q  ?", "output": SUM},  # another question
    ]
    found = read_examples(put(tmp_path / "f.json", json.dumps(rows)))
    assert [(e.id, e.rationale) for e in found.examples] == [
        ("a-1", SUM),
        ("a-2", other),
        ("a", SUM),
    ]
    assert found.reasons == {"repeated question with the same rationale": 1}


def test_ids_are_unique(tmp_path):
    ids = [None, "a", "a", True, 5, "5", "f-1", "", float("nan"), "\ud800"]
    rows = [
        {"id": i, "question": f"Q{n}", "rationale": SUM, "answer": "6"} for n, i in enumerate(ids)
    ]
    found = read_examples(put(tmp_path / "f.json", json.dumps(rows)))
    names = "f-1 a a-2 f-4 5 5-2 f-1-2 f-8 f-9 f-10".split()
    assert [e.id for e in found.examples] == names


def test_questions_only(tmp_path):
    rows = [
        {"id": 5, "question": "Q", "answer": "1"},
        {"question": "q", "answer": "1.0"},
        {"question": "Q ", "answer": "2"},
        {"question": "G", "answer": "1 + 1 = 2\n#### 2"},
        {"instruction": "I", "output": "", "label": False},
        {"instruction": "J", "output": "", "label": "False"},
        {"question": "K", "answer": "\\boxed{7}", "label": "8"},
        {"question": "R", "answer": " ", "label": "8"},
        {"instruction": "L", "input": "", "output": "Oslo"},
        {"input": [{"role": "user", "content": "M"}], "ideal": ["x"]},
        {"input": [{"role": "user", "content": "N"}], "ideal": ["x", "y"]},
        {"question": "O", "answer": "A long text that argues and states nothing. " * 9},
        {"question": "P", "reasoning": "<think>cut off", "answer": "8"},
    ]
    path = put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_examples(path, rationales=False)
    assert {(e.question, e.answer, e.units) for e in found.examples} == {
        ("Q", "1", ()),
        ("G", "2", ()),
        ("I", "no", ()),
        ("J", "False", ()),
        ("K", "7", ()),
        ("R", "8", ()),
        ("L", "Oslo", ()),
        ("M", "x", ()),
        ("P", "8", ()),
    }
    assert found.examples[0].id == "5"
    assert found.reasons == {
        "repeated question": 1,
        "repeated question with another answer": 1,
        "several gold answers": 1,
        "no answer": 1,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Q", "rationale": None, "answer": "5"}, "no rationale"),
        ({"question": "Q", "rationale": "nan", "answer": "5"}, "no rationale"),
        ({"question": None, "rationale": SUM, "answer": "6"}, "no question"),
        ({"question": "Q", "rationale": BODY, "answer": None}, "no answer"),
        (
            {"question": "Q", "rationale": SUM, "answer": "7"},
            "rationale contradicts the gold answer",
        ),
        ({"question": "Q", "rationale": True, "answer": "6"}, "rationale is a boolean, not text"),
        ({"question": "Q", "rationale": {}, "answer": "6"}, "rationale is an object, not text"),
        (
            {"question": "Q", "rationale": [["a"], ["b"]], "answer": "6"},
            "rationale is a list of other things than text",
        ),
        ({"question": ["Q"], "rationale": SUM}, "question is a list, not text"),
        ({"question": "Q", "rationale": SUM, "answer": ["6", "7"]}, "several gold answers"),
        ({"question": "Q \ud83d", "rationale": SUM}, "question is not valid Unicode"),
        ({"question": "Q", "rationale": "The answer is 6", "answer": "6"}, "rationale of one unit"),
        (
            {"question": "Q", "rationale": BODY, "answer": "a\nb"},
            "answer cannot be told from a sentence",
        ),
        ({"instruction": "Q", "output": "<think>a. b"}, "a thought without an end"),
        ({"prompt": "Q", "completion": SUM, "label": False}, "a completion with the label false"),
        ({"text": "x"}, "columns not understood"),
        (5, "not an object"),
        ({"messages": [{"role": "assistant", "content": SUM}]}, "no question"),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "tool", "content": "x"}]},
            "a conversation with a turn of another kind",
        ),
        (
            {"messages": [{"role": "user", "content": "Q"}] * 2},
            "a conversation of several questions",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a conversation with something other than text",
        ),
        (
            {
                "question": "Q",
                "answer": "6",
                "reasoning_completion": "There are",
                "completion": "6",
                "reasoning_finish_reason": "length",
            },
            "rationale was cut off",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_listed(tmp_path, row, reason):
    assert dropped(tmp_path, row) == [reason]
    with pytest.raises(UserError, match=rf"f.jsonl, line 2: {re.escape(reason)}"):
        dropped(tmp_path, row, strict=True)


def test_a_splitter_that_gives_up_is_listed(tmp_path, monkeypatch):
    real = readers.read.split_units

    def split(text, unit):
        if "[1]" in text:
            raise UserError("over the bound of time")
        return real(text, unit)

    monkeypatch.setattr(readers.read, "split_units", split)
    row = {"question": "Q", "rationale": "See [1]. " + SUM, "answer": "6"}
    assert dropped(tmp_path, row) == ["not divided into units"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(" a ", "a"), (None, ""), ("None", ""), ("none", "none"), (51.0, "51"), (0.5, "0.5"), (7, "7"),
     (float("nan"), ""), (1e22, "1" + 22 * "0")],
)  # fmt: skip
def test_as_text(value, text):
    assert as_text(value, "x") == text


def test_as_answer():
    values = [True, False, ["a"], [], [True], 0]
    assert [as_answer(v) for v in values] == ["yes", "no", "a", None, "yes", "0"]
    with pytest.raises(Unusable, match="x is inf"):
        as_text(float("inf"), "x")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<think>\na\n</think>\n\nThe answer is 1", "a\n\nThe answer is 1"),
        ("a\n</think>\nThe answer is 1", "a\n\nThe answer is 1"),
        ("<think></think>\nThe answer is 1", "The answer is 1"),
        ("<reasoning>a</reasoning><answer>1</answer>", "a\n\nThe answer is 1"),
        (
            "<answer>no</answer> a <answer>\nThe answer is 1\n</answer> b",
            "<answer>no</answer> a The answer is 1 b",
        ),
        ("a <answer> b",) * 2,
        (
            "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>The answer is 1"
            "<|end_of_solution|>",
            "a\n\nThe answer is 1",
        ),
        ("The tag <think> opens. The tag </think> closes.",) * 2,
        ("a <eos> b",) * 2,
    ],
)
def test_marks_are_structure(text, plain):
    assert without_marks(text) == plain
