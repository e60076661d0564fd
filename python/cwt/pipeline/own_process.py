"""One piece of work in a process of its own: its progress comes back, and how it ended."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from cwt.errors import UserError
from cwt.interrupts import terminable
from cwt.progress import Progress
from cwt.students.load import quiet_libraries

STOPPED = 128 + signal.SIGTERM  # exit status of work that was told to stop

_ALL = threading.Lock()  # multiprocessing looks after all processes whenever it looks after one

Work = Callable[[Progress], None]  # must be picklable where it goes to another process


@dataclass(frozen=True)
class Ended:
    """How a piece of work ended.

    Attributes:
        status: exit status, as a shell gives it: 0 done, 2 an error of the user's, 1 any other,
            128 + n ended by signal n; None: its worker on a cluster was lost.
        error: what was raised; None where nothing was, also where the process was killed.
        trace: the traceback of what was raised.
    """

    status: int | None
    error: Exception | None = None
    trace: str = ""

    def check(self) -> None:
        """Raises what was raised."""
        if self.error:
            raise self.error from _Traceback("\n" + self.trace)


def in_words(ended: Ended) -> str:
    """Returns how a piece of work ended, on one line."""
    if ended.status == 0:
        return "done"
    status = "its worker was lost" if ended.status is None else f"exit status {ended.status}"
    if ended.error is None:
        return f"failed ({status}): its process was killed (out of memory?)"
    kind = "" if isinstance(ended.error, UserError) else f"{type(ended.error).__name__}: "
    return f"failed ({status}): {kind}{' '.join(str(ended.error).split())}"


class _Traceback(Exception):
    """The traceback of an exception in another process, as text."""


def seldom(progress: Progress, seconds: float = 0.2) -> Progress:
    """Returns a callback that passes on no more than one call in so many seconds."""
    last = 0.0

    def told(share: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            progress(share, text)

    return told


def attempt(work: Work, progress: Progress) -> Ended:
    """Returns how a piece of work ended that is done in this process."""
    try:
        work(progress)
    except Exception as error:
        kept = isinstance(error, UserError) or type(error).__module__ == "builtins"
        # Others may not outlive a way through a pipe.
        found = error if kept else RuntimeError(f"{type(error).__name__}: {error}")
        return Ended(2 if isinstance(error, UserError) else 1, found, traceback.format_exc())
    return Ended(0)


def in_a_process(
    work: Work, progress: Progress, stopping: Callable[[], bool], threads: int
) -> Ended:
    """Returns how a piece of work ended that is done in a process of its own.

    Args:
        work: picklable; a script that calls this needs the guard `if __name__ == "__main__":`.
        progress: called in this process, in the thread that called this function.
        stopping: asked several times a second; once it is true the work ends its step, saves a
            checkpoint and ends with the status STOPPED.
        threads: that torch uses there.
    """
    if stopping():
        return Ended(STOPPED)
    context = process_context()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, there, threads), daemon=True)
    with _ALL:
        process.start()
    there.close()
    ended, told = None, False
    while True:
        if stopping() and not told:
            with _ALL:
                process.terminate()
            told = True
        ready = wait_for([here, process.sentinel], 0.1)
        if here not in ready:
            if process.sentinel in ready:
                break
            continue
        try:
            message = here.recv()
        except EOFError:
            break
        if isinstance(message, Ended):
            ended = message
        else:
            progress(*message)
    wait_for([process.sentinel])
    with _ALL:
        process.join()
        code = process.exitcode
    here.close()
    return ended or Ended(128 - code if code < 0 else code)


def process_context() -> Any:
    """Returns how processes begin: forked from a server that has imported all once, if they can be.

    A fork breaks OpenMP once it has threads, which the server never has, and CUDA once anything has
    asked for its devices, which some import may do.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cwt.pipeline.warm"])
    return context


def _begin_worker(threads: int) -> None:
    """Makes this process one that works for its parent, and ends with it; torch uses `threads`."""
    os.setpgrp()  # a signal to the group, as a terminal's, is for the parent, which tells each once
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    quiet_libraries()


def _child(work: Work, pipe: Connection, threads: int) -> None:
    _begin_worker(threads)
    with terminable():
        try:
            ended = attempt(work, seldom(lambda share, text: pipe.send((share, text))))
        except KeyboardInterrupt:
            sys.exit(STOPPED)
    pipe.send(ended)
    sys.exit(ended.status)


def _die_with_the_parent() -> None:
    """Ends a worker whose parent was killed: the lock is gone, another run may be at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(128 + signal.SIGKILL)
