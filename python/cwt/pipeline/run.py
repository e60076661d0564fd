"""All stages of a run: the command line, a sweep and a notebook call `run(config, out)`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cwt.config import RunConfig
from cwt.files import read_lines, write_json
from cwt.pipeline.data import make_data
from cwt.pipeline.methods import METHODS, needs, selected_methods
from cwt.pipeline.parallel import default_jobs, run_all
from cwt.pipeline.plan import make_plan, plan_lines
from cwt.pipeline.results import write_report
from cwt.pipeline.stages import (
    evaluate_student,
    make_chunks,
    measure_latency,
    train_method,
)
from cwt.pipeline.views import write_views
from cwt.pipeline.workspace import Workspace, open_workspace
from cwt.processes import by_main
from cwt.progress import Progress, Watch, part_of, quiet
from cwt.report.page import write_page
from cwt.students.load import check_student


def run(
    config: RunConfig,
    out: Path | str,
    jobs: int = 0,
    watch: Watch = lambda name, share, text: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs everything that a configuration asks for, and returns the report.

    Makes the data and the chunks, trains and evaluates every method, measures the latency of one
    answer and writes report.json, report.md and report.html. Finished work in the folder is not
    done again: a run that was stopped goes on where it was and ends with the same weights.

    Args:
        config: everything that decides the result.
        out: folder of the run.
        jobs: how many methods train side by side, each in a process of its own; 1: one after
            another in this process; 0: one a core for `tiny` on a CPU, else one.
        watch: called with the name of a piece of work, its share done, and what is being done.
        say: called with each line of the plan, before the training begins.

    Returns:
        The contents of report.json; `methods` is the table, one entry a row.

    Raises:
        UserError: something of the configuration, the data or the folder cannot be used.

    Example:
        >>> import cwt, tempfile
        >>> config = cwt.RunConfig(
        ...     methods="FTT",
        ...     data=cwt.DataConfig(train_size=8, validation_size=2, test_size=2),
        ...     train=cwt.TrainConfig(budget=300),
        ...     eval=cwt.EvalConfig(max_new_tokens=4, latency_questions=0),
        ... )
        >>> report = run(config, tempfile.mkdtemp())
        >>> [row["name"] for row in report["methods"]]
        ['FTT']
    """
    check_student(config.student)
    ws = open_workspace(config, Path(out))
    names = selected_methods(config)
    with ws.locked():
        by_main(partial(make_data, ws))
        make_chunks(ws, partial(watch, "chunks"))
        watch("chunks", 1.0, "done")
        for line in plan_lines(by_main(partial(make_plan, ws, names))):
            say(line)
        run_methods(ws, names, jobs or default_jobs(config), watch)
        for name in names:
            watch("latency", names.index(name) / len(names), name)
            measure_latency(ws, ws.student_of(name))
        watch("latency", 1.0, "done")
        return by_main(partial(write_reports, ws))


def run_methods(ws: Workspace, names: Sequence[str], jobs: int, watch: Watch) -> None:
    """Trains and evaluates every method that has no result yet."""
    todo = {}
    for name in names:
        if ws.method(name).exists():
            watch(name, 1.0, "done before")
        else:
            todo[name] = needs(METHODS[name], ws.config)
    run_all(todo, partial(run_method, ws), jobs, watch)


def run_method(ws: Workspace, name: str, progress: Progress = quiet) -> None:
    """Trains one row of the table and evaluates it on the test questions."""
    student = train_method(ws, METHODS[name], part_of(progress, 0.0, 0.9))
    evaluate_row(ws, name, student, part_of(progress, 0.9, 0.99))


def evaluate_row(
    ws: Workspace, name: str, student: str, progress: Progress = quiet, served: str = ""
) -> dict[str, Any]:
    """Evaluates the student of a row on the test questions, and puts the row into the table.

    `served` is the student's name on a server, by default its folder.
    """
    score = evaluate_student(ws, student, "test", progress, served)
    by_main(partial(write_json, ws.method(name), {"name": name, "student": student}))
    return score


def write_reports(ws: Workspace) -> dict[str, Any]:
    """Writes report.json, .md and .html from the run's files; returns what report.json holds."""
    report = write_report(ws)
    views = write_views(ws)
    followed = views["losses_of"] if ws.log(views["losses_of"]).exists() else None
    followed = followed or Path(report["methods"][0]["student"]).name
    write_page(ws.report(".html"), report, views, followed, read_lines(ws.log(followed)))
    return report
