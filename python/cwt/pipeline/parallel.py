"""Does pieces of work that depend on one another, several side by side in processes."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from graphlib import TopologicalSorter
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.interrupts import terminable
from cwt.processes import count
from cwt.progress import Progress, Watch
from cwt.students.load import quiet_libraries

Work = Callable[[str, Progress], None]  # is given a name; must be picklable

# Set in each worker: the queue to the parent, and the event by which the parent says to stop.
_updates: Any = None
_stop: Any = None


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(config: RunConfig) -> int:
    """Returns how many methods to train at once: one a core for `tiny` on a CPU, else one."""
    alone = torch.cuda.is_available() and not config.cpu
    if alone or config.student != "tiny" or count() > 1:
        return 1
    return usable_cores()


def run_all(needs: Mapping[str, Sequence[str]], work: Work, jobs: int, watch: Watch) -> None:
    """Does every piece of work, each after those that it needs.

    Args:
        needs: for each name the names that must be done before it; a name that is not a key counts
            as done. Among those that may start, the one with the longest chain behind it is first.
        work: does one piece.
        jobs: how many go side by side; 1 stays in this process.
        watch: called with a name, its share done, and what is being done.

    Raises:
        UserError: a piece raised one, its process was killed, or this process has sisters.
    """
    order = TopologicalSorter({name: [n for n in of if n in needs] for name, of in needs.items()})
    order.prepare()
    if jobs > 1:
        if count() > 1:
            raise UserError(
                f"--jobs {jobs} starts processes of its own, and a launcher started {count()}: "
                "leave it out."
            )
        _run_in_pool(order, needs, work, jobs, watch)
        return
    while order.is_active():
        for name in order.get_ready():
            work(name, partial(watch, name))
            watch(name, 1.0, "done")
            order.done(name)


def _waiting_for(name: str, needs: Mapping[str, Sequence[str]]) -> int:
    """Returns the length of the longest chain of names that wait for this one."""
    chains = [1 + _waiting_for(other, needs) for other, of in needs.items() if name in of]
    return max(chains, default=0)


def _run_in_pool(
    order: "TopologicalSorter[str]",
    needs: Mapping[str, Sequence[str]],
    work: Work,
    jobs: int,
    watch: Watch,
) -> None:
    context = multiprocessing.get_context("spawn")  # fork breaks OpenMP once it has threads
    updates, stop = context.Queue(), context.Event()
    threads = max(1, usable_cores() // jobs)
    names = list(needs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (updates, stop, threads)) as pool:
        running: dict[Future[None], str] = {}
        try:
            while order.is_active():
                ready = sorted(
                    order.get_ready(), key=lambda n: (-_waiting_for(n, needs), names.index(n))
                )
                for name in ready:
                    running[pool.submit(_work, work, name)] = name
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _tell(updates, watch)
                for future in finished:
                    name = running.pop(future)
                    _result(future, name)
                    order.done(name)
                    watch(name, 1.0, "done")
        except BaseException:
            stop.set()  # the others finish their step and save a checkpoint
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: "Future[None]", name: str) -> None:
    try:
        future.result()
    except BrokenProcessPool:
        raise UserError(
            f"the process of {name} was killed (out of memory?); the same command goes on from its "
            "last checkpoint, --jobs 1 trains one at a time."
        ) from None


def _tell(updates: Any, watch: Watch) -> None:
    while True:
        try:
            watch(*updates.get_nowait())
        except queue.Empty:
            return


def _start_worker(updates: Any, stop: Any, threads: int) -> None:
    global _updates, _stop
    _updates, _stop = updates, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the parent decides
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    quiet_libraries()


def _die_with_the_parent() -> None:
    """Ends a worker whose parent was killed: the lock is gone, another run may be at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(128 + signal.SIGKILL)


def _work(work: Work, name: str) -> None:
    last = 0.0

    def progress(share: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            _updates.put((name, share, text))
        if _stop.is_set():
            signal.raise_signal(signal.SIGTERM)

    with terminable():
        try:
            work(name, progress)
        except KeyboardInterrupt:
            if not _stop.is_set():  # by the pool, because a sibling died, or from outside
                os._exit(128 + signal.SIGTERM)
            raise
