"""Does the rows of a run, which depend on one another, several side by side."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from graphlib import TopologicalSorter

import torch

from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.interrupts import postponed
from cwt.pipeline.processes import Ended, in_a_process
from cwt.progress import Progress, Watch

Work = Callable[[str, Progress], None]  # is given a name; must be picklable


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(config: RunConfig) -> int:
    """Returns how many methods to train at once: one a core for `tiny` on a CPU, else one."""
    alone = torch.cuda.is_available() and not config.cpu
    if alone or config.student != "tiny" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    return usable_cores()


def one_at_a_time(watch: Watch) -> Watch:
    """Returns a callback that several threads may call."""
    lock = threading.Lock()

    def told(name: str, share: float, text: str) -> None:
        with lock:
            watch(name, share, text)

    return told


def run_all(needs: Mapping[str, Sequence[str]], work: Work, jobs: int, watch: Watch) -> None:
    """Does every piece of work, each after those that it needs.

    Args:
        needs: for each name the names that must be done before it; a name that is not a key counts
            as done. Among those that may start, the one with the longest chain behind it is first.
        work: does one piece.
        jobs: how many go side by side, each in a process of its own; 1 stays in this process.
        watch: called with a name, its share done, and what is being done.

    Raises:
        UserError: a piece raised one, or its process was killed; the others end their step and
            save a checkpoint.
    """
    order = TopologicalSorter({name: [n for n in of if n in needs] for name, of in needs.items()})
    order.prepare()
    if jobs > 1:
        _run_side_by_side(order, needs, work, jobs, one_at_a_time(watch))
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


def _run_side_by_side(
    order: "TopologicalSorter[str]",
    needs: Mapping[str, Sequence[str]],
    work: Work,
    jobs: int,
    watch: Watch,
) -> None:
    threads = max(1, usable_cores() // jobs)
    names, failed = list(needs), threading.Event()
    running: dict[Future[Ended], str] = {}
    with postponed() as asked, ThreadPoolExecutor(jobs) as pool:

        def stopping() -> bool:
            return bool(asked.signum) or failed.is_set()

        try:
            while order.is_active() and not stopping():
                ready = sorted(
                    order.get_ready(), key=lambda n: (-_waiting_for(n, needs), names.index(n))
                )
                for name in ready:
                    piece = partial(work, name), partial(watch, name), stopping, threads
                    running[pool.submit(in_a_process, *piece)] = name
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    if asked.signum:  # it may have been stopped
                        return
                    _check(future.result(), name)
                    order.done(name)
                    watch(name, 1.0, "done")
        except BaseException:
            failed.set()
            raise


def _check(ended: Ended, name: str) -> None:
    ended.check()
    if ended.status:
        raise UserError(
            f"the process of {name} was killed (out of memory?); the same command goes on from its "
            "last checkpoint, --jobs 1 trains one at a time."
        )
