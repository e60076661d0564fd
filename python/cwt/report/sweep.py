"""The matrix of tasks x seeds x methods: means, intervals, paired differences."""

import json
import multiprocessing
import os
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import RunConfig
from .errors import UserError
from .files import read_json, read_lines, write_json, write_text
from .methods import PARENT, run_method, selected_methods
from .report import ORDER, diagnostics_table, make_report, read_diagnostics
from .schedule import set_up_worker
from .stages import diagnose_student, make_chunks, make_data
from .tasks import CORE, FILLER, RESTATE, SPARE
from .workspace import open_workspace

# (a, b): the table of differences says by how much a is above b.
PAIRS = (
    ("STT", PARENT), ("STT", "continued"), ("STT", "STT-as-judged"),
    ("STT", "FTT-sentence-dropout"), ("STT", "oracle-skips"), ("literal-skips", "random-skips"),
    ("CWT", "FTT"), ("CWT", "FTT-small-batch"), ("CWT-sentence-dropout", "CWT"),
    ("FTT-sentence-dropout", "FTT-small-batch"), ("CWT-by-index", "CWT"), ("CWT-adaptive", "CWT"),
    ("CWT-sbc", "CWT"),
)  # fmt: skip
LABELS = (CORE, SPARE, RESTATE, FILLER)  # of generated units, in the tables
DIAGNOSED = ("FTT", "FTT-small-batch", "CWT")


def parse_list(text: str, name: str, known: Sequence[str] = ()) -> list[str]:
    """Returns the parts of a comma-separated option.

    Raises:
        UserError: it is empty, or has a part that is not known.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--{name} must name at least one, got {text!r}.")
    for part in parts:
        if known and part not in known:
            raise UserError(f"--{name}: wanted some of {', '.join(known)}, got {part!r}.")
    return parts


def run_matrix(
    config: RunConfig, tasks: Sequence[str], seeds: Sequence[int], out: Path, jobs: int,
    report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Runs what is missing of the matrix and writes evidence.json and evidence.md; returns it.

    Every (task, seed) is a run of its own in out/<task>-<seed>, which goes on where it stopped.

    Args:
        config: of all runs but for task and seed.
        tasks: keys of TASKS.
        seeds: of data, training and controls.
        out: folder.
        jobs: runs side by side, each on its share of the cores.
        report: is told a line for every run that is done.
    """
    cells = [(task, seed) for task in tasks for seed in seeds]
    for task, seed in cells:  # mistakes before hours of work
        open_workspace(replace(config, task=task, seed=seed), out / f"{task}-{seed}")
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, context, set_up_worker, (threads,)) as pool:
        running = {pool.submit(_run_cell, config, *cell, out): cell for cell in cells}
        for future in as_completed(running):
            task, seed = running[future]
            report(f"{task}, seed {seed}: {future.result():.0f} s")
    evidence = collect(config, tasks, seeds, out)
    write_json(out / "evidence.json", evidence)
    write_text(out / "evidence.md", as_markdown(evidence))
    return evidence


def _run_cell(config: RunConfig, task: str, seed: int, out: Path) -> float:
    begin = time.perf_counter()
    ws = open_workspace(replace(config, task=task, seed=seed), out / f"{task}-{seed}")
    make_data(ws)
    make_chunks(ws)
    for name in selected_methods(ws):
        if not (ws.out / "methods" / f"{name}.json").exists():
            run_method(ws, name)
    for name in DIAGNOSED:
        if ws.trained(name):
            diagnose_student(ws, name)
    make_report(ws)
    return time.perf_counter() - begin


