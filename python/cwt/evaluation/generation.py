"""Evaluation by greedy generation: what a student answers, how many tokens and how long."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cwt.data.answers import extract_answer, same_answer
from cwt.data.example import Example
from cwt.data.units import answer_start
from cwt.evaluation.generators import Generator, LocalGenerator, Written, written_by
from cwt.evaluation.statistics import wilson_interval
from cwt.progress import Progress, quiet
from cwt.students.student import Student


@dataclass(frozen=True)
class Generation:
    """What the student wrote for one question."""

    id: str
    question: str
    wanted: str
    text: str
    answer: str | None
    correct: bool
    well_formed: bool  # it states an answer and ends by itself
    truncated: bool  # it was cut off at max_new_tokens
    tokens: int  # generated, the end-of-sequence token included


@dataclass(frozen=True)
class Score:
    """The figures of one evaluation.

    Attributes:
        questions: number of questions.
        accuracy: share answered right, in [0, 1].
        accuracy_interval: its 95 % interval over the questions (Wilson).
        generated_tokens: mean per question, with the end-of-sequence token.
        tokens_per_second: of batched generation.
        seconds_per_answer: wall time of batched generation over the questions: throughput, not the
            time that one answer takes.
        well_formed: share of answers that state an answer and end by themselves.
        truncated: share of answers that were cut off at max_new_tokens.
    """

    questions: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    generated_tokens: float
    tokens_per_second: float
    seconds_per_answer: float
    well_formed: float
    truncated: float


def evaluate(
    student: Student,
    examples: Sequence[Example],
    max_new_tokens: int = 256,
    batch_size: int = 100,
    progress: Progress = quiet,
    batch_tokens: int = 0,
) -> tuple[Score, list[Generation]]:
    """Returns the score of a student on some questions, and what it wrote for each.

    Args:
        student: answers greedily.
        examples: questions with answers; their order is kept.
        max_new_tokens: tokens per question, at most.
        batch_size: questions generated at once, at most; 0: no limit. Wall time is that of whole
            batches.
        progress: called with the share done and what is being done.
        batch_tokens: tokens of a batch, at most, the longest prompt and max_new_tokens counted for
            every question; 0: no limit. A batch that does not fit the memory of a GPU is halved.

    Example:
        >>> import cwt
        >>> questions = cwt.generate_examples("arithmetic", [2], seed=0)[0]
        >>> score, written = evaluate(cwt.load_student("tiny"), questions, max_new_tokens=8)
        >>> score.questions, len(written)
        (2, 2)
    """
    generator = LocalGenerator(student, batch_size, batch_tokens)
    return evaluate_by(generator, examples, max_new_tokens, progress)


def evaluate_by(
    generator: Generator,
    examples: Sequence[Example],
    max_new_tokens: int,
    progress: Progress = quiet,
) -> tuple[Score, list[Generation]]:
    """Returns the score of what a generator writes for some questions, and all of it.

    Args:
        generator: writes the answers.
        examples: questions with answers; their order is kept.
        max_new_tokens: tokens per question, at most.
        progress: called with the share done and what is being done.
    """
    start = time.perf_counter()
    written = generator.write([e.question for e in examples], max_new_tokens, progress)
    seconds = time.perf_counter() - start
    generations = [
        graded(e, w, generator.opening(e.question)) for e, w in zip(examples, written, strict=True)
    ]
    return score(generations, seconds), generations


def latency(
    student: Student, examples: Sequence[Example], max_new_tokens: int, questions: int = 20
) -> float:
    """Returns the median wall time of one answer alone, in seconds.

    Each question is a batch of its own. Run it while nothing else runs on the machine.

    Args:
        student: answers greedily.
        examples: questions; the first is asked once more beforehand, to warm up.
        max_new_tokens: tokens per question, at most.
        questions: how many questions are measured, at most.
    """
    return latency_by(LocalGenerator(student), examples[:questions], max_new_tokens)


def latency_by(generator: Generator, examples: Sequence[Example], max_new_tokens: int) -> float:
    """Returns the median wall time in which a generator writes one answer alone, in seconds.

    Args:
        generator: writes the answers.
        examples: questions; the first is asked once more beforehand, to warm up.
        max_new_tokens: tokens per question, at most.
    """
    generator.write([examples[0].question], max_new_tokens)
    seconds = []
    for example in examples:
        start = time.perf_counter()
        generator.write([example.question], max_new_tokens)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def score(generations: Sequence[Generation], seconds: float) -> Score:
    """Returns the figures of some generations.

    Args:
        generations: graded answers.
        seconds: wall time that they took together.
    """
    n = len(generations)
    right = sum(g.correct for g in generations)
    tokens = sum(g.tokens for g in generations)
    return Score(
        questions=n,
        accuracy=right / n,
        accuracy_interval=wilson_interval(right, n),
        generated_tokens=tokens / n,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        seconds_per_answer=seconds / n,
        well_formed=sum(g.well_formed for g in generations) / n,
        truncated=sum(g.truncated for g in generations) / n,
    )


def grade(student: Student, example: Example, ids: list[int]) -> Generation:
    """Returns the graded answer of a student to a question, given the ids that it wrote."""
    opening = LocalGenerator(student).opening(example.question)
    return graded(example, written_by(student, ids), opening)


def graded(example: Example, written: Written, opening: str = "") -> Generation:
    """Returns a graded answer.

    A thought that is not closed has no answer, also where the prompt opened it.

    Args:
        example: the question and its answer.
        written: what was written for it.
        opening: the marker of a thought that the prompt opened.
    """
    read = opening + written.text
    answer = extract_answer(read)
    stated = answer is not None and answer_start(read) < len(read)
    return Generation(
        id=example.id,
        question=example.question,
        wanted=example.answer,
        text=written.text,
        answer=answer,
        correct=same_answer(answer, example.answer),
        well_formed=written.ended and stated,
        truncated=not written.ended,
        tokens=written.tokens,
    )
