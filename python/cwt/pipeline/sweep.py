"""A sweep: tasks x seeds x methods, one run for every (task, seed); means and differences."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.evaluation.statistics import paired_difference
from cwt.files import read_json, read_lines, write_json, write_text
from cwt.pipeline.methods import METHODS, comparisons
from cwt.pipeline.parallel import run_all, usable_cores
from cwt.pipeline.results import read_diagnostics
from cwt.pipeline.run import run, write_reports
from cwt.pipeline.stages import diagnose_student, measure_latency
from cwt.pipeline.workspace import Workspace, open_workspace
from cwt.progress import Progress, Watch
from cwt.report.sweep import as_markdown


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


def sweep(
    config: RunConfig,
    tasks: Sequence[str],
    seeds: Sequence[int],
    out: Path | str,
    jobs: int = 0,
    watch: Watch = lambda name, share, text: None,
) -> dict[str, Any]:
    """Runs what is missing of a sweep; writes sweep.json, which it returns, and sweep.md.

    Every (task, seed) is a run of its own in out/<task>-<seed>, which goes on where it stopped.

    Args:
        config: the configuration of all runs, except task and seed.
        tasks: keys of TASKS.
        seeds: each decides the data, the order of training and the random controls of a run.
        out: folder of the sweep.
        jobs: how many runs go side by side, each on its share of the cores; 0: one a core.
        watch: called with the name of a run, its share done, and what is being done.

    Raises:
        UserError: a folder holds another run, or the configuration has a data file.
    """
    out = Path(out)
    if config.data.file:
        raise UserError("sweep: takes generated tasks; --data is for `cwt run`.")
    names = [f"{task}-{seed}" for task in tasks for seed in seeds]
    for name in names:  # mistakes before hours of work
        _cell(config, name, out)
    run_all(
        dict.fromkeys(names, ()), partial(_run_cell, config, out), jobs or usable_cores(), watch
    )
    for name in names:  # alone, so that nothing runs beside what is measured
        _measure(_cell(config, name, out))
    found = collect(config, tasks, seeds, out)
    write_json(out / "sweep.json", found)
    write_text(out / "sweep.md", as_markdown(found, _command(found)))
    return found


def _cell(config: RunConfig, name: str, out: Path) -> Workspace:
    task, seed = name.rsplit("-", 1)
    data = replace(config.data, task=task)
    return open_workspace(replace(config, data=data, seed=int(seed)), out / name)


def _run_cell(config: RunConfig, out: Path, name: str, progress: Progress) -> None:
    begin = time.perf_counter()
    ws = _cell(config, name, out)
    # Latency is measured when nothing runs beside it.
    quick = replace(ws.config, eval=replace(ws.config.eval, latency_questions=0))
    done: dict[str, float] = {}

    def watch(row: str, share: float, text: str) -> None:
        done[row] = share
        progress(0.95 * sum(done.values()) / (len(METHODS) + 2), f"{row} {text}")

    run(quick, ws.out, jobs=1, watch=watch)
    for method in METHODS.values():
        if method.diagnosed and ws.trained(method.name):
            diagnose_student(ws, method.name)
    progress(1.0, f"{time.perf_counter() - begin:.0f} s")


def _measure(ws: Workspace) -> None:
    with ws.locked():
        for method in METHODS.values():
            if ws.method(method.name).exists():
                measure_latency(ws, ws.student_of(method.name))
        write_reports(ws)


def collect(
    config: RunConfig, tasks: Sequence[str], seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """Returns the figures of finished runs, their means and their differences."""
    rows: list[dict[str, Any]] = []
    marks: dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]] = {}
    diagnostics: list[dict[str, Any]] = []
    for task in tasks:
        for seed in seeds:
            ws = _cell(config, f"{task}-{seed}", out)
            for row in read_json(ws.report(".json"))["methods"]:
                rows.append({"task": task, **row})
                marks[task, seed, row["name"]] = _marks(ws, Path(row["student"]).name)
            diagnostics += [{"task": task, "seed": seed, **d} for d in read_diagnostics(ws)]
    names = [name for name in METHODS if any(row["name"] == name for row in rows)]
    summary = [
        _summary(task, name, [r for r in rows if r["task"] == task and r["name"] == name])
        for task in tasks
        for name in names
    ]
    differences = [
        _difference(task, a, b, [(marks[task, s, a], marks[task, s, b]) for s in seeds])
        for task in tasks
        for a, b in comparisons(config, names)
    ]
    return {
        "config": json.loads(json.dumps(asdict(config))),
        "tasks": list(tasks),
        "seeds": list(seeds),
        "machine": {
            "platform": platform.platform(),
            "cores": usable_cores(),
            "torch": torch.__version__,
        },
        "methods": rows,
        "summary": summary,
        "differences": differences,
        "diagnostics": diagnostics,
    }


def _marks(ws: Workspace, student: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (right or not, tokens written), each (questions,)."""
    rows = read_lines(ws.generations(student))
    return (
        np.array([row["correct"] for row in rows], dtype=float),
        np.array([row["tokens"] for row in rows], dtype=float),
    )


_MEANS = (
    "accuracy", "generated_tokens", "seconds_per_answer", "loss_tokens", "processed_tokens",
    "optimizer_steps", "total_loss_tokens", "total_processed_tokens",
)  # fmt: skip


def _summary(task: str, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the means of a row over the seeds."""

    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    rates = [row["removal_rates"] or {} for row in rows]
    return {
        "task": task,
        "name": name,
        **{key: mean([row[key] for row in rows]) for key in _MEANS},
        "accuracies": [row["accuracy"] for row in rows],
        "latency_seconds": mean([v for r in rows if (v := r["latency_seconds"]) is not None]),
        "skipped_share": mean([v for r in rows if (v := r["skipped_share"]) is not None]),
        "removal_rates": {
            role: sum(r.get(role, 0.0) for r in rates) / len(rows)
            for role in sorted({role for r in rates for role in r})
        },
    }


Marks = tuple[np.ndarray, np.ndarray]


def _difference(task: str, a: str, b: str, seeds: Sequence[tuple[Marks, Marks]]) -> dict[str, Any]:
    """Returns a - b on the same questions, with a 95 % bootstrap over seeds and then questions."""
    found = paired_difference([x[0] for x, _ in seeds], [y[0] for _, y in seeds])
    tokens = [float(x[1].mean() / y[1].mean() - 1) for x, y in seeds]
    return {
        "task": task,
        "a": a,
        "b": b,
        "accuracy": found.mean,
        "accuracy_interval": list(found.interval),
        "by_seed": list(found.by_seed),
        "tokens": float(np.mean(tokens)),
        "tokens_by_seed": tokens,
    }


def _command(found: dict[str, Any]) -> str:
    """Returns the command that makes a sweep again."""
    words = ["cwt sweep", "--tasks", ",".join(found["tasks"])]
    words += ["--seeds", ",".join(map(str, found["seeds"]))]
    for path, value in _changed(asdict(RunConfig()), found["config"]).items():
        if path in ("data.task", "seed"):
            continue
        flag = _SHORT.get(path, path.replace("_", "-"))
        if value is False:  # a switch that is on by default
            *stage, name = flag.split(".")
            words.append("--" + ".".join([*stage, f"no-{name}"]))
        else:
            words += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return " ".join(words)


_SHORT = {"train.budget": "budget", "train.epochs": "epochs"}


def _changed(default: dict[str, Any], config: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Returns the options that differ from the default, by their dotted names."""
    changed: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            changed |= _changed(default[name], value, f"{at}{name}.")
        elif value != default[name]:
            changed[f"{at}{name}"] = value
    return changed
