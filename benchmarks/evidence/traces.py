"""Does the judge cut checks and detours of long think traces, and leave the search alone?

A generator writes traces as reasoning models do: a search with dead ends and going back, checks of
single steps, reminders. The question: some of the numbers add up to a goal; which one completes it?

    python benchmarks/evidence/traces.py --out runs/traces

Writes train.jsonl and test.jsonl (question, rationale, answer) into --out, runs the rows of
METHODS on them, and prints what each round left out, by kind; traces.json has that and the table.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwt.config import DataConfig, EvalConfig, RunConfig, TrainConfig
from cwt.files import read_json, write_json, write_lines
from cwt.pipeline.run import run
from cwt.pipeline.workspace import Workspace

PARENT = "FTT-small-batch"
METHODS = f"answer-only,{PARENT},continued,STT-at-once,STT"
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


def left_out(ws: Workspace, student: str) -> dict[str, float]:
    """Returns the share of each kind of sentence that the training of a student left out."""
    there: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    kept_units = read_json(ws.skips(student))["kept_units"]
    for example, kept in zip(ws.examples("train"), kept_units, strict=True):
        for i, unit in enumerate(example.units):
            there[kind_of(unit)] += 1
            gone[kind_of(unit)] += i not in kept
    return {kind: gone[kind] / there[kind] for kind in there}


def rounds(ws: Workspace) -> list[dict[str, Any]]:
    """Returns the rounds of STT-at-once: who decided, its cost, what went, what came of it."""
    found = []
    for path in sorted(ws.out.glob("skips/STT-at-once-round-*.json")):
        record, name = read_json(path), path.stem
        score = read_json(ws.evaluation(name, "validation"))
        found.append({
            "student": name, "judge": record["judge"], "seconds": record["seconds"],
            "left_out": left_out(ws, name), "skipped_share": record["skipped_share"],
            "validation": {key: score[key] for key in ("accuracy", "generated_tokens")},
        })  # fmt: skip
    return found


def configuration(out: Path, seed: int, budget: int) -> RunConfig:
    """Returns the configuration of the run on the traces in a folder."""
    return RunConfig(
        methods=METHODS, seed=seed, cpu=True,
        data=DataConfig(
            file=str(out / "train.jsonl"), eval_file=str(out / "test.jsonl"), thinking="keep",
            train_size=0, test_size=0,
        ),
        train=TrainConfig(budget=budget),
        eval=EvalConfig(latency_questions=0, max_new_tokens=900),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/traces"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=1_200_000, help="loss tokens of the parent")
    arguments = parser.parse_args()
    out = arguments.out
    if not (out / "test.jsonl").exists():
        out.mkdir(parents=True, exist_ok=True)
        make(out, arguments.seed)
    config = configuration(out, arguments.seed, arguments.budget)
    run(config, out / "run", jobs=1)
    ws = Workspace(config, out / "run")
    found = {
        "methods": read_json(ws.report(".json"))["methods"], "rounds": rounds(ws),
        "parent": read_json(ws.evaluation(PARENT, "validation"))["accuracy"],
    }  # fmt: skip
    write_json(out / "traces.json", found)
    for number, r in enumerate(found["rounds"], 1):
        shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in r["left_out"].items())
        print(f"round {number}, {r['judge']}, {r['seconds']:.0f} s: {shares}")


if __name__ == "__main__":
    main()
