import codecs
import csv
import gzip
import io
import json
import re
import time

import pytest
from app_fixtures import DATA, needs_data
from cwt.data import readers
from cwt.data.answers import same_answer
from cwt.data.example import load_examples, write_examples
from cwt.data.readers import describe, file_hashes, read_examples
from cwt.data.readers.raw import Unusable, as_answer, as_text
from cwt.data.readers.think import without_marks
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

CASES = DATA.parent / "cases" / "inputs"
needs_cases = pytest.mark.realdata(CASES)

SUM = "There are 3 of 2. That makes 3 * 2 = 6. The answer is 6"  # three units
UNITS = ("There are 3 of 2.", " That makes 3 * 2 = 6.", " The answer is 6")
BODY = "There are 3 of 2. That makes 3 * 2 = 6."
THINK = "<think>\nThere are 3 of 2.\nThat makes 3 * 2 = 6.\n</think>\n\nThe answer is 6"
THOUGHT = ("There are 3 of 2.", "\nThat makes 3 * 2 = 6.", "\n\nThe answer is 6")


def put(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8", newline="")
    return path


def one(tmp_path, row, **options):
    """The examples of a file with one row, and the reasons of what was dropped."""
    found = read_examples(put(tmp_path / "f.json", json.dumps([row])), **options)
    return found.examples


def dropped(tmp_path, *rows, **options):
    """The reasons of rows that are dropped beside one that is good."""
    good = {"question": "good?", "rationale": SUM, "answer": "6"}
    path = put(tmp_path / "f.jsonl", "".join(json.dumps(row) + "\n" for row in [good, *rows]))
    found = read_examples(path, **options)
    assert [e.question for e in found.examples] == ["good?"]
    return [drop.reason for drop in found.dropped]


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


ROWS = [{"instruction": f"Q{i}", "input": "", "output": f"Größe {i}. " + SUM} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False, indent=1)


def as_csv(delimiter=",", rows=ROWS):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def zstd(data):
    import zstandard

    half = len(data) // 2  # two frames, as `zstd` writes what is appended
    return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))


CONTAINERS = {
    "list": LIST,
    "lines": LINES,
    "crlf": LINES.replace("\n", "\r\n"),
    "no last line feed": LINES.rstrip(),
    "blank lines": "\n" + LINES.replace("\n", "\n\n"),
    "list on one line": json.dumps(ROWS),
    "rows in data": json.dumps({"data": ROWS, "version": 1}),
    "rows in instances": json.dumps({"type": "text2text", "instances": ROWS}),
    "train and test": json.dumps({"train": ROWS, "test": []}),
    "train inside data": json.dumps({"version": 1, "data": {"train": ROWS}}),
    "hub viewer": json.dumps(
        {"features": [{}], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]}
    ),
    "columns": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "pandas": json.dumps({k: {str(i): r[k] for i, r in enumerate(ROWS)} for k in ROWS[0]}),
    "bom": codecs.BOM_UTF8 + LIST.encode(),
    "utf-16": LIST.encode("utf-16"),
    "utf-16-be": LINES.encode("utf-16-be"),
    "utf-16 without a mark": LINES.encode("utf-16-le"),
    "utf-32": LINES.encode("utf-32"),
    "gzip": gzip.compress(LINES.encode()),
    "zstd": zstd(LINES.encode()),
    "csv": as_csv(),
    "tsv": as_csv("\t"),
    "semicolons": as_csv(";"),
    "csv, bom, gzip": gzip.compress(codecs.BOM_UTF8 + as_csv().encode()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path, name):
    found = read_examples(put(tmp_path / "file", CONTAINERS[name]))
    assert [(e.question, e.rationale) for e in found.examples] == [
        (row["instruction"], row["output"]) for row in ROWS
    ]
    others = {"in the part 'features', not in 'rows'"}
    assert set(found.reasons) <= others
    assert found.rows - len(found.dropped) == 3


