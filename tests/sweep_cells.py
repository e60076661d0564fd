"""Work for the cells of a sweep that does what a test needs; other processes import it."""

import os
import signal
import time
from pathlib import Path

from cwt.errors import UserError
from cwt.interrupts import postponed


def well(path: Path, progress) -> None:
    """Says how far it is, and writes the process and its GPUs."""
    progress(0.5, "half")
    path.write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")


def alone(path: Path, progress) -> None:
    """Writes whether the process has a group of its own, and whether it was forked."""
    forked = "forkserver" in Path("/proc/self/cmdline").read_text()
    path.write_text(f"{os.getpgrp() == os.getpid()} {forked}")


def refused(progress) -> None:
    raise UserError("the folder is\nanother's")


def mistaken(progress) -> None:
    raise KeyError("no such key")


def killed(progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def long(path: Path, progress) -> None:
    """Works in steps, and writes what it has when it is told to stop between two of them."""
    path.with_suffix(".begun").touch()
    for step in range(1, 10_000):
        with postponed() as asked:
            time.sleep(0.05)
            if asked.signum:
                path.write_text(f"saved after step {step}")
    path.write_text("was not told to stop")
