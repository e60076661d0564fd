"""The cells of a sweep on an engine: joblib on this machine, or a Ray cluster."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import joblib

from cwt.errors import UserError
from cwt.interrupts import postponed
from cwt.pipeline.cluster import Share, on_ray
from cwt.pipeline.own_process import STOPPED, Ended, Work, attempt, in_a_process, in_words
from cwt.pipeline.parallel import threads_each, usable_cores
from cwt.progress import Watch, one_at_a_time


def run_cells(
    cells: Mapping[str, Work], cluster: str, jobs: int, share: Share, watch: Watch
) -> dict[str, Ended]:
    """Returns how every cell ended; one that fails does not stop the others.

    Args:
        cells: the work of each, by its name; picklable.
        cluster: local: joblib on this machine; auto: Ray where it is installed, else local;
            ray://HOST:PORT: that Ray cluster.
        jobs: how many go side by side, at most; on a cluster 0 is as many as it has room for.
        share: what Ray gives a cell.
        watch: called with the name of a cell, its share done, and what is being done.

    Raises:
        UserError: no such cluster, or Ray is not installed.
        KeyboardInterrupt: the sweep was told to stop; all cells have ended their step and saved.
    """
    if uses_ray(cluster):
        return on_ray(cells, cluster, jobs, share, watch)
    ended = {}
    for name, how in _on_this_machine(cells, jobs or usable_cores(), one_at_a_time(watch)):
        ended[name] = how
        if how.status != STOPPED:
            watch(name, 1.0, in_words(how))
    return ended


def uses_ray(cluster: str) -> bool:
    """Returns whether the cells go to Ray.

    Raises:
        UserError: no such cluster, or Ray is not installed.
    """
    if cluster not in ("auto", "local") and not cluster.startswith("ray://"):
        raise UserError(f"--cluster: wanted auto, local or ray://HOST:PORT, got {cluster!r}.")
    installed = importlib.util.find_spec("ray") is not None
    if cluster.startswith("ray://") and not installed:
        raise UserError(f"--cluster {cluster}: Ray is not installed: pip install ray")
    return cluster != "local" and installed


def _on_this_machine(
    cells: Mapping[str, Work], jobs: int, watch: Watch
) -> Iterator[tuple[str, Ended]]:
    """Yields how the cells ended, as they do: in this process, or in one of their own each."""
    if jobs == 1:
        for name, work in cells.items():
            yield name, attempt(work, partial(watch, name))
        return
    with postponed() as asked:
        one = partial(
            _cell, watch=watch, stopping=lambda: bool(asked.signum), threads=threads_each(jobs)
        )
        tasks = (joblib.delayed(one)(name, work) for name, work in cells.items())
        # A thread waits for each process: of joblib's own processes, one that is killed ends all.
        engine = joblib.Parallel(jobs, backend="threading", return_as="generator_unordered")
        yield from engine(tasks)


def _cell(
    name: str, work: Work, watch: Watch, stopping: Callable[[], bool], threads: int
) -> tuple[str, Ended]:
    return name, in_a_process(work, partial(watch, name), stopping, threads)
