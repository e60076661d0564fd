"""Runs the rows of the table, several side by side where the student is small."""

import multiprocessing
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from .errors import UserError
from .methods import needed, run_method, selected_methods
from .students import quiet_libraries
from .workspace import Workspace

Report = Callable[[str, float, str], None]  # method, share done, what it is doing

_updates: Any = None  # the queue to the parent, set in each worker


def default_jobs(ws: Workspace) -> int:
    """Returns how many methods to train at once: one a core for `tiny` on a CPU, else one."""
    alone = torch.cuda.is_available() and not ws.config.cpu
    if alone or ws.config.student != "tiny" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    return max(1, len(os.sched_getaffinity(0)))


def run_methods(ws: Workspace, jobs: int, report: Report) -> None:
    """Trains and evaluates every selected method that has no result yet."""
    names = selected_methods(ws)
    done = {name for name in names if (ws.out / "methods" / f"{name}.json").exists()}
    for name in done:
        report(name, 1.0, "done before")
    todo = [name for name in names if name not in done]
    if jobs == 1:
        for name in todo:
            run_method(ws, name, lambda share, text, name=name: report(name, share, text))
            report(name, 1.0, "done")
        return
    _run_parallel(ws, todo, done, jobs, report)


def _run_parallel(
    ws: Workspace, todo: list[str], done: set[str], jobs: int, report: Report
) -> None:
    context = multiprocessing.get_context("spawn")  # fork breaks OpenMP once it has threads
    updates = context.Queue()
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (updates, threads)) as pool:
        running: dict[Future[None], str] = {}
        try:
            while todo or running:
                for name in [n for n in todo if needed(ws, n) in done | {None}]:
                    todo.remove(name)
                    running[pool.submit(_work, ws, name)] = name
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(updates, report)
                for future in finished:
                    name = running.pop(future)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        raise UserError(
                            f"the process of {name} was killed (out of memory?); the same command "
                            "goes on from its last checkpoint, --jobs 1 trains one at a time."
                        ) from None
                    done.add(name)
                    report(name, 1.0, "done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _drain(updates: Any, report: Report) -> None:
    while True:
        try:
            report(*updates.get_nowait())
        except queue.Empty:
            return


def _start_worker(updates: Any, threads: int) -> None:
    global _updates
    _updates = updates
    set_up_worker(threads)


def set_up_worker(threads: int) -> None:
    """Prepares a process that trains beside others, each on its share of the cores."""
    torch.set_num_threads(threads)
    quiet_libraries()


def _work(ws: Workspace, name: str) -> None:
    last = 0.0

    def progress(share: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            _updates.put((name, share, text))

    run_method(ws, name, progress)
