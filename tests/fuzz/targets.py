"""What is fuzzed: functions of any bytes that end, or raise where a promise is broken.

`run.py` gives them bytes that its fuzzer finds by coverage, `test_properties.py` bytes that were
right and are broken at random.
"""

import functools
import gzip
import json
import tempfile
from pathlib import Path

from cwt.data.answers import extract_answer, formula, same_answer
from cwt.data.readers import read_examples
from cwt.data.sentences import protected_spans, sentence_ends
from cwt.data.units import answer_start, split_units
from cwt.errors import UserError
from reader_rows import ROWS, SUM
from test_segment_fuzz import test_anything_goes_in_only_answers_and_errors_come_out
from test_units import KINDS

SUFFIXES = ["json", "jsonl", "csv", "parquet", "gz"]
GOLDS = ["6", "2", "3/4", "12 cm", "yes", "\\frac{3}{4}"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="cwt-fuzz-")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def segment(data: bytes) -> None:
    """Calls the segmenter's binding with arguments drawn from bytes, by Hypothesis."""
    test_anything_goes_in_only_answers_and_errors_come_out.hypothesis.fuzz_one_input(data)


def readers(data: bytes) -> None:
    """Reads a file: every row is used or listed, or the file is refused by name."""
    choice = data[0] if data else 0
    path = Path(_folder().name, f"f.{SUFFIXES[choice % len(SUFFIXES)]}")
    path.write_bytes(data[1:])
    try:
        found = read_examples(path, rationales=choice < 128)
    except UserError as error:
        assert str(path) in str(error), data  # noqa: PT017
    else:
        assert len(found.examples) + len(found.dropped) >= found.rows, data


def units(data: bytes) -> None:
    """Divides a text: its units join to it, and no sentence ends inside a protected span."""
    text = _text(data)
    for kind in KINDS:
        assert "".join(split_units(text, kind)) == text
    assert 0 <= answer_start(text) <= len(text)
    ends = sentence_ends(text)
    assert ends == sorted(set(ends))
    spans = protected_spans(text)
    assert not any(start < end < stop for end in ends for start, stop in spans)


def answers(data: bytes) -> None:
    """Grades a text: a verdict, which space around the answer does not change."""
    text, gold = _text(data[1:]), GOLDS[(data[0] if data else 0) % len(GOLDS)]
    formula.SECONDS = 0.5  # a formula that takes longer is not equal, and here not of interest
    stated = extract_answer(text)
    verdict = same_answer(stated, gold)
    assert verdict in (True, False)
    if stated is None:
        assert not verdict
    else:
        assert same_answer(f" {stated}\n", gold) == verdict


HURTS = [b'"', b"\\", b"\0", b"\n", b"\r\n", b"{", b"[", b"]", b"}", b",", b":", b"null", b"NaN",
         b"1e999", b"\xff\xfe", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xe2\x80\xae", b"\\ud800",
         b"<think>", b"</think>", b"#### ", b"\\boxed{", b"The answer is ", b"$", b"```", b"<<",
         b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"-" * 30, b"9" * 40]  # fmt: skip
LINES = "\n".join(map(json.dumps, ROWS)).encode()
TEXTS = [
    SUM.encode(),
    b"1. Add: $1+1=2$. 2. So \\boxed{2}.\n#### 2",
    b"<think>A. B.</think>The answer is 3/4",
    b"It is **12 cm**. (See \\(x = 1. Y\\).) Therefore, the answer is 05/01/2021.",
]
SEEDS = {
    segment: [bytes(range(n)) for n in (16, 64, 200)],
    readers: [
        b"\0" + json.dumps(ROWS).encode(),
        b"\1" + LINES,
        b"\1" + LINES.decode().encode("utf-16"),
        b"\2question,rationale,answer\nQ,There are 3. It is 6. The answer is 6,6\n",
        b"\4" + gzip.compress(LINES, mtime=0),
        b"\0" + json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(),
        b"\0" + json.dumps({"question": ["Q"], "answer": [SUM]}).encode(),
    ],
    units: TEXTS,
    answers: [bytes([i]) + text for i, text in enumerate(TEXTS)],
}
