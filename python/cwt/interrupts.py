"""Stopping in order: a signal waits until a piece of work is whole, and one path stops the run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asked:
    """Whether a signal arrived.

    Attributes:
        signum: its number; 0 while none has.
    """

    signum = 0


@contextmanager
def postponed() -> Iterator[Asked]:
    """Holds SIGINT and SIGTERM back while the block runs, and gives an object that knows of them.

    When the block ends, the signal goes to whoever handled it before; a second one goes there at
    once. A signal that Python does not handle (ignored, or deadly) stays as it is, and so does
    everything in other threads than the main one, which get no signals.
    """
    asked, impatient = Asked(), Asked()
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        if not asked.signum:
            asked.signum = signum
            return
        impatient.signum = signum
        restore()
        signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
        if asked.signum and not impatient.signum:
            signal.raise_signal(asked.signum)


@contextmanager
def terminable() -> Iterator[Asked]:
    """Makes SIGTERM do what SIGINT does; the object that it gives knows if it was SIGTERM."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        asked.signum = signum
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell starts background jobs with SIGINT ignored
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
