"""Greedy generation for many questions; on a GPU one step is one CUDA graph.

A step of a small model launches some thousand kernels of a few microseconds each, so the processor
sets its time. A graph launches all of them at once. What is written is what
`CausalStudent.generate` writes, up to rounding: `agreement` measures that, and real.py uses this
only where they agree.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cwt.students.causal import CausalStudent
from transformers import StaticCache

STAGE = 96  # tokens after which rows that have ended leave the batch
_EAGER = 3  # steps before a graph is captured: libraries set themselves up in them


@torch.no_grad()
def generate(
    student: CausalStudent, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, with its end-of-sequence token.

    Args:
        student: a decoder-only model whose attention takes a boolean mask.
        prompts: ids of the questions.
        max_new_tokens: tokens per question, at most.
    """
    student.model.eval()
    eos = student.tokenizer.eos
    written: list[list[int]] = [[] for _ in prompts]
    left = list(range(len(prompts)))
    for begin in range(0, max_new_tokens, STAGE):
        if not left:
            break
        steps = min(STAGE, max_new_tokens - begin)
        for i, row in zip(
            left, _go_on(student, [[*prompts[i], *written[i]] for i in left], steps), strict=True
        ):
            written[i] += row[: row.index(eos) + 1] if eos in row else row
        left = [i for i in left if written[i][-1] != eos]
    return written


def _go_on(student: CausalStudent, prompts: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """Returns `steps` tokens for each prompt; what follows an end of sequence means nothing."""
    model, device = student.model, student.device
    ids, real = _left_padded(prompts, student.tokenizer.pad)
    ids, real = ids.to(device), real.to(device)
    rows, width = ids.shape
    cache = StaticCache(config=model.config, max_cache_len=width + steps)
    # A padded position sees itself: a softmax over nothing would be NaN.
    sees = torch.ones(width, width, dtype=torch.bool, device=device).tril() & real[:, None]
    sees |= torch.eye(width, dtype=torch.bool, device=device)
    mask = torch.zeros(rows, 1, width, width + steps, dtype=torch.bool, device=device)
    mask[:, 0, :, :width] = sees
    call = _caller(model, cache)
    token = call(ids, mask, (real.cumsum(1) - 1).clamp(min=0))
    written = torch.zeros(rows, steps, dtype=torch.long, device=device)
    written[:, :1] = token
    mask = torch.cat([real, real.new_zeros(rows, steps)], 1)[:, None, None]
    position = real.sum(1, keepdim=True)
    column = torch.tensor([width], device=device)
    count = torch.ones(1, dtype=torch.long, device=device)

    def step() -> None:
        mask.index_fill_(3, column, True)
        token.copy_(call(token, mask, position))
        written.index_copy_(1, count, token)
        for number in (position, column, count):
            number.add_(1)

    _repeat(step, steps - 1, lambda: _ended(written, student.tokenizer.eos), device)
    return written.tolist()


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the ids (B, W) and where they are real, (B, W) bool."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    return ids, torch.arange(width)[None] >= width - lengths[:, None]


def _caller(model: Any, cache: StaticCache) -> Callable[..., torch.Tensor]:
    """Returns a function of (ids, mask, positions) that gives the likeliest next tokens, (B, 1)."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def call(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{name: cache},
        )
        best: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return best

    return call


def _repeat(
    step: Callable[[], None], times: int, ended: Callable[[], bool], device: torch.device
) -> None:
    """Does a step some times, on a GPU as a graph; looks every 16 steps whether all have ended."""
    eager = times if device.type == "cpu" else min(_EAGER, times)
    advance = step
    if device.type == "cpu":
        done = 0
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(eager):
                step()
        torch.cuda.current_stream().wait_stream(side)
        done = eager
        if done < times:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()  # records; nothing runs
            advance = graph.replay
    for n in range(done, times):
        if n % 16 == 15 and ended():
            return
        advance()


def _ended(written: torch.Tensor, eos: int) -> bool:
    return bool((written == eos).any(1).all())


def agreement(student: CausalStudent, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Returns the share of tokens before the first difference from the library's generation."""
    ours = generate(student, prompts, tokens)
    theirs = CausalStudent.generate(student, prompts, tokens)
    same = total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += max(len(a), len(b))
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    return same / total
