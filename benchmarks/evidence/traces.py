"""Does the judge cut checks and detours of long think traces, and leave the search alone?

A generator writes traces as reasoning models do: a search with dead ends and going back, checks of
single steps, reminders. The question: some of the numbers add up to a goal; which one completes it?

    python benchmarks/evidence/traces.py --out runs/traces

Writes train.jsonl and test.jsonl (question, rationale, answer) into --out, trains a parent on them,
and prints what the forward judge leaves out of some training traces, by kind, and what that took;
traces.json has the same.
"""

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cwt.config import DataConfig, EvalConfig, RunConfig, TrainConfig
from cwt.data.example import Example
from cwt.files import write_json, write_lines
from cwt.pipeline.run import run
from cwt.pipeline.workspace import Workspace
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.search import search_cost
from cwt.students.load import load_student

PARENT = "FTT-small-batch"
NUMBERS, TAKEN, MOST = 6, 3, 30  # numbers of a question, those of them in the goal, the largest
UNITS = (12, 60)  # sentences of a trace, at least and at most
SIZES = (2000, 300)  # training traces, test questions
# The kinds of sentences: a regular expression of how each begins.
KINDS = {
    "step": r"(Take|Start)",
    "dead end": r"Try",
    "going back": r"Give back",
    "check": r"Check",
    "reminder": r"(Wait|Hmm)",
    "conclusion": r"So ",
}


def search(numbers: list[int], goal: int, rng: random.Random) -> Iterator[str]:
    """Yields the sentences of a depth-first search for numbers that add up to a goal."""
    taken: list[int] = []  # places

    def left() -> int:
        return goal - sum(numbers[i] for i in taken)

    def visit(first: int) -> Iterator[str]:
        for i in range(first, len(numbers)):
            n, before = numbers[i], left()
            if n > before:
                yield f"Try {n}, more than {before}."
                continue
            taken.append(i)
            yield f"Take {n}, {left()} is left."
            if rng.random() < 0.5:
                yield f"Check {before} - {n} = {left()}."
            if left() == 0:
                return
            if rng.random() < 0.2:
                yield rng.choice((f"Wait, the goal is {goal}.", "Hmm, let me think.", "Wait."))
            yield from visit(i + 1)
            if left() == 0:
                return
            taken.pop()
            yield f"Give back {n}, {left()} is left."

    yield f"Start with {goal}."
    yield from visit(0)
    words = " + ".join(str(numbers[i]) for i in taken)
    yield f"So {words} = {goal}."
    yield f"The answer is {numbers[taken[-1]]}."


def trace(rng: random.Random) -> dict[str, str]:
    """Returns a question with its trace and answer."""
    while True:
        numbers = rng.sample(range(2, MOST + 1), NUMBERS)
        goal = sum(rng.sample(numbers, TAKEN))
        *thought, said = search(numbers, goal, rng)
        if UNITS[0] <= len(thought) + 1 <= UNITS[1]:
            listed = ", ".join(map(str, numbers))
            return {
                "question": f"Which of {listed} add up to {goal}?",
                "rationale": f"<think>{' '.join(thought)}</think> {said}",
                "answer": said.split()[-1].rstrip("."),
            }


def make(out: Path, seed: int) -> None:
    """Writes train.jsonl and test.jsonl."""
    rng, known = random.Random(seed), set()
    for name, size in zip(("train", "test"), SIZES, strict=True):
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            row = trace(rng)
            if row["question"] not in known:
                known.add(row["question"])
                rows.append(row)
        write_lines(out / f"{name}.jsonl", rows)


def kind_of(unit: str) -> str:
    """Returns the kind of a sentence."""
    text = unit.replace("<think>", "").strip()
    return next((kind for kind, begin in KINDS.items() if re.match(begin, text)), "answer")


def left_out(shortened: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Returns of each kind how many sentences there are, and how many were left out."""
    there: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for example in shortened:
        for i, unit in enumerate(example.units):
            there[kind_of(unit)] += 1
            gone[kind_of(unit)] += i not in example.kept
    return {kind: {"sentences": n, "left_out": gone[kind]} for kind, n in there.items()}


def configuration(out: Path, seed: int, budget: int) -> RunConfig:
    """Returns the configuration of the run on the traces in a folder."""
    return RunConfig(
        methods=f"answer-only,{PARENT}", seed=seed, cpu=True,
        data=DataConfig(
            file=str(out / "train.jsonl"), eval_file=str(out / "test.jsonl"), thinking="keep",
            train_size=0, test_size=0,
        ),
        train=TrainConfig(budget=budget),
        eval=EvalConfig(latency_questions=0, max_new_tokens=900),
    )  # fmt: skip


def judge(ws: Workspace, count: int) -> dict[str, Any]:
    """Returns what the judge leaves out of the first training traces, and what that took."""
    student = load_student(str(ws.student(PARENT)))
    examples = [e.keeping(None) for e in ws.examples("train")[:count]]
    begin = time.perf_counter()
    shortened, decisions = find_skips(student, examples, SkipCriterion())
    seconds = time.perf_counter() - begin
    tokens = [student.tokenize(e) for e in examples]
    lengths = [sum(map(len, t.units)) for t in tokens]
    return {
        "traces": len(examples), "tokens": sum(lengths), "median_tokens": float(np.median(lengths)),
        "trials": len(decisions), "seconds": seconds, "most": search_cost(tokens),
        "by_kind": left_out(shortened),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/traces"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=1_200_000, help="loss tokens of the parent")
    parser.add_argument("--judged", type=int, default=200, help="traces that the judge reads")
    arguments = parser.parse_args()
    out = arguments.out
    if not (out / "test.jsonl").exists():
        out.mkdir(parents=True, exist_ok=True)
        make(out, arguments.seed)
    config = configuration(out, arguments.seed, arguments.budget)
    report = run(config, out / "run", jobs=1)
    found = judge(Workspace(config, out / "run"), arguments.judged)
    rows = {row["name"]: (row["accuracy"], row["generated_tokens"]) for row in report["methods"]}
    write_json(out / "traces.json", {"rows": rows, **found})
    print(f"{found['trials']} trials in {found['seconds']:.0f} s; at most {found['most']}")
    for kind, n in found["by_kind"].items():
        print(f"{kind}: {n['left_out']} of {n['sentences']} left out")


if __name__ == "__main__":
    main()
