"""Rationales that the student writes itself."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from cwt.at_hand import at_hand
from cwt.data.answers import extract_answer, same_answer
from cwt.data.example import Example
from cwt.data.units import UnitKind, answer_start, split_units
from cwt.processes import Shares
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
    Several processes divide the batches among them.

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

    def right(at: int) -> list[tuple[int, int, str]]:
        """Returns the right samples of a batch: (example, tokens, text)."""
        part = asked[at : at + batch_size]
        at_hand("sampling", [examples[i].id for i in part])
        rows = student.sample([prompts[i] for i in part], max_new_tokens, temperature, seed + at)
        progress(min(1.0, (at + len(part)) / len(asked)), "sampling")
        texts = ((i, ids, student.text(ids)) for i, ids in zip(part, rows, strict=True))
        return [
            (i, len(ids), text)
            for i, ids, text in texts
            if student.ended(ids)
            and answer_start(text) < len(text)
            and same_answer(extract_answer(text), examples[i].answer)
        ]

    # A batch has its own seed, so it is the same whichever process samples it.
    batches = Shares(range(0, len(asked), batch_size)).map(lambda mine: [right(at) for at in mine])
    for i, tokens, text in itertools.chain.from_iterable(batches):
        best[i] = min(best.get(i, (tokens, text)), (tokens, text))
    found = [_written(e, best[i][1], unit) if i in best else e for i, e in enumerate(examples)]
    return found, len(best)


def _written(example: Example, text: str, unit: UnitKind) -> Example:
    """Returns an example with another rationale, all of it kept."""
    units = split_units(text, unit)
    return replace(example, units=units, roles=None, boundaries=None, kept_units=None)
