"""What does skip-thinking training (STT) leave out of long think traces, and at what cost?

A generator writes traces as reasoning models do: it follows six to nine gifts, takes a wrong one up
and goes back, makes sums that a check finds wrong, checks right ones, reminds itself. The question
is that of the generated task `arithmetic`.

    python benchmarks/evidence/traces.py --out runs/traces

Writes train.jsonl and test.jsonl (question, rationale, answer) into --out, runs the rows of METHODS
on them, and collects what every row and every round of STT left out, by kind, and what deciding
took: traces.json, a list over budgets and seeds. A cell that is done is not run again. With that
file beside this one, page.py puts its tables on the page of the evidence.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwt.config import DataConfig, EvalConfig, RunConfig, TrainConfig
from cwt.data.example import Example
from cwt.data.tasks import ITEMS, NAMES
from cwt.files import read_json, read_lines, write_json, write_lines
from cwt.pipeline.run import run
from cwt.pipeline.stages import evaluate_student
from cwt.pipeline.workspace import Workspace
from cwt.report.table import markdown_table
from cwt.students.load import quiet_libraries

METHODS = "answer-only,FTT-small-batch,continued,STT"
STEPS = (6, 9)  # gifts of a question, at least and at most
LARGEST = 49  # of all numbers
SIZES = (700, 300)  # training traces, a seventh of them for validation; test questions

# The kinds of sentences: a regular expression of how each begins. Sums are told apart by whether
# they are right; a right one that follows "Maybe" belongs to a detour.
KINDS = {
    "start": r"At the start",
    "sum": r"With",
    "check that holds": r"Check: .*, good\.",
    "check that fails": r"(Check|That is wrong)",
    "detour": r"(Maybe|No, )",
    "reminder": r"(Wait|Hmm)",
    "conclusion": r"So ",
}
RIGHT, WRONG = "right sum", "wrong sum"
KEPT = ("skipped_share", "total_loss_tokens", "total_train_seconds", "skip_seconds", "choice")
SHOWN = (
    RIGHT, WRONG, "check that fails", "detour", "check that holds", "reminder", "start",
    "conclusion",
)  # fmt: skip
_SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def think(events: Sequence[tuple[str, int]], value: int, rng: random.Random) -> Iterator[str]:
    """Yields the sentences of a trace that follows gifts (who, how many more), after the first."""
    for i, (name, amount) in enumerate(events):
        sign, back = ("+", "-") if amount > 0 else ("-", "+")
        size, after = abs(amount), value + amount
        if i + 1 < len(events) and rng.random() < 0.2:
            other, more = events[i + 1]
            if 0 < value + more <= LARGEST:
                sum_ = f"{value} {'+' if more > 0 else '-'} {abs(more)} = {value + more}"
                yield f"Maybe {other} is next, {sum_}."
                yield f"No, {name} is next, back to {value}."
        if rng.random() < 0.2:
            wrong = after + rng.choice((-1, 1))
            was = wrong - amount
            yield f"With {name}, {value} {sign} {size} = {wrong}."
            yield f"Check: {wrong} {back} {size} = {was}, not {value}."
            yield "That is wrong, once more."
        yield f"With {name}, {value} {sign} {size} = {after}."
        if rng.random() < 0.5:
            yield f"Check: {after} {back} {size} = {value}, good."
        if rng.random() < 0.2:
            yield rng.choice(("Wait, let me read it again.", "Hmm, let me think.", "Wait."))
        value = after


def trace(rng: random.Random) -> dict[str, str]:
    """Returns a question with its trace and answer."""
    steps = rng.randint(*STEPS)
    hero, *others = rng.sample(NAMES, steps + 1)
    item, first = rng.choice(ITEMS), rng.randint(5, 30)
    question, events, value = [f"{hero} has {first} {item}."], [], first
    for other in others:
        amount = rng.randint(1, 9) * rng.choice((-1, 1))
        if not 1 < value + amount < LARGEST:
            amount = -amount
        value += amount
        events.append((other, amount))
        said = f"gives {amount} more" if amount > 0 else f"takes {-amount} away"
        question.append(f"{other} {said}.")
    question.append(f"How many {item} does {hero} have?")
    thought = [f"At the start {hero} has {first} {item}.", *think(events, first, rng)]
    thought.append(f"So {hero} has {value} {item} in the end.")
    return {
        "question": " ".join(question),
        "rationale": f"<think>{' '.join(thought)}</think> The answer is {value}",
        "answer": str(value),
    }


def make(out: Path, seed: int) -> None:
    """Writes train.jsonl and test.jsonl; no question stands in both."""
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
    kind = next((kind for kind, begin in KINDS.items() if re.match(begin, text)), "answer")
    if kind != "sum":
        return kind
    found = _SUM.search(text)
    assert found is not None, text
    a, b, c = (int(found[i]) for i in (1, 3, 4))
    return RIGHT if (a + b if found[2] == "+" else a - b) == c else WRONG


def left_out(examples: Sequence[Example]) -> dict[str, Any]:
    """Returns of each kind how many sentences there are and how many were left out.

    uncorrected: wrong sums that stay although a sentence of their correction was left out.
    broken: traces that lack a right sum.
    """
    there: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    uncorrected = broken = 0
    for example in examples:
        kinds = [kind_of(unit) for unit in example.units]
        there.update(kinds)
        lost = [kinds[i] for i in range(len(kinds)) if i not in example.kept]
        gone.update(lost)
        broken += RIGHT in lost
        for i, kind in enumerate(kinds):
            if kind == WRONG and i in example.kept:
                uncorrected += not {i + 1, i + 2, i + 3} <= set(example.kept)
    kinds = {kind: {"sentences": n, "left_out": gone[kind]} for kind, n in there.items()}
    return {"kinds": kinds, "uncorrected": uncorrected, "broken": broken}


def configuration(out: Path, seed: int, budget: int) -> RunConfig:
    """Returns the configuration of the run on the traces in a folder."""
    return RunConfig(
        methods=METHODS, seed=seed, cpu=True,
        data=DataConfig(
            file=str(out / "train.jsonl"), eval_file=str(out / "test.jsonl"), thinking="keep",
            train_size=0, test_size=0,
        ),
        train=TrainConfig(budget=budget),
        eval=EvalConfig(latency_questions=0, max_new_tokens=700),
    )  # fmt: skip


def collect(ws: Workspace, report: dict[str, Any]) -> dict[str, Any]:
    """Returns what every student of a run answers, what was left out for it, and what that took."""
    examples, chunks = ws.examples("train"), read_json(ws.chunks_record)
    students, rounds = {}, []
    for path in sorted(ws.out.glob("students/*/train.json")):
        name = path.parent.name
        score = evaluate_student(ws, name)
        right = [int(row["correct"]) for row in read_lines(ws.generations(name))]
        students[name] = {
            "accuracy": score["accuracy"], "generated_tokens": score["generated_tokens"],
            "marks": "".join(map(str, right)),
        }  # fmt: skip
        record = read_json(ws.skips(name)) if ws.skips(name).exists() else {"judge": "none"}
        if record["judge"] == "none":
            continue
        rounds.append({
            "name": name, **{key: record[key] for key in ("judge", "seconds", "skipped_share")},
            "decisions": len(read_lines(ws.decisions(name))),
            **left_out(ws.with_skips(examples, name)),
        })  # fmt: skip
    rows = {
        row["name"]: {"student": Path(row["student"]).name, **{key: row.get(key) for key in KEPT}}
        for row in report["methods"]
    }
    return {
        "budget": ws.config.train.budget, "seed": ws.config.seed, "traces": len(examples),
        "sentences": sum(len(e.units) for e in examples), "lengths": chunks["lengths"],
        "search": chunks["search"], "rows": rows, "students": students, "rounds": rounds,
    }  # fmt: skip


def cell_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line a run: accuracy and tokens of its students, and what STT ended with."""
    lines = []
    for cell in cells:
        rounds = sorted(name for name in cell["students"] if name.startswith("STT-round-"))
        names = [*METHODS.split(",")[:-1], *rounds]
        found = [cell["students"][name] for name in names]
        shown = [f"{100 * s['accuracy']:.1f} / {s['generated_tokens']:.0f}" for s in found]
        ended = cell["rows"]["STT"]["student"].removeprefix("STT-")
        ended = "the parent" if ended == "FTT-small-batch" else ended
        lines.append([f"{cell['budget']:,}", str(cell["seed"]), *shown, ended])
    titles = ["budget", "seed", "`answer-only`", "parent", "`continued`",
              *(f"round {n} of STT" for n in range(1, 5)), "STT ended with"]  # fmt: skip
    return markdown_table(titles, lines)


