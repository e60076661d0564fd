"""Does pieces of work that depend on one another, several side by side in processes."""

import multiprocessing
import os
import queue
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from graphlib import TopologicalSorter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from cwt.at_hand import keep_at, was_at_hand
from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.interrupts import ask_once, terminable
from cwt.pipeline.own_process import begin_worker, seldom
from cwt.processes import count
from cwt.progress import Progress, Watch

Work = Callable[[str, Progress], None]  # is given a name; must be picklable

_GROUP_SECONDS = 1.0  # between a signal in a worker and the same in its parent, at most

# Set in each worker: the queue to the parent, and the flag by which the parent says to stop. The
# flag has no lock, which a worker that is killed could hold for ever.
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
        UserError: a piece raised one, or its process was killed: it says which, and what it had at
            hand. The others have ended their step and saved. Or this process has sisters.
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
    with tempfile.TemporaryDirectory(prefix="cwt-at-hand-") as folder:
        crew = _Crew(needs, work, watch, Path(folder))
        threads = max(1, usable_cores() // jobs)
        try:
            with ProcessPoolExecutor(
                jobs, crew.context, _start_worker, (crew.updates, crew.stop, threads)
            ) as pool:
                crew.do_all(order, pool)
        except BrokenProcessPool:
            raise UserError(crew.obituary()) from None


class _Crew:
    """The workers, what each is to do, and the files in which they keep what they have at hand."""

    def __init__(
        self, needs: Mapping[str, Sequence[str]], work: Work, watch: Watch, folder: Path
    ) -> None:
        # A fork breaks OpenMP once it has threads.
        self.context = multiprocessing.get_context("spawn")
        self.updates, self.stop = self.context.Queue(), self.context.RawValue("b", 0)
        self.needs, self.work, self.watch = needs, work, watch
        self.notes = {name: folder / str(i) for i, name in enumerate(needs)}
        self.running: dict[Future[None], str] = {}
        self.workers: set[BaseProcess] = set()

    def do_all(self, order: "TopologicalSorter[str]", pool: ProcessPoolExecutor) -> None:
        """Does everything; where a piece fails, the others finish their step and save."""
        names = list(self.needs)
        try:
            while order.is_active():
                ready = sorted(
                    order.get_ready(),
                    key=lambda name: (-_waiting_for(name, self.needs), names.index(name)),
                )
                for name in ready:
                    self.running[pool.submit(_work, self.work, name, self.notes[name])] = name
                self.workers.update(multiprocessing.active_children())
                finished, _ = wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED)
                _tell(self.updates, self.watch)
                for future in finished:
                    future.result()
                    name = self.running.pop(future)
                    order.done(name)
                    self.watch(name, 1.0, "done")
        except BrokenProcessPool:
            raise  # the pool has told the others, by SIGTERM
        except BaseException:
            self.stop.value = 1
            pool.shutdown(cancel_futures=True)  # and waits: they still write into the folder
            raise

    def obituary(self) -> str:
        """Returns what is said of workers that were killed, once all have ended."""
        told = (0, None, -signal.SIGTERM, 128 + signal.SIGTERM)  # ended by the pool, idle or busy
        dead = {worker.pid for worker in self.workers if worker.exitcode not in told}
        had = {name: was_at_hand(self.notes[name]) for name in self.running.values()}
        lost = [
            f"the process of {name}" + (f", {doing}," if doing else "")
            for name, (pid, doing) in had.items()
            if pid in dead
        ]
        return (
            f"{' and '.join(lost) or 'a worker process'} was killed (out of memory?); the same "
            "command goes on from its last checkpoint, --jobs 1 trains one at a time."
        )


def _tell(updates: Any, watch: Watch) -> None:
    while True:
        try:
            watch(*updates.get_nowait())
        except queue.Empty:
            return


def _start_worker(updates: Any, stop: Any, threads: int) -> None:
    global _updates, _stop
    _updates, _stop = updates, stop
    begin_worker(threads)


def _work(work: Work, name: str, note: Path) -> None:
    tell = seldom(lambda share, text: _updates.put((name, share, text)))

    def progress(share: float, text: str) -> None:
        tell(share, text)
        if _stop.value:
            ask_once(signal.SIGTERM)

    keep_at(note)
    with terminable():
        try:
            work(name, progress)
        except KeyboardInterrupt:
            # Told by the parent, or by the pool because a sibling died: then its queues may be
            # locked for ever, and nobody reads what this one has to say.
            if not _parent_stops():
                os._exit(128 + signal.SIGTERM)
            raise


def _parent_stops() -> bool:
    """Returns whether the parent says to stop; a signal to the whole group may be ahead of it."""
    end = time.monotonic() + _GROUP_SECONDS
    while not _stop.value and time.monotonic() < end:
        time.sleep(0.01)
    return bool(_stop.value)