def test_tables(tmp_path):
    import datasets

    rows = [{"question": f"Q{i}", "rationale": SUM, "answer": "6", "id": None} for i in range(3)]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path / "folder")
    both = datasets.DatasetDict({"train": table, "test": table.select([2])})
    both.save_to_disk(tmp_path / "both")
    turns = datasets.Dataset.from_list([{"messages": [
        {"role": "user", "content": "Q"}, {"role": "assistant", "content": SUM}]}])  # fmt: skip
    turns.to_parquet(tmp_path / "m.parquet")

    def asked(path, **options):
        return [e.question for e in read_examples(path, **options).examples]

    assert asked(tmp_path / "t.parquet") == ["Q0", "Q1", "Q2"]
    assert asked(tmp_path / "folder") == ["Q0", "Q1", "Q2"]
    assert asked(tmp_path / "both") == ["Q0", "Q1", "Q2"]
    assert asked(tmp_path / "both", rationales=False) == ["Q2"]
    assert asked(f"{tmp_path / 'both'}::test") == ["Q2"]
    assert asked(tmp_path / "m.parquet") == ["Q"]
    assert read_examples(tmp_path / "both").notes == ["split 'test' was not read (1 rows)"]
    with pytest.raises(UserError, match="wanted the split 'dev', got train, test"):
        asked(f"{tmp_path / 'both'}::dev")
    with pytest.raises(UserError, match=r"has no configuration 'test'.*both::test"):
        asked(f"{tmp_path / 'both'}:test")
    with pytest.raises(UserError, match=r"cannot be read as Parquet"):
        asked(put(tmp_path / "cut.parquet", b"PAR1" + bytes(40)))
    files = read_examples(tmp_path / "folder").files
    assert {p.name for p in files} >= {"state.json", "dataset_info.json"}


def test_a_folder_of_files_is_loaded_as_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    put(tmp_path / "repo" / "train.jsonl", LINES)
    put(tmp_path / "repo" / "test.jsonl", json.dumps(ROWS[0]))
    found = read_examples(tmp_path / "repo")
    assert [e.question for e in found.examples] == ["Q0", "Q1", "Q2"]
    assert len(read_examples(tmp_path / "repo", rationales=False).examples) == 1


