"""When does skip-thinking training (STT) harm, and which rule prevents that?

Runs cells (task, budget, seed): the parent, `continued`, `STT-at-once` (skips whatever the student
has learned) and `STT` (waits until the student is ready, and may decline). Then it scores every
student that a rule could end with on the test questions, so that rules can be compared that were
not run. Rules decide on validation questions, one also on training questions; the tables have what
that gives on test questions.

    python benchmarks/evidence/readiness.py --out runs/readiness --jobs 14 --cpu

A cell that is done is not run again. Writes readiness.json and readiness.md into --out.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from cwt.config import SkipConfig
from cwt.evaluation.statistics import paired_difference
from cwt.pipeline.choice import Answers, admitted, best_candidate

Cell = tuple[str, int, int]  # task, budget in loss tokens, seed

CELLS: tuple[Cell, ...] = (
    *(
        ("stock", budget, seed)
        for budget in (800_000, 400_000, 200_000, 100_000, 50_000)
        for seed in (0, 1)
    ),
    *(("arithmetic", budget, seed) for budget in (400_000, 100_000, 50_000) for seed in (0, 1)),
    *(("objects", budget, seed) for budget in (400_000, 100_000, 50_000) for seed in (0, 1)),
    *(("coin", budget, seed) for budget in (100_000, 50_000) for seed in (0, 1)),
    *(("letters", budget, seed) for budget in (100_000, 50_000) for seed in (0, 1)),
)
PARENT, CONTINUED = "FTT-small-batch", "continued"
WHOLE = (CONTINUED, PARENT)  # skip nothing
READY = 0.1  # the skill that STT waits for in these cells
VALIDATION, TRAINING = 100, 300  # questions that students are asked, beside the test
ASKED = ((25, 0), (50, 0), (100, 0), (25, 275), (50, 250), (100, 200))
MAX_RISK = SkipConfig().max_risk / 100
DRAWS = 200  # of so many questions, from those that were asked


def run_cell(cell: Cell, out: Path, cpu: bool) -> dict[str, Any]:
    """Returns what a cell gives, trained and scored where that is new; writes cell.json."""
    import torch
    from cwt.config import DataConfig, EvalConfig, RunConfig, TrainConfig
    from cwt.files import read_json, write_json
    from cwt.pipeline.run import run
    from cwt.students.load import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    task, budget, seed = cell
    folder = out / f"{task}-{budget}-{seed}"
    if (folder / "cell.json").exists():
        return dict(read_json(folder / "cell.json"))
    config = RunConfig(
        methods=f"{PARENT},{CONTINUED},STT-at-once,STT", seed=seed, cpu=cpu,
        data=DataConfig(task=task), train=TrainConfig(budget=budget),
        skip=SkipConfig(ready_skill=READY, choice_questions=VALIDATION + TRAINING),
        eval=EvalConfig(latency_questions=0),
    )  # fmt: skip
    run(config, folder, jobs=1)
    found = scored(folder)
    write_json(folder / "cell.json", {"task": task, "budget": budget, "seed": seed, **found})
    return dict(read_json(folder / "cell.json"))


def scored(folder: Path) -> dict[str, Any]:
    """Returns every student of a run on validation and test questions, and the parent's signals."""
    from cwt.files import read_json, read_lines
    from cwt.pipeline.choice import readiness
    from cwt.pipeline.stages import evaluate_student
    from cwt.pipeline.workspace import open_workspace, saved_config

    config = saved_config(folder)
    assert config is not None
    ws = open_workspace(config, folder)
    students: dict[str, Any] = {}
    for path in sorted((folder / "students").iterdir()):
        if not ws.trained(path.name):
            continue
        record: dict[str, Any] = {}
        for part in ("validation", "train", "test"):
            score = evaluate_student(ws, path.name, part)
            marks = [int(row["correct"]) for row in read_lines(ws.generations(path.name, part))]
            record[part] = {key: score[key] for key in ("accuracy", "generated_tokens")}
            record[part]["marks"] = "".join(map(str, marks))
        skips = ws.skips(path.name)
        record["judge"] = read_json(skips)["judge"] if skips.exists() else None
        students[path.name] = record
    rows = {row["name"]: row for row in read_json(ws.report(".json"))["methods"]}
    return {
        "skill": readiness(ws, PARENT).skill,
        "signals": signals(ws),
        "students": students,
        "chosen": {name: Path(row["student"]).name for name, row in rows.items()},
        "why": rows["STT"]["choice"],
        "total_loss_tokens": {name: row["total_loss_tokens"] for name, row in rows.items()},
    }


def signals(ws: Any) -> dict[str, float]:
    """Returns other signals of a parent's readiness, from a pass over validation rationales.

    answer_known: share of rationales whose answer's value is the arg-max, token by token.
    sure: share of tokens that are the arg-max with p >= 0.9; the first of a unit does not count.
    """
    from cwt.pipeline.stages import open_student
    from cwt.skipping.scoring import answer_value, score_tokens

    student = open_student(ws, PARENT)
    examples = [student.tokenize(e) for e in ws.examples("validation")]
    scores = score_tokens(student, examples, 32)
    values = [answer_value(x) for x in examples]
    known = [all(s[place][0] for place in v) for s, v in zip(scores, values, strict=True)]
    sure = [right and p >= 0.9 for s in scores for (_, at), (right, p) in s.items() if at > 0]
    return {"answer_known": float(np.mean(known)), "sure": float(np.mean(sure))}


