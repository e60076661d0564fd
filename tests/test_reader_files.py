"""Files of rows as people have them: containers, tables, folders, damaged and hostile ones."""

import codecs
import csv
import gzip
import io
import json
import re
import time

import pytest
from cwt.data.example import load_examples, write_examples
from cwt.data.readers import describe, file_hashes, read_examples
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from hypothesis import given
from hypothesis import strategies as st
from reader_rows import BODY, LINES, LIST, ROWS, SUM, put


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