def test_a_hub_name_goes_to_datasets(monkeypatch):
    import datasets

    asked = []

    def load(name, config):
        asked.append((name, config))
        return {"train": datasets.Dataset.from_list(ROWS), "extra": datasets.Dataset.from_list([])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_examples("openai/gsm8k:main")
    assert (asked, len(found.examples), found.files) == ([("openai/gsm8k", "main")], 3, [])
    assert found.examples[0].id == "gsm8k-1"


def test_csv_cells(tmp_path):
    text = 'question,steps,answer\n"a ""b""\nc","[\'There are 3 of 2.\', \'So 3 * 2 = 6.\']",6\n'
    text += 'Q2,,5\nQ3,"x",6,7\nQ4,"[1, 2] is a pair. It has 2. The answer is 2",2\n'
    found = read_examples(put(tmp_path / "f.csv", text))
    assert [(e.question, len(e.units)) for e in found.examples] == [('a "b"\nc', 3), ("Q4", 3)]
    assert [(d.place, d.reason) for d in found.dropped] == [
        ("line 4", "no rationale"),
        ("line 5", "not as many fields as columns"),
    ]
    with pytest.raises(UserError, match=r"f.csv, line 2: cannot be read as CSV: .*"):
        read_examples(put(tmp_path / "f.csv", 'question,rationale\nQ,"no end\n'))
    with pytest.raises(UserError, match="line 1: the column 'question' comes twice"):
        read_examples(put(tmp_path / "f.csv", "question,question,answer\na,b,c\n"))
    long = "x " * 600_000 + "The answer is 6"
    rows = [{"question": "Q", "rationale": long}]
    found = read_examples(put(tmp_path / "f.csv", as_csv(rows=rows)), "line")
    assert found.examples[0].rationale == long


def test_lines_are_counted_and_never_cut_inside(tmp_path):
    row = json.dumps(
        {"question": "Q\u2028R", "rationale": "A\x85b\u2029c. " + SUM}, ensure_ascii=False
    )
    text = f'{row}\n{{"question": \n{"[" * 100_000}\n{{"question": {"1" * 5000}}}\nx\n'
    found = read_examples(put(tmp_path / "f.jsonl", text))
    assert found.examples[0].question == "Q\u2028R"
    assert [d.place for d in found.dropped] == ["line 2", "line 3", "line 4", "line 5"]
    assert {d.reason for d in found.dropped} == {"not JSON", "not JSON that can be read"}
    listed = json.dumps([ROWS[0], 5], indent=1)
    (drop,) = read_examples(put(tmp_path / "f.json", listed)).dropped
    assert (drop.place, drop.reason, drop.detail) == ("line 7", "not an object", "int")


def test_a_row_with_bytes_that_are_not_utf8_is_listed(tmp_path):
    good = json.dumps(ROWS[0]).encode()
    found = read_examples(put(tmp_path / "f.jsonl", good + b'\n{"question":"\xe9?","cot":"a."}\n'))
    assert [(d.place, d.reason) for d in found.dropped] == [
        ("line 2", "question is not valid Unicode")
    ]
    json.dumps([vars(d) for d in found.dropped], ensure_ascii=False).encode()  # can be written


def test_parts_of_an_object(tmp_path):
    document = {"train": ROWS[:2], "test": [{"question": "T", "answer": "1"}]}
    path = put(tmp_path / "f.json", json.dumps(document))
    found = read_examples(path, strict=True)
    assert [e.question for e in found.examples] == ["Q0", "Q1"]
    assert [(d.place, d.reason) for d in found.dropped] == [
        ("test item 1", "in the part 'test', not in 'train'")
    ]
    (example,) = read_examples(path, rationales=False).examples
    assert (example.question, example.answer) == ("T", "1")


def test_fine_tune_cot_with_its_split_file(tmp_path):
    def completion(index, sample, answer="6"):
        return {
            "sample_index": index,
            "completion_index": sample,
            "question": f"Q{index}",
            "answer": "6",
            "reasoning_completion": f"\n\nThere are 3 of 2, way {sample}.",
            "completion": f" {answer}.",
        }

    data = {"0": [completion(0, 0), completion(0, 1)], "1": [completion(1, 0, "7")],
            "2": [completion(2, 0)]}  # fmt: skip
    path = put(tmp_path / "t.json", json.dumps({"metadata": {"a": 1}, "data": data}))
    assert len(read_examples(path).examples) == 3
    put(tmp_path / "t.split.json", json.dumps({"train": [0, 1], "test": [2]}))
    found = read_examples(path)
    assert [e.id for e in found.examples] == ["t-0-0", "t-0-1"]
    assert found.reasons == {
        "rationale contradicts the gold answer": 1,
        "not in the part 'train' of t.split.json": 1,
    }
    assert [e.question for e in read_examples(path, rationales=False).examples] == ["Q2"]
    assert set(file_hashes(found.files)) == {str(path), str(tmp_path / "t.split.json")}
    put(tmp_path / "t.split.json", "[]")
    with pytest.raises(UserError, match=r't.split.json: wanted \{"train"'):
        read_examples(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ("[{]", "line 1: not JSON"),
        ('[\n{"a": 1}\n{"b": 2}]', "line 3: not JSON: Expecting ',' or ']'"),
        ('[{"a": 1}', "line 1: not JSON: Expecting ',' or ']'"),
        ('[{"a": 1}] 5', "line 1: not JSON: Extra data"),
        ("[" * 100_000, "line 1: not JSON that can be read"),
        ("5\n", "wanted JSON, JSON lines, Parquet, or CSV.*begins '5'"),
        ("Once upon a time.", "wanted JSON, JSON lines, Parquet, or CSV.*begins 'Once upon"),
        ('{"text": "x"}\n', "wanted rows .*got an object of text"),
        ('{"text": "x"}\n{"text": "y"}\n', r"\(2 columns not understood\).*the columns text"),
        ('{"instruction": "x", "output": "no"}\n', r"not one usable row of 1 \(1 no answer\)"),
        ("[]", r"not one usable row of 0 \(no rows\)"),
        ('{"a": [{"x": 1}], "b": [{"x": 1}, {}]}', r"several lists of rows \(a, b\)"),
        (b"\xff\xfe\x00", "cannot be read as utf-16-le text"),
        (b"\x7fELF\x00\x00\x01", "cannot be read as text: it holds zero bytes"),
        (b"\x1f\x8b\x08 cut", "cannot be unpacked"),
        (b"\x28\xb5\x2f\xfd cut", "cannot be unpacked"),
        (gzip.compress(LINES.encode())[:-20], "cannot be unpacked"),
    ],
)
def test_bad_files(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_examples(put(tmp_path / "x.jsonl", content))


def test_missing_files(tmp_path):
    for name in (tmp_path / "absent.json", "data/absent.jsonl", "absent", "absent:train"):
        with pytest.raises(UserError, match="no such file"):
            read_examples(name)
    with pytest.raises(UserError, match="`datasets` cannot read it"):
        read_examples(tmp_path)


def test_describe(tmp_path):
    rows = [{"question": "Q", "rationale": BODY, "answer": "6"}, {"question": "R", "cot": None}]
    found = read_examples(put(tmp_path / "f.json", json.dumps(rows)))
    found.leave_out([(found.examples[0], "in no split")])
    assert found.examples == []
    assert (found.dropped[-1].place, found.dropped[-1].excerpt) == ("line 1", "f-1")
    found = read_examples(tmp_path / "f.json")
    assert describe(found, 3).split("\n") == [
        f"{tmp_path}/f.json: JSON list, 2 rows, 1 examples, 1 dropped",
        "  columns: 2 rows; question = question, rationale = rationale, answer = answer",
        "  dropped 1: no rationale",
        "",
        "f-1",
        "  question  Q",
        "         0  'There are 3 of 2.'",
        "         1  ' That makes 3 * 2 = 6.'",
        "         2  ' The answer is 6'",
        "  answer    '6', from the column answer; its sentence was appended",
    ]


def test_a_changed_file_has_another_hash(tmp_path):
    path = put(tmp_path / "f", "a")
    before = file_hashes([path])
    assert before == {str(path): "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}
    put(path, "b")
    assert file_hashes([path]) != before
    with pytest.raises(UserError, match="absent: cannot be read"):
        file_hashes([tmp_path / "absent"])


@pytest.mark.parametrize(
    "text",
    ["<answer>", "</answer><answer>", "<think>", "</think> ", "#### ", "\n#### 5 ", "<<",
     "\\boxed{", "[", "\0", "\u2028", "1. ", "x" * 100 + " "],
)  # fmt: skip
def test_long_texts_end(tmp_path, text):
    row = {"question": "Q", "rationale": text * (2**17 // len(text)) + " end. ", "answer": "6"}
    rows = [row, {**row, "question": "<think>" + row["rationale"]}, ROWS[0]]
    path = put(tmp_path / "f.jsonl", "\n".join(map(json.dumps, rows)))
    begin = time.perf_counter()
    found = read_examples(path, "line")
    assert len(found.examples) + len(found.dropped) == 3
    assert time.perf_counter() - begin < 30  # seconds; 1 where nothing else runs


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(SUM),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    "id question instruction input output rationale response answer label prompt completion "
    "messages conversations options choices reasoning_completion".split()
)


@given(st.lists(st.dictionaries(NAMES, VALUES) | VALUES, max_size=4), st.booleans())
def test_every_row_is_used_or_listed(tmp_path_factory, rows, rationales):
    path = tmp_path_factory.mktemp("any") / "f.jsonl"
    put(path, "".join(json.dumps(row) + "\n" for row in rows) + json.dumps(ROWS[0]))
    found = read_examples(path, "line", rationales=rationales)
    used = {int(drop.place.removeprefix("line ")) for drop in found.dropped}
    assert found.rows == len(rows) + 1
    assert len(found.examples) + len(used) >= found.rows
    assert len({e.id for e in found.examples}) == len(found.examples)
    write_examples(path.with_name("e.jsonl"), found.examples)
    assert load_examples(path.with_name("e.jsonl")) == found.examples


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, data):
    path = put(tmp_path_factory.mktemp("any") / "f", data)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_examples(path)


def test_written_examples_are_read_back(tmp_path):
    some = [e.chunked([0, 2, len(e.units)]) for e in generate_examples("arithmetic", [5], 1)[0]]
    some[0] = some[0].keeping(frozenset({0, 1}))
    write_examples(tmp_path / "e.jsonl", some)
    assert load_examples(tmp_path / "e.jsonl") == some


# What each collected case gives: (rationales wanted, examples, reasons), and the first answer.
CASE_RESULTS = {
    "D1_bom.json": (True, 8, {}, "5"),
    "D2b_u2028_inside.json": (True, 60, {}, "5"),
    "D3_null.json": (True, 6, {"no rationale": 6}, "5"),
    "D4b_output_list.json": (True, 24, {}, "5"),
    "D5_messages.jsonl": (True, 12, {}, "5"),
    "D5c_prompt_completion.jsonl": (True, 12, {}, "5"),
    "D6d_boxed_rationale.jsonl": (True, 40, {}, "5"),
    "D7_wrapped.json": (True, 8, {}, "5"),
    "D8_wrong_teacher.json": (True, 30, {"rationale contradicts the gold answer": 10}, "10"),
    "D9_self_check.json": (True, 12, {}, "5"),
    "D10_label_and_empty_output.json": (False, 12, {}, "5"),
    "D11_bool_train.json": (True, 40, {}, "no"),
    "D11_bool_test.json": (False, 12, {}, "no"),
    "D12_sorted_test.json": (False, 200, {}, "yes"),
    "D15_crlf.jsonl": (True, 8, {}, "5"),
    "D19_headings.json": (True, 40, {}, "5"),
    "D22_special.json": (True, 40, {}, "5"),
    "D23_think.json": (True, 40, {}, "5"),
    "D29_null_ids.json": (True, 40, {}, "5"),
    "good.json": (True, 60, {}, "5"),
    "good_test.json": (False, 30, {}, "140"),
}


@needs_cases
@pytest.mark.parametrize("name", CASE_RESULTS)
def test_cases(name):
    rationales, count, reasons, answer = CASE_RESULTS[name]
    found = read_examples(CASES / name, rationales=rationales)
    assert (len(found.examples), dict(found.reasons)) == (count, reasons)
    assert found.examples[0].answer == answer
    assert len({e.id for e in found.examples}) == count
    if rationales:
        for e in found.examples:  # the last unit states the answer
            stated = (f"The answer is {e.answer}", f"\\boxed{{{e.answer}}}")
            assert any(words in e.units[-1] for words in stated), e.units
        assert not any("think>" in unit for e in found.examples for unit in e.units)


@needs_cases
@pytest.mark.parametrize("name", ["D21_hang.json", "D30_control_characters.json"])
def test_the_row_that_stopped_the_splitter_is_read_or_listed(name):
    found = read_examples(CASES / name)
    assert len(found.examples) + sum(found.reasons.values()) == 41
    assert set(found.reasons) <= {"not divided into units"}
    assert len(found.examples) >= 40


@needs_cases
def test_the_text_of_a_special_token_is_data():
    found = read_examples(CASES / "D22_special.json")
    assert all(" The tag <eos> ends a line." in e.units for e in found.examples)


# Real files, one line a unit: rows, examples, reasons.
REAL = {
    "gsm8k/test.jsonl": (1319, 1319, {}),
    "gsm8k/test_socratic.jsonl": (1319, 1319, {}),
    "svamp/SVAMP_ChatGPT_level1_ranked.json": (700, 696, {"rationale of one unit": 4}),
    "svamp/SVAMP_ChatGPT_level5_ranked.json": (699, 694, {"rationale of one unit": 5}),
}
REAL_QUESTIONS = {
    "gsm8k/test.jsonl": 1319,
    "svamp/test.jsonl": 300,
    "svamp/SVAMP.json": 1000,
    "strategyqa/strategyQA_test.json": 290,
    "finetune_cot/addsub.json": 119,
    "finetune_cot/date_understanding.json": 111,
    "finetune_cot/strategy_qa.json": 687,
}
# Fine-tune-CoT: samples to train on, and how many of them were cut off at the teacher's limit.
COMPLETIONS = {
    "addsub": (276, 27),
    "coin_flip": (382, 10),
    "date_understanding": (290, 6),
    "last_letter_concatenation": (382, 2),
    "multiarith": (612, 24),
    "single_eq": (356, 54),
    "strategy_qa": (1603, 456),
    "svamp": (700, 94),
    "tracking_shuffled_objects": (557, 16),
}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_rationales(name):
    rows, count, reasons = REAL[name]
    found = read_examples(DATA / name, "line")
    assert (found.rows, len(found.examples), dict(found.reasons)) == (rows, count, reasons)
    assert all("<<" not in e.rationale for e in found.examples)


@needs_data
def test_real_strategyqa():
    found = read_examples(DATA / "strategyqa/strategyQA_chatgpt_level_5_ranked.json", "line")
    assert found.reasons.pop("repeated question with the same rationale") == 1
    assert found.reasons["no answer"] <= 1  # "the answer remains True"
    assert len(found.examples) + len(found.dropped) == found.rows == 1999
    assert {e.answer for e in found.examples} == {"True", "False"}


@needs_data
@pytest.mark.parametrize("name", REAL_QUESTIONS)
def test_real_questions(name):
    found = read_examples(DATA / name, rationales=False)
    assert len(found.examples) == REAL_QUESTIONS[name]


@needs_data
def test_svamp_questions_are_those_of_the_published_file():
    wanted = {row["ID"]: row for row in json.loads((DATA / "svamp/SVAMP.json").read_text())}
    for example in read_examples(DATA / "svamp/SVAMP.json", rationales=False).examples:
        row = wanted.pop(example.id)
        assert example.question.endswith(row["Question"].strip())
        assert example.question.startswith(row["Body"].strip())
        assert float(example.answer) == row["Answer"]
    assert not wanted


@needs_data
@pytest.mark.parametrize("task", COMPLETIONS)
def test_real_fine_tune_cot(task):
    samples, cut = COMPLETIONS[task]
    path = DATA / "finetune_cot" / f"{task}.json"
    train = set(json.loads(path.with_suffix(".split.json").read_text())["train"])
    data = json.loads(path.read_text())["data"]
    given = [row for index in train for row in data[str(index)]]
    whole = [row for row in given if row["reasoning_finish_reason"] != "length"]
    assert (len(given), len(given) - len(whole)) == (samples, cut)
    found = read_examples(path, "line")
    reasons = found.reasons
    assert reasons["rationale was cut off"] == cut
    assert reasons[f"not in the part 'train' of {task}.split.json"] == found.rows - samples
    # The teacher's last words alone, without the rationale before them, tell right from wrong;
    # two go on arguing after their answer.
    wrong = sum(not same_answer(row["completion"].strip(), row["answer"]) for row in whole)
    assert abs(reasons["rationale contradicts the gold answer"] - wrong) <= 2
    texts = {(r["question"], r["reasoning_completion"].strip(), r["completion"]) for r in whole}
    repeated = reasons["repeated question with the same rationale"]
    assert repeated <= len(whole) - len(texts)
    assert len(found.examples) + sum(reasons.values()) == found.rows
    for example in found.examples:
        _, index, k = example.id.rsplit("-", 2)
        source = data[index][int(k)]
        assert int(index) in train
        assert example.answer == source["answer"]
        assert example.rationale.startswith(source["reasoning_completion"].strip())