# Rules, applied to what was measured: which student would STT have ended with?

Rule = Callable[[dict[str, Any], Sequence[str]], str]


def as_now(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The rule of STT, with validation and training questions."""
    return chosen_by(cell, _both(cell, names))


def at_any_risk(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The same without the limit of the risk."""
    return chosen_by(cell, _both(cell, names), max_risk=1.0)


def chosen_by(
    cell: dict[str, Any],
    marks: dict[str, tuple[np.ndarray, np.ndarray]],
    max_risk: float = MAX_RISK,
) -> str:
    """The rule of STT, given which validation and training questions every student has right."""
    answers = {
        name: Answers(*both, cell["students"][name]["validation"]["generated_tokens"])
        for name, both in marks.items()
    }
    return best_candidate(admitted(answers, WHOLE, 0.0, max_risk)).student


def _both(cell: dict[str, Any], names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns which validation and which training questions every student has right."""
    return {name: (_marks(cell, name, "validation"), _marks(cell, name, "train")) for name in names}


def _marks(cell: dict[str, Any], name: str, part: str) -> np.ndarray:
    return np.array([float(mark) for mark in cell["students"][name][part]["marks"]])


def strict(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The best validation accuracy wins; among equals the fewest tokens."""
    scores = {name: cell["students"][name]["validation"] for name in names}
    return min(names, key=lambda n: (-scores[n]["accuracy"], scores[n]["generated_tokens"]))


def paired(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The fewest tokens among all that a paired test does not put behind the best."""
    best = strict(cell, names)
    level = [name for name in names if not is_behind(cell, name, best)]
    return min(level, key=lambda name: cell["students"][name]["validation"]["generated_tokens"])


def paired_with_whole(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The best round by `strict`, unless a paired test puts it behind one that skips nothing."""
    return best_round(cell, names, lambda r: any(is_behind(cell, r, name) for name in WHOLE))


def two_points(cell: dict[str, Any], names: Sequence[str]) -> str:
    """The best round by `strict`, unless one that skips nothing is over 2 points more accurate."""
    accuracy = {name: cell["students"][name]["validation"]["accuracy"] for name in names}
    limit = max(accuracy[name] for name in names if name in WHOLE) - 0.02 - 1e-9
    return best_round(cell, names, lambda r: accuracy[r] < limit)


def best_round(cell: dict[str, Any], names: Sequence[str], refused: Callable[[str], bool]) -> str:
    """The best round by `strict`; where it is refused, the best student that skips nothing."""
    rounds = [name for name in names if name not in WHOLE]
    best = strict(cell, rounds) if rounds else None
    if best is not None and not refused(best):
        return best
    return strict(cell, [name for name in names if name in WHOLE])


def is_behind(cell: dict[str, Any], name: str, other: str) -> bool:
    """Whether the paired 95 % interval of the other's lead on validation questions is above 0."""
    marks = [[_marks(cell, n, "validation")] for n in (other, name)]
    return paired_difference(*marks).interval[0] > 0


RULES: dict[str, Rule] = {
    "as it is": as_now, "at any risk": at_any_risk, "strict": strict, "paired": paired,
    "paired with whole": paired_with_whole, "two points": two_points,
}  # fmt: skip


def skipping_rounds(cell: dict[str, Any], method: str) -> list[str]:
    """Returns the rounds of a row that left something out, in order."""
    students = cell["students"]
    names = [name for name in students if name.startswith(f"{method}-round-")]
    return [name for name in names if students[name]["judge"] != "none"]


def outcome(cell: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Returns (test accuracy, its lead over `continued`, tokens over those of the parent)."""
    test = {n: s["test"] for n, s in cell["students"].items()}
    accuracy = test[name]["accuracy"]
    saved = test[name]["generated_tokens"] / test[PARENT]["generated_tokens"]
    return accuracy, accuracy - test[CONTINUED]["accuracy"], saved


def rule_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns one line a rule: its worst and mean lead over `continued`, and the tokens it takes.

    `at once` chooses among the rounds of STT-at-once, `continued` and the parent, `waits` among
    those of STT and the same two.
    """
    lines = [
        "| begins | choice | worst lead over continued | mean lead "
        "| cells more than 2 points behind "
        "| tokens over the parent's, where the parent answers 70 % or more |",
        "|---|---|---|---|---|---|",
    ]
    for begins, method in (("at once", "STT-at-once"), ("waits", "STT")):
        for title, rule in RULES.items():
            found = [outcome(c, rule(c, [*skipping_rounds(c, method), *WHOLE])) for c in cells]
            leads = [100 * lead for _, lead, _ in found]
            learned = [
                saved
                for c, (_, _, saved) in zip(cells, found, strict=True)
                if c["students"][PARENT]["test"]["accuracy"] >= 0.7
            ]
            shorter = f"{np.mean(learned):.2f} ({max(learned):.2f} at most)" if learned else "-"
            lines.append(
                f"| {begins} | {title} | {min(leads):+.1f} | {np.mean(leads):+.1f} "
                f"| {sum(lead < -2 for lead in leads)} of {len(cells)} | {shorter} |"
            )
    return lines


def question_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for every number of questions asked: what the choice gives on the test.

    The questions are drawn from those that were asked; the lead over `continued` is on all test
    questions.
    """
    lines = [
        "| validation questions | training questions | risk, at most | mean lead over continued "
        "| worst cell, mean of its choices | choices more than 2 points behind "
        "| ends with a round |",
        "|---|---|---|---|---|---|---|",
    ]
    for limit, (held_out, trained) in itertools.product((1.0, MAX_RISK), ASKED):
        rng = np.random.default_rng(0)
        each = [_choices(cell, held_out, trained, limit, rng) for cell in cells]
        leads = 100 * np.array([[lead for lead, _ in choices] for choices in each])
        rounds = np.mean([[skips for _, skips in choices] for choices in each])
        behind = (leads < -2).mean()
        lines.append(
            f"| {held_out} | {trained} | {'any' if limit == 1 else f'{100 * limit:g} points'} "
            f"| {leads.mean():+.1f} | {leads.mean(1).min():+.1f} "
            f"| {100 * behind:.1f} % | {100 * rounds:.0f} % |"
        )
    return lines


def _choices(
    cell: dict[str, Any], held_out: int, trained: int, limit: float, rng: np.random.Generator
) -> list[tuple[float, bool]]:
    """Returns the lead over `continued` of every choice, and whether it is a round."""
    names = [*skipping_rounds(cell, "STT-at-once"), *WHOLE]
    marks = _both(cell, names)
    asked = [len(m) for m in marks[PARENT]]
    found = []
    for _ in range(DRAWS):
        v, t = (rng.choice(n, k, False) for n, k in zip(asked, (held_out, trained), strict=True))
        drawn = {n: (a[v], b[t]) for n, (a, b) in marks.items()}
        chosen = chosen_by(cell, drawn, limit)
        found.append((outcome(cell, chosen)[1], chosen not in WHOLE))
    return found


def cell_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns one line a cell: test accuracy and tokens of every row, and the parent's signals.

    STT is as it is now: it begins at once, and ends by the first of the rules.
    """
    lines = [
        "| task | budget | seed | skill on validation | answer known | sure | parent | continued "
        "| STT-at-once | STT that waits | STT | STT ended with |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        rounds = {m: skipping_rounds(c, m) for m in ("STT-at-once", "STT")}
        chosen = as_now(c, [*rounds["STT-at-once"], *WHOLE])
        names = (
            PARENT, CONTINUED, strict(c, rounds["STT-at-once"]),
            strict(c, [*rounds["STT"], *WHOLE]), chosen,
        )  # fmt: skip
        tests = [c["students"][name]["test"] for name in names]
        shown = [f"{100 * t['accuracy']:.1f} / {t['generated_tokens']:.0f}" for t in tests]
        ended = chosen.replace("STT-at-once-", "").replace(PARENT, "the parent")
        lines.append(
            f"| {c['task']} | {c['budget']:,} | {c['seed']} | {c['skill']:.2f} "
            f"| {c['signals']['answer_known']:.2f} | {c['signals']['sure']:.2f} "
            f"| {' | '.join(shown)} | {ended} |"
        )
    return lines


def write(cells: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes readiness.json and readiness.md."""
    from cwt.files import write_json, write_text

    cells = sorted(cells, key=lambda c: (c["task"], c["budget"], c["seed"]))
    write_json(out / "readiness.json", cells)
    lines = [
        "Accuracy % / tokens an answer, on test questions.", "", *cell_lines(cells), "",
        "Rules, applied to all cells:", "", *rule_lines(cells), "",
        "Fewer or other questions:", "", *question_lines(cells),
    ]  # fmt: skip
    write_text(out / "readiness.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/readiness"))
    parser.add_argument("--jobs", type=int, default=2, help="cells side by side")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--cells", default="", help="task:budget:seed,...; by default all of CELLS")
    arguments = parser.parse_args()
    cells = CELLS
    if arguments.cells:
        parts = [text.split(":") for text in arguments.cells.split(",")]
        cells = tuple((task, int(budget), int(seed)) for task, budget, seed in parts)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        asked = {
            pool.submit(run_cell, c, arguments.out, arguments.cpu): c
            for c in (cells if arguments.cells else sorted(cells, key=lambda c: -c[1]))
        }
        for done in as_completed(asked):
            found.append(done.result())
            print(f"{len(found)} of {len(cells)}: {asked[done]}", flush=True)
            write(found, arguments.out)


if __name__ == "__main__":
    main()