def collect(
    config: RunConfig, tasks: Sequence[str], seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """Returns the evidence of finished runs."""
    rows, correct, diagnostics = [], {}, []
    for task in tasks:
        for seed in seeds:
            ws = open_workspace(replace(config, task=task, seed=seed), out / f"{task}-{seed}")
            for row in read_json(ws.out / "report.json")["methods"]:
                rows.append({"task": task, **row})
                marks = read_lines(ws.evaluation(Path(row["student"]).name).with_suffix(".jsonl"))
                correct[task, seed, row["name"]] = (
                    np.array([m["correct"] for m in marks], dtype=float),
                    np.array([m["tokens"] for m in marks], dtype=float),
                )
            diagnostics += [{"task": task, "seed": seed, **d} for d in read_diagnostics(ws)]
    names = [m for m in ORDER if any(row["name"] == m for row in rows)]
    summary = [
        _summary(task, name, [r for r in rows if r["task"] == task and r["name"] == name])
        for task in tasks
        for name in names
    ]
    pairs = dict.fromkeys((a, config.parent if b == PARENT else b) for a, b in PAIRS)
    differences = [
        _difference(task, a, b, [(correct[task, s, a], correct[task, s, b]) for s in seeds])
        for task in tasks
        for a, b in pairs
        if a in names and b in names
    ]
    machine = {"platform": platform.platform(), "cores": len(os.sched_getaffinity(0)),
               "torch": torch.__version__}  # fmt: skip
    return {
        "config": json.loads(json.dumps(vars(config))),
        "tasks": list(tasks), "seeds": list(seeds), "machine": machine,
        "methods": rows, "summary": summary, "differences": differences,
        "diagnostics": diagnostics,
    }  # fmt: skip


def _summary(task: str, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    skipped = [row["skipped_share"] for row in rows if row["skipped_share"] is not None]
    kinds = sorted({k for row in rows for k in row["removal_rates"] or ()})
    return {
        "task": task,
        "name": name,
        "accuracy": mean("accuracy"),
        "accuracies": [row["accuracy"] for row in rows],
        "generated_tokens": mean("generated_tokens"),
        "seconds_per_answer": mean("seconds_per_answer"),
        "loss_tokens": mean("loss_tokens"),
        "processed_tokens": mean("processed_tokens"),
        "optimizer_steps": mean("optimizer_steps"),
        "skipped_share": sum(skipped) / len(skipped) if skipped else None,
        "removal_rates": {
            kind: sum((row["removal_rates"] or {}).get(kind, 0.0) for row in rows) / len(rows)
            for kind in kinds
        },
    }


Marks = tuple[np.ndarray, np.ndarray]  # (questions,) right or not, tokens written


def _difference(task: str, a: str, b: str, seeds: Sequence[tuple[Marks, Marks]]) -> dict[str, Any]:
    """Returns a - b on the same questions, with a 95 % bootstrap over seeds and then questions."""
    accuracy = np.stack([x[0] - y[0] for x, y in seeds])
    n_seeds, n = accuracy.shape
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, n_seeds, (4000, n_seeds, 1))
    draws = accuracy[chosen, rng.integers(0, n, (4000, n_seeds, n))].mean((1, 2))
    tokens = [x[1].mean() / y[1].mean() - 1 for x, y in seeds]
    return {
        "task": task,
        "a": a,
        "b": b,
        "accuracy": float(np.mean([d.mean() for d in accuracy])),
        "accuracy_interval": [float(v) for v in np.percentile(draws, [2.5, 97.5])],
        "by_seed": [float(d.mean()) for d in accuracy],
        "tokens": float(np.mean(tokens)),
        "tokens_by_seed": [float(t) for t in tokens],
    }


def as_markdown(evidence: dict[str, Any]) -> str:
    """Returns the evidence as a page of tables, led by the command that makes it again."""
    c, seeds = evidence["config"], ", ".join(map(str, evidence["seeds"]))
    machine, spent = evidence["machine"], sum(r["train_seconds"] for r in evidence["methods"])
    lines = [
        "# Evidence", "",
        *textwrap.wrap(
            _command(evidence), 100, initial_indent="    ", subsequent_indent="      ",
            break_long_words=False, break_on_hyphens=False,
        ), "",
        f"{machine['platform']}, torch {machine['torch']}, {machine['cores']} cores, one run on "
        f"each; {spent / 3600:.1f} hours of training, a parent counted for each row that goes on "
        "from it.", "",
        f"Student {c['student']}, {c['train_size']} training and {c['test_size']} test questions, "
        f"{c['budget']} {c['budget_unit'].replace('_', ' ')} a method, seeds {seeds}; STT and its "
        f"controls go on from {c['parent']}. Accuracy: mean of the seeds, each in brackets. "
        "Differences: on the same questions, 95 % by bootstrap over seeds, then "
        f"questions; with {len(evidence['seeds'])} seeds such an interval is rough.", "",
    ]  # fmt: skip
    for task in evidence["tasks"]:
        lines += [f"## {task}", "", *_method_table(evidence, task), ""]
        diagnosed = [d for d in evidence["diagnostics"] if d["task"] == task]
        lines += [*_difference_table(evidence, task), "", *diagnostics_table(diagnosed), ""]
    return "\n".join(lines)


def _command(evidence: dict[str, Any]) -> str:
    default = vars(RunConfig())
    chosen = {k: v for k, v in evidence["config"].items() if v != default[k]}
    flags = {
        "tasks": ",".join(evidence["tasks"]), "seeds": ",".join(map(str, evidence["seeds"])),
        **{name: value for name, value in chosen.items() if name not in ("task", "seed")},
    }  # fmt: skip
    return " ".join(["cwt evidence", *(f"--{name} {value}" for name, value in flags.items())])


def _method_table(evidence: dict[str, Any], task: str) -> list[str]:
    lines = [
        f"| method | accuracy % | tokens written | {' / '.join(LABELS)} left out % | loss tokens | "
        "processed tokens |",
        "|---|---|---|---|---|---|",
    ]
    for row in evidence["summary"]:
        if row["task"] != task:
            continue
        by_seed = ", ".join(f"{100 * a:.1f}" for a in row["accuracies"])
        rates = row["removal_rates"]
        shares = [f"{100 * rates[k]:.1f}" if k in rates else "-" for k in LABELS]
        left = " / ".join(shares) if rates else "-"
        lines.append(
            f"| {row['name']} | {100 * row['accuracy']:.1f} ({by_seed}) | "
            f"{row['generated_tokens']:.1f} | {left} | {row['loss_tokens']:.0f} | "
            f"{row['processed_tokens']:.0f} |"
        )
    return lines


def _difference_table(evidence: dict[str, Any], task: str) -> list[str]:
    lines = ["| a against b | accuracy, points | 95 % | tokens |", "|---|---|---|---|"]
    for d in evidence["differences"]:
        if d["task"] != task:
            continue
        low, high = d["accuracy_interval"]
        lines.append(
            f"| {d['a']} against {d['b']} | {100 * d['accuracy']:+.1f} | "
            f"{100 * low:+.1f} .. {100 * high:+.1f} | {100 * d['tokens']:+.0f} % |"
        )
    return lines
