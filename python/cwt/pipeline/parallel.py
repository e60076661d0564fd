"""Does pieces of work that depend on one another, several side by side in processes."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

import torch

from cwt.at_hand import keep_at, was_at_hand
from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.interrupts import Asked, postponed
from cwt.pipeline.own_process import STOPPED, Ended, in_a_process
from cwt.processes import count
from cwt.progress import Progress, Watch, one_at_a_time

Work = Callable[[str, Progress], None]  # is given a name; must be picklable


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(jobs: int) -> int:
    """Returns how many threads each of so many processes side by side is given."""
    return max(1, usable_cores() // jobs)


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
        with postponed() as asked, tempfile.TemporaryDirectory(prefix="cwt-at-hand-") as folder:
            notes = {name: Path(folder, str(i)) for i, name in enumerate(needs)}
            _Crew(work, jobs, one_at_a_time(watch), asked, notes).do_all(order, needs)
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


class _Crew:
    """Pieces of work, each in a process of its own; a thread of this process waits for it.

    Attributes:
        notes: for each piece, the file in which it keeps what it has at hand.
        failed: how those ended that were neither done nor told to stop, the first one first.
        lost: whether this process can begin no other, or was interrupted.
    """

    def __init__(
        self, work: Work, jobs: int, watch: Watch, asked: Asked, notes: dict[str, Path]
    ) -> None:
        self.work, self.watch, self.asked, self.notes = work, watch, asked, notes
        self.failed: dict[str, Ended] = {}
        self.lost = False
        self._pool = ThreadPoolExecutor(jobs)
        self._threads = threads_each(jobs)

    def do_all(self, order: "TopologicalSorter[str]", needs: Mapping[str, Sequence[str]]) -> None:
        """Does everything; where a piece fails, the others end their step and save.

        Raises:
            UserError: a process was killed.
            Exception: what a piece has raised.
        """
        with self._pool:
            try:
                self._go_through(order, needs)
            except BaseException:
                self.lost = True
                raise
        if self.failed:
            next(iter(self.failed.values())).check()
            raise UserError(self._obituary())

    def _go_through(
        self, order: "TopologicalSorter[str]", needs: Mapping[str, Sequence[str]]
    ) -> None:
        names = list(needs)
        running: dict[Future[Ended], str] = {}
        while running or (order.is_active() and not self._stopping()):
            ready = sorted(
                order.get_ready(),
                key=lambda name: (-_waiting_for(name, needs), names.index(name)),
            )
            for name in ready:
                running[self._pool.submit(self._do, name)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                name, ended = running.pop(future), future.result()
                if ended.status == 0:
                    order.done(name)
                    self.watch(name, 1.0, "done")
                elif ended.status != STOPPED or not self._stopping():
                    self.failed[name] = ended

    def _do(self, name: str) -> Ended:
        work = partial(_noted, self.work, name, self.notes[name])
        return in_a_process(work, partial(self.watch, name), self._stopping, self._threads)

    def _stopping(self) -> bool:
        """Returns whether all are to end their step and save."""
        return bool(self.asked.signum or self.failed or self.lost)

    def _obituary(self) -> str:
        """Returns what is said of the processes that were killed."""
        had = {n: was_at_hand(self.notes[n]) for n, e in self.failed.items() if e.error is None}
        dead = (
            f"the process of {n}" + (f", {doing}," if doing else "") for n, doing in had.items()
        )
        return (
            f"{' and '.join(dead)} was killed (out of memory?); the same command goes on from its "
            "last checkpoint, --jobs 1 trains one at a time."
        )


def _noted(work: Work, name: str, note: Path, progress: Progress) -> None:
    keep_at(note)
    work(name, progress)
