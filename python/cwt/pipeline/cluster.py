"""The cells of a sweep on a Ray cluster: a task a cell, its cores and GPUs as resources."""

import importlib
import os
import queue
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cwt.errors import UserError
from cwt.files import write_text
from cwt.interrupts import postponed, terminable
from cwt.pipeline.own_process import STOPPED, Ended, Work, attempt, in_words, seldom
from cwt.pipeline.parallel import usable_cores
from cwt.progress import Watch
from cwt.students.load import quiet_libraries

_MARK = ".sweep"  # in the folder of a sweep: what every machine must see


@dataclass(frozen=True)
class Share:
    """What a cell is given on a Ray cluster.

    Attributes:
        out: folder of the sweep, which every machine must see under the same path.
        gpus: GPUs of a cell; a share such as 0.5 lets cells share one. None: one where the cluster
            has some, unless the sweep stays on CPUs.
        cpu: whether the sweep stays on CPUs.
    """

    out: Path
    gpus: float | None = None
    cpu: bool = False


def cell_options(
    share: Share, jobs: int, nodes: list[Mapping[str, float]], name: str = "cell"
) -> dict[str, Any]:
    """Returns the options with which Ray is given a cell: its cores, its GPUs, its name.

    A cell has a process of its own, so that nothing of one is left to the next, and is not tried
    again by Ray: the same command goes on from its checkpoint.

    Args:
        share: what a cell is given.
        jobs: how many cells go side by side, at most; each is then given its share of the cores.
            0: as many as there is room for, a core each.
        nodes: the resources of each machine, by Ray's names for them.
        name: of the cell.

    Raises:
        UserError: no machine has that many GPUs.
    """
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    wanted = share.gpus
    if wanted is None:
        wanted = 1.0 if gpus and not share.cpu else 0.0
    if wanted > gpus:
        raise UserError(
            f"--gpus {wanted:g}: no machine of the cluster has as many; the most is {gpus:g}."
        )
    own = min(sum(cores) // jobs, max(cores)) if jobs else 1
    return {
        "num_cpus": max(1, own),
        "num_gpus": wanted,
        "max_calls": 1,
        "max_retries": 0,
        "name": name,
    }


def on_ray(
    cells: Mapping[str, Work], address: str, jobs: int, share: Share, watch: Watch
) -> dict[str, Ended]:
    """Returns how every cell ended on a Ray cluster; see cwt.pipeline.cells.run_cells."""
    mark = uuid.uuid4().hex
    write_text(share.out / _MARK, mark)
    try:
        with _connected(address) as ray, postponed() as asked:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            tasks = _Tasks(ray, share.out.resolve(), mark, watch)
            waiting = list(cells)
            while waiting or tasks.running:
                if asked.signum and not tasks.stopped:
                    waiting.clear()
                    tasks.stop()
                while waiting and len(tasks.running) < (jobs or len(cells)):
                    name = waiting.pop(0)
                    tasks.begin(name, cells[name], cell_options(share, jobs, nodes, name))
                tasks.look()
            return tasks.ended
    finally:
        (share.out / _MARK).unlink(missing_ok=True)


class _Tasks:
    """The cells that Ray was given.

    Attributes:
        running: those that have not ended, by Ray's reference.
        ended: how the others did, by name.
        stopped: whether all were told to stop.
    """

    def __init__(self, ray: Any, out: Path, mark: str, watch: Watch) -> None:
        self.ray, self.watch = ray, watch
        self.running: dict[Any, str] = {}
        self.ended: dict[str, Ended] = {}
        self.stopped = False
        self._place = (str(Path.cwd()), str(out), mark)
        lines = importlib.import_module("ray.util.queue")
        self._lines = lines.Queue(actor_options={"num_cpus": 0})

    def begin(self, name: str, work: Work, options: dict[str, Any]) -> None:
        """Gives Ray a cell."""
        task = self.ray.remote(**options)(_cell)
        reference = task.remote(name, work, self._place, self._lines, int(options["num_cpus"]))
        self.running[reference] = name

    def stop(self) -> None:
        """Tells all cells to end their step, as Ctrl-C does."""
        self.stopped = True
        for reference in self.running:
            self.ray.cancel(reference, force=False)

    def look(self) -> None:
        """Waits a moment for a cell to end, and passes on what they say of their progress."""
        done, _ = self.ray.wait(list(self.running), timeout=0.3)
        try:
            while True:
                self.watch(*self._lines.get_nowait())
        except queue.Empty:
            pass
        for reference in done:
            name = self.running.pop(reference)
            self.ended[name] = ended = self._result(reference)
            if ended.status != STOPPED:
                self.watch(name, 1.0, in_words(ended))

    def _result(self, reference: Any) -> Ended:
        try:
            found: Ended = self.ray.get(reference)
        except self.ray.exceptions.TaskCancelledError:
            return Ended(STOPPED)
        except self.ray.exceptions.RayTaskError as error:  # before the cell was begun
            return Ended(1, RuntimeError(str(error).strip().split("\n")[-1]))
        except self.ray.exceptions.RayError as error:
            return Ended(None, UserError(str(error).split("\n")[0]))
        return found


def _cell(name: str, work: Work, place: tuple[str, str, str], lines: Any, threads: int) -> Ended:
    """Does a cell in a worker of Ray, where the sweep would do it."""
    here, out, mark = place
    mine = Path(out) / _MARK
    if not Path(here).is_dir() or not mine.is_file() or mine.read_text(encoding="utf-8") != mark:
        return Ended(2, UserError(
            f"{os.uname().nodename} does not see {out} and {here} as the machine of the sweep "
            "does; a cluster needs a file system that all its machines share."
        ))  # fmt: skip
    # Ray says "stop" as SIGINT but holds a real one back; a terminal's is for the sweep alone.
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(here)
    torch.set_num_threads(threads)
    quiet_libraries()

    with terminable():
        return attempt(work, seldom(lambda share, text: lines.put_nowait((name, share, text))))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Gives Ray, connected to a cluster; where auto finds none, one of this machine alone.

    Raises:
        UserError: no cluster answers at the address.
    """
    ray = importlib.import_module("ray")
    if ray.is_initialized():  # by the script that called us
        yield ray
        return
    options = {"log_to_driver": False, "logging_level": "error"}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address, **options)
        except ConnectionError as error:
            if address != "auto":
                raise UserError(
                    f"--cluster {address}: no Ray cluster answers: {error}. Where it asks for a "
                    "token, RAY_AUTH_MODE=token must be set here."
                ) from None
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
            ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **options)
        if handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the sweep at once
        yield ray
    finally:
        ray.shutdown()
