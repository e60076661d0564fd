"""A sweep: tasks x seeds x methods, one run for every (task, seed); means and differences."""

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
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
from cwt.pipeline.cells import run_cells, uses_ray
from cwt.pipeline.cluster import Share
from cwt.pipeline.methods import METHODS, comparisons
from cwt.pipeline.own_process import Ended, in_words
from cwt.pipeline.parallel import default_jobs, usable_cores
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
    cluster: str = "local",
    gpus: float | None = None,
) -> dict[str, Any]:
    """Runs what is missing of a sweep; writes sweep.json, which it returns, and sweep.md.

    Every (task, seed) is a run of its own, a cell, in out/<task>-<seed>, which goes on where it
    stopped. A cell that fails does not stop the others.

    Args:
        config: the configuration of all runs, except task and seed.
        tasks: keys of TASKS.
        seeds: each decides the data, the order of training and the random controls of a run.
        out: folder of the sweep.
        jobs: how many runs go side by side; on this machine each has its share of the cores, and 0
            is one a core for `tiny` on a CPU, else one. On a Ray cluster 0 is as many as it has
            room for.
        watch: called with the name of a run, its share done, and what is being done.
        cluster: local: this machine, by joblib; auto: Ray where it is installed (the cluster that
            runs, or one of this machine alone), else local; ray://HOST:PORT: that Ray cluster.
        gpus: of a cell on a Ray cluster; a share such as 0.5 lets cells share one. None: one where
            the cluster has some.

    Raises:
        UserError: a folder holds another run, the configuration has a data file, the cluster cannot
            be used, or cells failed: sweep.json has what the others found.
    """
    out = Path(out)
    if config.data.file:
        raise UserError("sweep: takes generated tasks; --data is for `cwt run`.")
    ray = uses_ray(cluster)
    if gpus is not None and not ray:
        raise UserError(
            "--gpus is what Ray gives a run; it needs --cluster auto or ray://HOST:PORT."
        )
    names = [f"{task}-{seed}" for task in tasks for seed in seeds]
    for name in names:  # mistakes before hours of work
        _cell(config, name, out)
    place = out.resolve() if ray else out
    jobs = jobs or (0 if ray else default_jobs(config))
    cells = {name: partial(_run_cell, config, place, name) for name in names}
    ended = run_cells(cells, cluster, jobs, Share(out, gpus, config.cpu), watch)
    failed = {name: how for name, how in ended.items() if how.status != 0}
    for name in names:  # alone, so that nothing runs beside what is measured
        if name not in failed:
            _measure(_cell(config, name, out))
    found = collect(config, tasks, seeds, out, failed)
    write_json(out / "sweep.json", found)
    write_text(out / "sweep.md", as_markdown(found, _command(found)))
    if failed:
        raise _failure(failed, len(names), out)
    return found


def _failure(failed: dict[str, Ended], cells: int, out: Path) -> UserError:
    """Returns the error that names the cells that failed; prints a traceback that is no user's."""
    for how in failed.values():
        if how.trace and how.status != 2:
            print(how.trace, file=sys.stderr)
    reasons = "; ".join(f"{name} {in_words(how).rstrip('.')}" for name, how in failed.items())
    return UserError(
        f"sweep: {len(failed)} of {cells} cells have no result. {reasons}. {out / 'sweep.json'} "
        "has what the others found; the same command does these again."
    )


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
    config: RunConfig,
    tasks: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    failed: Mapping[str, Ended] | None = None,
) -> dict[str, Any]:
    """Returns the figures of finished runs, their means and their differences.

    Of those that failed it says how: `failed` is there where one did.
    """
    failed = failed or {}
    seeds_of = {task: [s for s in seeds if f"{task}-{s}" not in failed] for task in tasks}
    tasks_done = [task for task in tasks if seeds_of[task]]
    rows: list[dict[str, Any]] = []
    marks: dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]] = {}
    diagnostics: list[dict[str, Any]] = []
    for task in tasks:
        for seed in seeds_of[task]:
            ws = _cell(config, f"{task}-{seed}", out)
            for row in read_json(ws.report(".json"))["methods"]:
                rows.append({"task": task, **row})
                marks[task, seed, row["name"]] = _marks(ws, Path(row["student"]).name)
            diagnostics += [{"task": task, "seed": seed, **d} for d in read_diagnostics(ws)]
    names = [name for name in METHODS if any(row["name"] == name for row in rows)]
    summary = [
        _summary(task, name, [r for r in rows if r["task"] == task and r["name"] == name])
        for task in tasks_done
        for name in names
    ]
    differences = [
        _difference(task, a, b, [(marks[task, s, a], marks[task, s, b]) for s in seeds_of[task]])
        for task in tasks_done
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
        **({"failed": {name: _record(how) for name, how in failed.items()}} if failed else {}),
    }


def _record(how: Ended) -> dict[str, Any]:
    return {"status": how.status, "error": in_words(how)}


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


_SHORT = {
    "train.budget": "budget",
    "train.epochs": "epochs",
    "eval.generator": "generator",
    "eval.base_url": "base-url",
}


def _changed(default: dict[str, Any], config: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Returns the options that differ from the default, by their dotted names."""
    changed: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            changed |= _changed(default[name], value, f"{at}{name}.")
        elif value != default[name]:
            changed[f"{at}{name}"] = value
    return changed
