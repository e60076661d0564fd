"""A corpus of malformed data files: every row is used or listed with its place and its reason."""

import codecs
import json

import pytest
from cwt.cli import main
from cwt.data.answers import extract_answer, same_answer
from cwt.data.readers import read_examples
from cwt.errors import UserError
from cwt.files import read_json, read_lines

SUM = "There are 3 of 2. That makes 3 * 2 = 6. The answer is 6"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one picture of three code points
NOT_TEXT = "rationale is a list of other things than text"


def row(**columns):
    return {"question": "Q", "rationale": SUM, "answer": "6", **columns}


def text(*rows):
    return "".join(
        (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows
    )


FIRST = row(question="first")  # a good row, in every file
TWO = text(FIRST, row(question="second"))

# name: (what the file holds, the questions that are used after the first, {line: reason})
CORPUS = {
    "cut short": (TWO[:-20], [], {2: "not JSON"}),
    "cut short in the middle": (
        text(FIRST, '{"question": "T", "rationale": "There', row(question="third")),
        ["third"],
        {2: "not JSON"},
    ),
    "rationales of other types": (
        text(FIRST, *[row(question=f"v {v}", rationale=v)
                      for v in (5, 1.5, True, None, [], ["A way."], {}, [["a"]])]),
        ["v 5", "v 1.5", "v ['A way.']"],
        {4: "rationale is a boolean, not text", 5: "no rationale", 6: "no rationale",
         8: "rationale is an object, not text", 9: NOT_TEXT},
    ),
    "questions of other types": (
        text(FIRST, *[row(question=v) for v in (5, True, None, [], {})]),
        ["5"],
        {3: "question is a boolean, not text", 4: "no question",
         5: "question is a list, not text", 6: "question is an object, not text"},
    ),
    "answers of other types": (
        text(FIRST, *[row(question=f"v {v}", answer=v)
                      for v in (6, 6.0, True, None, [], ["6"], {"a": 1}, [6, 7])]),
        ["v 6", "v 6.0", "v None", "v []", "v ['6']"],
        {4: "rationale contradicts the gold answer", 8: "answer is an object, not text",
         9: "several gold answers"},
    ),
    "rows of other types": (
        text(FIRST, "5", "null", "[]", '"text"', "true", [FIRST], [[FIRST]]),
        [],
        dict.fromkeys(range(2, 9), "not an object"),
    ),
    "empty strings": (
        text(FIRST, row(question=""), row(question="R", rationale=""),
             row(question="A", answer=""), row(question=" \t"), {}, "", "  "),
        ["A"],
        {2: "no question", 3: "no rationale", 5: "no question", 6: "columns not understood"},
    ),
    "lines of a megabyte": (
        text(FIRST, row(question="L" * 2**20),
             row(question="M", rationale="word " * 2**18 + "end. The answer is 6")),
        ["L" * 2**20, "M"],
        {},
    ),
    "zero bytes": (
        text(FIRST, row(question="A\0B"), row(question="C", rationale="\0" + SUM))
        .replace("\\u0000", "\0"),
        [],
        {2: "not JSON", 3: "not JSON"},
    ),
    "zero bytes in escapes": (text(FIRST, row(question="A\0B")), ["A\0B"], {}),
    "a byte order mark": (codecs.BOM_UTF8 + TWO.encode(), ["second"], {}),
    "UTF-16 with a mark": (codecs.BOM_UTF16_LE + TWO.encode("utf-16-le"), ["second"], {}),
    "UTF-16 without": (TWO.encode("utf-16-be"), ["second"], {}),
    "CRLF": (TWO.replace("\n", "\r\n"), ["second"], {}),
    "ids that come twice": (
        text(row(id="a", question="first"), row(id="a", question="D"), row(id="b", question="D")),
        ["D"],
        {3: "repeated question with the same rationale"},
    ),
    "answers that are missing": (
        text(FIRST, row(question="W", rationale="There are 3. That is all.", answer=None),
             {"question": "X", "rationale": "No end. None."}, {"question": "Y"}),
        [],
        {2: "no answer", 3: "no answer", 4: "columns not understood"},
    ),
    "rationales that are the answer": (
        text(FIRST, row(question="E", rationale="6"), row(question="F", rationale=" 6 ", answer=6),
             row(question="G", rationale="The answer is 6")),
        [],
        {2: "rationale is the answer alone", 3: "rationale is the answer alone",
         4: "rationale of one unit"},
    ),
    "from right to left, and pictures": (
        text(FIRST,
             row(question="كم عدد التفاحات؟", rationale="هناك ثلاث تفاحات. المجموع 6."),
             row(question="\u202eQ\u202c", rationale="אחת. שתיים. The answer is 6"),
             row(question=f"{FAMILY}?", rationale=f"One {FAMILY}. Two. The answer is 6")),
        ["كم عدد التفاحات؟", "\u202eQ\u202c", f"{FAMILY}?"],
        {},
    ),
    "one sentence and five hundred": (
        text(FIRST, row(question="one", rationale="There are 3 of 2, which makes 6."),
             row(question="many", rationale=" ".join(f"Step {i} adds {i}." for i in range(500)))),
        ["one", "many"],
        {},
    ),
    "nested lists": (
        text(FIRST, row(question="N", rationale=[["There are 3."], ["It is 6."]]),
             row(question="O", rationale={"steps": ["a"]}), row(question=[["P"]])),
        [],
        {2: NOT_TEXT, 3: "rationale is an object, not text", 4: "question is a list, not text"},
    ),
    "numbers as text": (
        text(FIRST, row(question="A", answer="6.0"), row(question="B", answer=" 6 "),
             row(question="C", answer="6,000", rationale="So many. The answer is 6000"),
             row(question="D", answer="1e400", rationale="Big. The answer is 1e400"),
             row(question="E", answer=10**400),
             row(question="F", answer=10**400, rationale="So many. No end.")),
        ["A", "B", "C", "D", "F"],
        {6: "rationale contradicts the gold answer"},
    ),
    "numbers that are none": (
        text(FIRST, '{"question": "N", "rationale": NaN, "answer": "6"}',
             '{"question": "I", "rationale": "A. B.", "answer": Infinity}'),
        [],
        {2: "no rationale", 3: "answer is inf"},
    ),
    "half a pair of surrogates": (
        text(FIRST, '{"question": "\\ud83d", "rationale": "A. B. The answer is 6"}'),
        [],
        {2: "question is not valid Unicode"},
    ),
}  # fmt: skip


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", CORPUS)
def test_every_row_is_used_or_listed_with_its_reason(tmp_path, name):
    content, questions, reasons = CORPUS[name]
    path = put(tmp_path / "f.jsonl", content)
    found = read_examples(path)
    assert [e.question for e in found.examples] == ["first", *questions]
    assert {d.place: d.reason for d in found.dropped} == {
        f"line {line}": reason for line, reason in reasons.items()
    }
    assert found.rows == len(found.examples) + len(found.dropped)
    stated = [extract_answer(e.rationale) for e in found.examples]
    assert all(same_answer(s, e.answer) for s, e in zip(stated, found.examples, strict=True))
    if reasons:
        first = min(reasons)
        with pytest.raises(UserError, match=rf"f\.jsonl, line {first}: {reasons[first]}"):
            read_examples(path, strict=True)


def test_the_whole_corpus_goes_through_a_run(tmp_path):
    """All files as one: the rows reach the student, the others data/dropped.jsonl."""
    lines = []
    for k, (content, _, _) in enumerate(CORPUS.values()):
        decoded = content if isinstance(content, str) else None
        if decoded and len(decoded) < 2**20:
            lines += [line.replace('"question": "', f'"question": "{k} ', 1)
                      for line in decoded.split("\n") if line.strip()]  # fmt: skip
    path = put(tmp_path / "all.jsonl", "\n".join(lines))
    read = read_examples(path)
    out = tmp_path / "r"
    main([
        "data", "--data", str(path), "--out", str(out),
        "--data.validation-size", "4", "--data.test-size", "4",
    ])  # fmt: skip
    record = read_json(out / "data/data.json")
    assert record["rationales_read"] == len(lines) == read.rows
    parts = {part: read_lines(out / f"data/{part}.jsonl") for part in ("train", "validation")}
    assert sum(record[part] for part in parts) == sum(map(len, parts.values()))
    dropped = read_lines(out / "data/dropped.jsonl")
    assert sum(record["dropped"].values()) == len(dropped)
    assert len(dropped) + sum(record[p] for p in ("train", "validation", "test")) == len(lines)
    assert {d["place"] for d in dropped} >= {d.place for d in read.dropped}
    assert [d["reason"] for d in dropped].count("longer than the student's 1024 positions") == 1
    assert max(len(e.units) for e in read.examples) == 501  # that one


def test_one_line_that_is_no_text_does_not_take_the_others_along(tmp_path):
    for number, content in enumerate((b"\xff\xfe\xfd", b"\x00" * 40, b"\x80abc", b"\x1b[31m")):
        path = put(tmp_path / f"{number}.jsonl", TWO.encode() + content + b"\n" + TWO.encode())
        found = read_examples(path)
        assert [e.question for e in found.examples] == ["first", "second"]
        assert [(d.place, d.reason) for d in found.dropped] == [
            ("line 3", "not JSON"),
            ("line 4", "repeated question with the same rationale"),
            ("line 5", "repeated question with the same rationale"),
        ]
