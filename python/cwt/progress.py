"""Progress: callbacks that learn how far a piece of work is, and bars that show it."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cwt.processes import is_main

Progress = Callable[[float, str], None]
"""Called with the share done, in [0, 1], and what is being done."""

Watch = Callable[[str, float, str], None]
"""Called with the name of a piece of work, its share done, and what is being done."""

LOG_SECONDS = 30.0  # between two lines about the same piece of work where there is no terminal


def quiet(share: float, text: str) -> None:
    """Ignores progress."""


def part_of(progress: Progress, start: float, end: float, prefix: str = "") -> Progress:
    """Returns a callback for a part of the work: its shares 0 .. 1 become start .. end."""

    def told(share: float, text: str) -> None:
        progress(start + share * (end - start), prefix + text)

    return told


def one_at_a_time(watch: Watch) -> Watch:
    """Returns a callback that several threads may call."""
    lock = threading.Lock()

    def told(name: str, share: float, text: str) -> None:
        with lock:
            watch(name, share, text)

    return told


def duration(seconds: float) -> str:
    """Returns a time for people: 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Bars:
    """Progress bars on a terminal; elsewhere a line every half minute and when a piece is done.

    Of several processes only the first one shows anything.
    """

    def __init__(self, log_seconds: float = LOG_SECONDS) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self.live, self.log_seconds = console.is_terminal and is_main(), log_seconds
        self.bars = Progress(
            TextColumn("{task.description:22}"),
            BarColumn(30),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not self.live,
        )
        self.tasks: dict[str, Any] = {}
        self.said: dict[str, float] = {}
        self.begun: dict[str, tuple[float, float]] = {}  # when, and at which share

    def __enter__(self) -> "Bars":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def watch(self, name: str, share: float, text: str) -> None:
        """Shows how far a piece of work is."""
        if not is_main():
            return
        if self.live:
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, total=1.0, text=text)
            self.bars.update(self.tasks[name], completed=share, text=text)
            return
        now = time.monotonic()
        if share >= 1.0:
            self.say(f"  {name}: {text}")
        elif share > 0 and now - self.said.setdefault(name, now) >= self.log_seconds:
            self.said[name] = now
            self.say(f"  {name}: {100 * share:.0f} %, {text}{self._left(name, share, now)}")
        self.begun.setdefault(name, (now, share))

    def one(self, name: str) -> Progress:
        """Returns a callback for one piece of work."""
        return lambda share, text: self.watch(name, share, text)

    def _left(self, name: str, share: float, now: float) -> str:
        """Returns how long a piece of work will go on, at the pace so far."""
        begin, start = self.begun.get(name, (now, share))
        if share <= start:
            return ""
        return f", {duration((now - begin) / (share - start) * (1 - share))} left"

    def say(self, line: str) -> None:
        """Prints a line, above the bars where there are some."""
        if self.live:
            self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif is_main():
            print(line, file=sys.stdout, flush=True)
