"""Shared by the tests of the readers: rows, their units, and what a file of them gives."""

import json

from cwt.data.readers import read_examples

SUM = "There are 3 of 2. That makes 3 * 2 = 6. The answer is 6"  # three units
UNITS = ("There are 3 of 2.", " That makes 3 * 2 = 6.", " The answer is 6")
BODY = "There are 3 of 2. That makes 3 * 2 = 6."
THINK = "<think>\nThere are 3 of 2.\nThat makes 3 * 2 = 6.\n</think>\n\nThe answer is 6"
THOUGHT = ("There are 3 of 2.", "\nThat makes 3 * 2 = 6.", "\n\nThe answer is 6")
ROWS = [{"instruction": f"Q{i}", "input": "", "output": f"Größe {i}. " + SUM} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False, indent=1)


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
