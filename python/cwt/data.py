"""Examples: generated, or read from the files that teachers and data sets come in."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .answers import extract_answer
from .errors import UserError
from .files import write_lines
from .tasks import Problem, unique_problems
from .units import UnitKind, split_units


@dataclass(frozen=True)
class Example:
    """A question with the units of the teacher's rationale; the last unit states the answer.

    Attributes:
        id: unique in its file.
        question: what the student is asked.
        units: the pieces of the rationale in order; joined they are the rationale. Empty for
            questions that are only evaluated on.
        answer: the answer alone.
        kinds: what each unit is (core, spare, restate, filler, answer), for generated examples.
    """

    id: str
    question: str
    units: tuple[str, ...]
    answer: str
    kinds: tuple[str, ...] | None = None

    @property
    def rationale(self) -> str:
        return "".join(self.units)


def from_problem(problem: Problem, identifier: str) -> Example:
    """Returns a generated problem as an example."""
    first, *rest = problem.sentences
    units = (first, *(" " + sentence for sentence in rest))
    return Example(identifier, problem.question, units, problem.answer, problem.kinds)


def generate(task: str, sizes: Sequence[int], seed: int, steps: int = 0) -> list[list[Example]]:
    """Returns one list of examples per size; no question stands in two of them."""
    options = {"steps": steps} if steps else {}
    try:
        problems = unique_problems(task, sum(sizes), seed, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    examples = [from_problem(p, f"{task}-{seed}-{i}") for i, p in enumerate(problems)]
    parts, start = [], 0
    for size in sizes:
        parts.append(examples[start : start + size])
        start += size
    return parts


@dataclass(frozen=True)
class Imported:
    """The examples of a file and how many of its rows were left out, by reason."""

    examples: list[Example]
    dropped: Counter[str]


def read_examples(path: Path, unit: UnitKind = "sentence", rationales: bool = True) -> Imported:
    """Returns the examples of a JSON or JSONL file.

    Understood rows: {instruction, output} (alpaca), {question, answer} with "#### X" (GSM8K),
    {question, rationale, answer}, and, with rationales=False, {question, answer} or
    {instruction, label}. A row without an answer and a repeated question are left out and counted.

    Raises:
        UserError: no such file, an empty one, a malformed line (file, line, reason), unknown
            columns, or not one usable row.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for line, row in _rows(path):
        question, text, answer = _columns(path, line, row)
        if not question:
            dropped["no question"] += 1
        elif answer is None:
            dropped["no answer"] += 1
        elif question in seen:
            dropped["repeated question"] += 1
        elif rationales and not text:
            dropped["no rationale"] += 1
        else:
            seen.add(question)
            units = split_units(text, unit) if rationales else ()
            identifier = str(row.get("id", f"{path.stem}-{line}"))
            examples.append(Example(identifier, question, units, answer))
    if not examples:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items())
        raise UserError(f"{path}: not one usable row ({reasons}); wanted a question and an answer.")
    return Imported(examples, dropped)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    write_lines(path, (asdict(example) for example in examples))


def load_examples(path: Path) -> list[Example]:
    """Returns what write_examples wrote."""
    examples = []
    for _, row in _rows(path):
        kinds = tuple(row["kinds"]) if row["kinds"] else None
        units = tuple(row["units"])
        examples.append(Example(row["id"], row["question"], units, row["answer"], kinds))
    return examples


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line or item number, row) of a JSON list or a JSONL file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}.") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty.")
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(json.loads(text), 1))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error.msg}.") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: wanted an object, got {type(row).__name__}.")
        yield number, row


def _columns(path: Path, line: int, row: dict[str, Any]) -> tuple[str, str, str | None]:
    """Returns (question, rationale that ends with its answer sentence, answer or None)."""
    question = row.get("question", row.get("instruction"))
    if not isinstance(question, str):
        raise UserError(
            f"{path}, line {line}: wanted a text column 'question' or 'instruction', got "
            f"{', '.join(map(str, row)) or 'no columns'}."
        )
    if row.get("input"):  # alpaca's optional context
        question = f"{question}\n{row['input']}"
    question = question.strip()
    if "output" in row:
        text = str(row["output"]).strip()
        answer = extract_answer(text)
        return question, text, answer
    answer = row.get("answer", row.get("label"))
    if "rationale" in row:
        text = str(row["rationale"]).strip()
        answer = None if answer is None else str(answer).strip()
        if answer and extract_answer(text) is None:
            text = f"{text} The answer is {answer}"
        return question, text, answer or None
    if isinstance(answer, bool):
        return question, "", "yes" if answer else "no"
    if isinstance(answer, str) and "####" in answer:
        body, final = answer.rsplit("####", 1)
        body = re.sub(r"<<[^>]*>>", "", body).strip()  # GSM8K's calculator marks
        return question, f"{body}\nThe answer is {final.strip()}", final.strip() or None
    return question, "", str(answer).strip() if answer not in (None, "") else None