def kind_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line a round, over all runs: the share of each kind that was left out."""
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for cell in cells:
        for r in cell["rounds"]:
            if r["skipped_share"]:
                found.setdefault(r["name"], []).append((cell, r))
    lines = []
    for name, own in found.items():
        kinds = [r["kinds"] for _, r in own]
        shares = [
            sum(k[kind]["left_out"] for k in kinds) / sum(k[kind]["sentences"] for k in kinds)
            for kind in SHOWN
        ]
        wrong = sum(k[WRONG]["sentences"] for k in kinds)
        shares.append(sum(r["uncorrected"] for _, r in own) / wrong)
        shares.append(sum(r["broken"] for _, r in own) / sum(cell["traces"] for cell, _ in own))
        lines.append([
            f"`{name}`", own[0][1]["judge"], *(f"{100 * share:.0f}" for share in shares),
            str(len(own)),
        ])  # fmt: skip
    titles = ["trained on what is left", "who decides", *(f"{kind} %" for kind in SHOWN),
              "wrong sums without their correction %", "traces that lack a right sum %",
              "runs"]  # fmt: skip
    return markdown_table(titles, lines)


def run_cell(out: Path, budget: int, seed: int, jobs: int) -> None:
    """Runs what is missing of a cell; writes cell.json."""
    folder = out / f"{budget}-{seed}"
    if not (folder / "test.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, seed)
    config = configuration(folder, seed, budget)
    report = run(config, folder / "run", jobs=jobs)
    write_json(folder / "cell.json", collect(Workspace(config, folder / "run"), report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/traces"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default="800000,1600000", help="loss tokens of the parent")
    parser.add_argument("--jobs", type=int, default=1, help="rows trained side by side")
    arguments = parser.parse_args()
    quiet_libraries()
    for budget in map(int, arguments.budgets.split(",")):
        for seed in map(int, arguments.seeds.split(",")):
            run_cell(arguments.out, budget, seed, arguments.jobs)
            cells = [read_json(path) for path in arguments.out.glob("*/cell.json")]
            cells.sort(key=lambda cell: (cell["budget"], cell["seed"]))
            write_json(arguments.out / "traces.json", cells)
            print("\n".join([*cell_lines(cells), "", *kind_lines(cells)]), flush=True)


if __name__ == "__main__":
    main()
