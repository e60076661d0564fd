"""Seconds of a skip search over one long rationale, one thread.

Ours reads once what the trials of a rationale have in common, and each trial until its decision is
clear. Rivals, on the same student and rationale: a pass over the whole text a trial, which is what
short rationales get, with the same decisions (asserted); and one `generate` a trial, as a judge
that asks for the answer would: of the answer, after the text without the unit, or of all that
follows the unit.

The student is the embedded one, widened to the shape of a small Llama with SmolLM2's vocabulary: it
computes the same function, so it is sure of some tokens and gives up some units, at the cost of the
larger shape. `--student FOLDER` takes any other.

    python benchmarks/bench_skip_search.py [--rounds 3] [--quick] [--student FOLDER]

The table has the tokens read, the rows of logits computed and CPU seconds; a ratio is the median of
the paired ratios of the rounds.
"""

import os

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from cwt.data.example import Example
from cwt.data.tasks import generate_examples
from cwt.skipping import search
from cwt.skipping.criterion import Decision, SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student
from cwt.students.student import Student
from harness import CPU, Work, ratio, timed
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LAYERS, TIMES = 49152, 8, 4  # of the widened student: so many times the width
UNITS, STEPS = 32, 60  # of the rationale: units before the answer, about, and reasoning steps
SAMPLED = 15  # every so many trials are generated; the others are taken to cost as much
NEVER_WRITTEN = -100.0  # nats, of the tokens that the embedded student has not
NEVER = 10**9  # tokens from which on texts are read in pieces

Judge = Callable[[Student, list[Example]], tuple[list[Example], list[Decision]]]
JUDGES: dict[str, Judge] = {
    "forward": find_skips,
    "forward, sure from 0.99": lambda student, some: find_skips(
        student, some, SkipCriterion(min_probability=0.99)
    ),
    "ratified": ratify_skips,
}


