"""Rationales that the student writes itself."""

from collections.abc import Sequence
from dataclasses import replace

from cwt.at_hand import at_hand
from cwt.data.answers import extract_answer, same_answer
from cwt.data.example import Example
from cwt.data.units import UnitKind, answer_start, split_units
from cwt.progress import Progress, quiet
from cwt.students.student import Student


def shortest_correct(
    student: Student,
    examples: Sequence[Example],
    samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    unit: UnitKind = "sentence",
    batch_size: int = 100,
    progress: Progress = quiet,
) -> tuple[list[Example], int]:
    """Returns the examples with the shortest right rationale that the student samples for each.

    Where no sample is right, ends by itself and states an answer, the teacher's rationale stays.

    Args:
        student: samples.
        examples: their questions and answers are used.
        samples: of each question.
        max_new_tokens: of a sample, at most; a sample that is cut off does not count.
        temperature: of sampling.
        seed: of sampling.
        unit: how a sample is divided into units.
        batch_size: samples generated at once.
        progress: called with the share done and what is being done.

    Returns:
        The examples, and how many of them were written anew.
    """
    asked = [i for i in range(len(examples)) for _ in range(samples)]
    prompts = [student.prompt(e.question) for e in examples]
    best: dict[int, tuple[int, str]] = {}
    for at in range(0, len(asked), batch_size):
        part = asked[at : at + batch_size]
        at_hand("sampling", [examples[i].id for i in part])
        rows = student.sample([prompts[i] for i in part], max_new_tokens, temperature, seed + at)
        for i, ids in zip(part, rows, strict=True):
            text = student.text(ids)
            if not student.ended(ids) or answer_start(text) == len(text):
                continue
            if same_answer(extract_answer(text), examples[i].answer):
                best[i] = min(best.get(i, (len(ids), text)), (len(ids), text))
        progress(min(1.0, (at + len(part)) / len(asked)), "sampling")
    found = [_written(e, best[i][1], unit) if i in best else e for i, e in enumerate(examples)]
    return found, len(best)


def _written(example: Example, text: str, unit: UnitKind) -> Example:
    """Returns an example with another rationale, all of it kept."""
    units = split_units(text, unit)
    return replace(example, units=units, roles=None, boundaries=None, kept_units=None)
