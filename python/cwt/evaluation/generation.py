"""Evaluation by generation: greedy, in batches, with a KV cache; what it cost is part of it."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from .answers import extract_answer, same_answer
from .data import Example
from .encode import Encoder
from .train import Progress
from .units import answer_start


@dataclass(frozen=True)
class Generation:
    """What the student wrote for one question."""

    id: str
    question: str
    wanted: str
    text: str
    answer: str | None
    correct: bool
    well_formed: bool  # states an answer and ends by itself
    truncated: bool  # still writing when max_new_tokens were spent
    tokens: int  # generated, with the end-of-sequence token


@dataclass(frozen=True)
class Score:
    """Figures over the questions of one evaluation; accuracies are shares in [0, 1]."""

    questions: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    generated_tokens: float
    tokens_per_second: float
    seconds_per_answer: float
    well_formed: float
    truncated: float


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def evaluate(
    model: PreTrainedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = lambda share, text: None,
) -> tuple[Score, list[Generation]]:
    """Returns the score of a student on some questions, and everything that it wrote.

    Args:
        model: the student.
        encoder: of the student.
        examples: questions with answers; order is kept.
        max_new_tokens: per question.
        batch_size: questions generated at once; wall time is that of whole batches.
        progress: is told the share done.
    """
    model.eval()
    prompts = [encoder.prompt(example.question) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    written: dict[int, list[int]] = {}
    seconds = 0.0
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        start = time.perf_counter()
        rows = generate(model, encoder, [prompts[i] for i in part], max_new_tokens)
        seconds += time.perf_counter() - start
        written.update(zip(part, rows, strict=True))
        progress((at + len(part)) / len(order), "generating")
    generations = [_judge(encoder, e, written[i]) for i, e in enumerate(examples)]
    return score(generations, seconds), generations


def score(generations: Sequence[Generation], seconds: float) -> Score:
    """Returns the figures of some generations that took so many seconds of wall time."""
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


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, up to and with its end-of-sequence token."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), encoder.pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # on the left, so that all go on from the same column
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=encoder.eos,
        pad_token_id=encoder.pad,
    )
    rows = out[:, longest:].tolist()
    return [row[: row.index(encoder.eos) + 1] if encoder.eos in row else row for row in rows]


def _judge(encoder: Encoder, example: Example, ids: list[int]) -> Generation:
    ended = bool(ids) and ids[-1] == encoder.eos
    text = encoder.text(ids)
    answer = extract_answer(text)
    return Generation(
        id=example.id,
        question=example.question,
        wanted=example.answer,
        text=text,
        answer=answer,
        correct=same_answer(answer, example.answer),
        well_formed=ended and answer is not None and answer_start(text) < len(text),
        truncated=not ended,
        tokens=len(ids),
    )


def as_rows(generations: Sequence[Generation]) -> list[dict[str, object]]:
    return [asdict(g) for g in generations]
