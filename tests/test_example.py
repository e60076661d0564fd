"""The example: its chunks and kept units, and the file that holds them."""

import json
import random
from dataclasses import replace

import pytest
from app_fixtures import examples
from cwt.data.example import Example, load_examples, write_examples
from cwt.errors import UserError

PLAIN = Example("a", "1 + 1?", ("One.", " Two.", " Three.", " The answer is 2"), "2")


@pytest.mark.parametrize(
    "boundaries",
    [[], [0], [4], [0, 3], [1, 4], [0, 2, 2, 4], [0, 3, 2, 4], [0, 5], [-1, 4], [0, 4, 4]],
)
def test_bad_boundaries_are_refused(boundaries):
    with pytest.raises(ValueError, match="of a must rise from 0 to 4, its number of units") as why:
        PLAIN.chunked(boundaries)
    assert str(why.value).endswith(f"got {boundaries}.")


def test_chunks_of_units():
    assert (PLAIN.chunks, PLAIN.chunk_of_units()) == (1, [0, 0, 0, 0])
    chunked = PLAIN.chunked([0, 1, 3, 4])
    assert (chunked.chunks, chunked.chunk_of_units()) == (3, [0, 1, 1, 2])
    assert chunked.boundaries == (0, 1, 3, 4)
    assert replace(chunked, boundaries=None) == PLAIN


def test_what_is_kept():
    assert PLAIN.kept_units is None
    assert PLAIN.kept == {0, 1, 2, 3}
    assert list(PLAIN.middle_units) == [1, 2]
    shorter = PLAIN.keeping(frozenset({0, 3}))
    assert shorter.kept == shorter.kept_units == {0, 3}
    assert shorter.rationale == PLAIN.rationale  # the units stay where they are
    assert shorter.keeping(None) == PLAIN


def test_written_examples_are_read_back_whole(tmp_path):
    rng = random.Random(0)
    some = [
        e.keeping(frozenset({0, len(e.units) - 1, *rng.sample(list(e.middle_units), 2)}))
        for e in examples(5)
    ]
    some += [PLAIN, PLAIN.keeping(frozenset()), PLAIN.chunked([0, 4]), Example("q", "Q", (), "1")]
    write_examples(tmp_path / "e.jsonl", some)
    found = load_examples(tmp_path / "e.jsonl")
    assert found == some
    assert [hash(e) for e in found] == [hash(e) for e in some]
    assert load_examples(str(tmp_path / "e.jsonl")) == some


def test_line_separators_inside_a_text_survive(tmp_path):
    text = "a\u2028b\u2029c\x85d\ne\r\nf\x0bg"
    some = [replace(PLAIN, question=text, units=(text, " The answer is 2")), PLAIN]
    write_examples(tmp_path / "e.jsonl", some)
    assert load_examples(tmp_path / "e.jsonl") == some


ROW = {"id": "a", "question": "Q", "units": ["One.", " The answer is 2"], "answer": "2"}


def without(name):
    return json.dumps({k: v for k, v in ROW.items() if k != name})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (without("id"), "'id' is missing"),
        (without("question"), "'question' is missing"),
        (without("units"), "'units' is missing"),
        (without("answer"), "'answer' is missing"),
        (json.dumps({**ROW, "units": "One. Two."}), "units must be a list, got 'One. Two.'"),
        (json.dumps({**ROW, "boundaries": [0, 1]}), r"must rise from 0 to 2.*got \[0, 1\]"),
        (json.dumps({**ROW, "boundaries": []}), r"must rise from 0 to 2.*got \[\]"),
        (json.dumps({**ROW, "boundaries": ["x"]}), "invalid literal for int.*'x'"),
        (json.dumps({**ROW, "boundaries": 2}), "not iterable"),
        (json.dumps({**ROW, "kept_units": [0, 2]}), r"kept_units \[2\] are none of 2 units"),
        ("[1]", "got list in place of an object"),
        ('{"id": "a", ', "Expecting"),
        (json.dumps(ROW)[:-1] + "\x00}", "Expecting|Invalid"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, reason):
    path = tmp_path / "e.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match=reason) as why:
        load_examples(path)
    message = str(why.value)
    assert message.startswith(
        f"{path}, row 3: wanted id, question, units and answer, as `cwt data`"
    )
    assert "\n" not in message
    assert message.endswith(".")
    assert not message.endswith("..")


def test_a_row_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"e.jsonl, row 2: .*can't decode byte 0xff"):
        load_examples(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        load_examples(tmp_path / "absent.jsonl")
