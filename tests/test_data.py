import json

import pytest
from app_fixtures import DATA, examples, needs_data
from cwt.data.example import load_examples, write_examples
from cwt.data.readers import read_examples
from cwt.errors import UserError


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_alpaca_gsm8k_and_plain_rows(tmp_path):
    alpaca = put(tmp_path / "a.json", json.dumps([
        {"instruction": "Q1", "output": " It is 2. The answer is 2"},
        {"instruction": "Q2", "input": "with this", "output": "Yes. The answer is 4."},
        {"instruction": "Q3", "output": "I do not know"},
        {"instruction": "Q1", "output": "Again. The answer is 2"},
    ]))  # fmt: skip
    found = read_examples(alpaca)
    assert [(e.question, e.answer) for e in found.examples] == [("Q1", "2"), ("Q2\nwith this", "4")]
    assert found.examples[0].units == ("It is 2.", " The answer is 2")
    assert found.dropped == {"no answer": 1, "repeated question": 1}
    rows = [
        {"question": "G", "answer": "3 + 4 = <<3+4=7>>7\nSo.\n#### 7"},
        {"question": "P", "rationale": "Add.", "answer": "9", "id": "p"},
    ]
    plain = put(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    gsm, other = read_examples(plain).examples
    assert (gsm.rationale, gsm.answer) == ("3 + 4 = 7\nSo.\nThe answer is 7", "7")
    assert (other.id, other.units) == ("p", ("Add.", " The answer is 9"))


def test_questions_only(tmp_path):
    path = put(tmp_path / "t.jsonl", '{"id": 5, "question": "Q", "answer": "1"}\n')
    (example,) = read_examples(path, rationales=False).examples
    assert (example.id, example.question, example.units, example.answer) == ("5", "Q", (), "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ('{"question": "a", "answer": "#### 1"}\n{"question": \n', "line 2: not JSON: Expecting"),
        ("[{]", "line 1: not JSON"),
        ("5\n", "line 1: wanted an object, got int"),
        ('{"text": "x"}\n', "line 1: wanted a text column 'question' or 'instruction', got text"),
        ('{"instruction": "x", "output": "no"}\n', r"not one usable row \(1 no answer\)"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_examples(put(tmp_path / "x.jsonl", text))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "absent.json")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        read_examples(tmp_path / "b")


def test_written_examples_are_read_back(tmp_path):
    some = examples(5)
    write_examples(tmp_path / "e.jsonl", some)
    assert load_examples(tmp_path / "e.jsonl") == some


@needs_data
def test_real_files():
    svamp = read_examples(DATA / "svamp/SVAMP_ChatGPT_level5_ranked.json", "line")
    assert (len(svamp.examples), sum(svamp.dropped.values())) == (699, 0)
    questions = read_examples(DATA / "svamp/test.jsonl", rationales=False)
    assert len(questions.examples) == 300
    gsm = read_examples(DATA / "gsm8k/test.jsonl", "line")
    assert len(gsm.examples) == 1319
    assert all("<<" not in e.rationale for e in gsm.examples)
    strategy = read_examples(DATA / "strategyqa/strategyQA_chatgpt_level_5_ranked.json", "line")
    assert {e.answer for e in strategy.examples} >= {"True", "False"}