def rationale(steps: int = STEPS, units: int = UNITS) -> Example:
    """Returns a generated rationale whose units are paragraphs of several sentences."""
    ((whole,),) = generate_examples("stock", [1], seed=0, steps=steps)
    *middle, answer = whole.units
    size = -(-len(middle) // units)
    joined = ("".join(middle[i : i + size]) for i in range(0, len(middle), size))
    question = "How many apples are left?"
    return replace(whole, question=question, units=(*joined, answer), roles=None)


def widened(times: int = TIMES, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> Student:
    """Returns the embedded student in a larger shape, with the same probabilities.

    States are so many copies of its own, side by side; further layers add nothing; further tokens
    are never written.
    """
    small = load_student("tiny")
    assert isinstance(small, CausalStudent)
    own = small.model.config
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=times * own.hidden_size,
        intermediate_size=times * own.intermediate_size, num_hidden_layers=layers,
        num_attention_heads=times * own.num_attention_heads, head_dim=own.head_dim,
        num_key_value_heads=times * own.num_key_value_heads, rms_norm_eps=own.rms_norm_eps,
        max_position_embeddings=32768, tie_word_embeddings=False,
    )  # fmt: skip
    model, weights = LlamaForCausalLM(config), dict(small.model.state_dict())
    embedded = weights.pop("model.embed_tokens.weight")
    weights.pop("lm_head.weight", None)
    further = vocabulary - len(embedded)
    rows = torch.cat([embedded, embedded[:1].expand(further, -1)]).repeat(1, times)
    large = {"model.embed_tokens.weight": rows, "lm_head.weight": rows / times}
    large["lm_head.bias"] = torch.tensor([0.0] * len(embedded) + [NEVER_WRITTEN] * further)
    model.lm_head = torch.nn.Linear(rows.shape[1], vocabulary)
    for name, weight in weights.items():
        copies = (times,) * weight.dim()
        large[name] = weight.repeat(copies) / (times if weight.dim() == 2 else 1)
    for name, weight in model.state_dict().items():
        if name not in large:  # of a further layer
            idle = name.endswith(("o_proj.weight", "down_proj.weight"))
            large[name] = torch.zeros_like(weight) if idle else weight
    model.load_state_dict(large)
    return CausalStudent(model.eval(), small.tokenizer)


def searched(
    judge: Judge, student: Student, example: Example, given_up: dict[bool, list[int]], shared: bool
) -> None:
    """Runs a search, and adds the units that it gives up."""
    with mock.patch.object(search, "SHARED_FROM", search.SHARED_FROM if shared else NEVER):
        (found,), _ = judge(student, [example])
    given_up[shared] = sorted(set(range(len(example.units))) - found.kept)


def generated(student: Student, example: Example, answer_only: bool) -> None:
    """Lets the student write, for every so many units, as much as comes after the text."""
    item = student.tokenize(example)
    last = len(example.units) - 1
    for unit in example.middle_units[::SAMPLED]:
        rest = range(last, last + 1) if answer_only else range(unit + 1, last + 1)
        before = frozenset(range(rest[0])) - {unit}
        prompt = [*item.prompt, *item.keeping(before | {last}).written.ids]
        prompt = prompt[: len(prompt) - len(item.units[last])]
        tokens = sum(len(item.units[u]) for u in rest)
        ids = torch.tensor([prompt])
        student.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True,
            min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip


class Counts:
    """Counts the tokens that a student reads and the rows of logits that it computes."""

    def __init__(self, student: Student) -> None:
        self.tokens = self.logits = 0
        model: Any = student.model
        model.get_input_embeddings().register_forward_hook(self._read)
        model.get_output_embeddings().register_forward_hook(self._wrote)

    def _read(self, module: object, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        self.tokens += inputs[0].numel()

    def _wrote(self, module: object, inputs: object, output: torch.Tensor) -> None:
        self.logits += output.shape[:-1].numel()

    def taken(self) -> tuple[int, int]:
        """Returns both, and begins anew."""
        found = self.tokens, self.logits
        self.tokens = self.logits = 0
        return found


def compare(student: Student, example: Example, rounds: int) -> None:
    """Prints a line a judge and rival."""
    item, trials = student.tokenize(example), len(example.middle_units)
    print(f"{len(item.prompt) + len(item.written.ids)} tokens, {trials} middle units")
    counts = Counts(student)
    print("| judge | given up | who | tokens | logits | CPU seconds | ours = 1 (quartiles) |")
    print("|-|-|-|-|-|-|-|", flush=True)
    scale = trials / len(example.middle_units[::SAMPLED])
    for name, judge in JUDGES.items():
        given_up: dict[bool, list[int]] = {}
        works = {
            "ours": (1.0, partial(searched, judge, student, example, given_up, True)),
            "a pass a trial": (1.0, partial(searched, judge, student, example, given_up, False)),
        }
        if name == "forward":
            works["generate the answer"] = (scale, partial(generated, student, example, True))
            works["generate what follows"] = (scale, partial(generated, student, example, False))
        seconds: dict[str, list[float]] = {rival: [] for rival in works}
        work: dict[str, list[int]] = {}
        for _ in range(rounds):
            for rival, (times, run) in works.items():
                seconds[rival].append(times * timed(Work(run))[CPU])
                work[rival] = [round(times * n) for n in counts.taken()]
        assert given_up[True] == given_up[False], given_up
        for rival, found in seconds.items():
            x = ratio(found, seconds["ours"])
            print(
                f"| {name} | {len(given_up[True])} of {trials} | {rival} | "
                f"{work[rival][0]:,} | {work[rival][1]:,} | "
                f"{statistics.median(found):.1f} | {x.median:.1f} ({x.low:.1f}..{x.high:.1f}) |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the embedded student as it is")
    parser.add_argument("--student", default="", help="folder or GGUF file in place of the widened")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.student or options.quick:
        student = load_student(options.student or "tiny")
    else:
        student = widened()
    compare(student, rationale(), options.rounds)


if __name__ == "__main__":
    main()
