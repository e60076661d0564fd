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
    held = _Held()
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if callable(signal.getsignal(number)):
                held.before[number] = signal.signal(number, held.note)
    try:
        yield held
    finally:
        held.restore()
        if held.signum and not held.impatient:
            signal.raise_signal(held.signum)


class _Held(Asked):
    """A signal that is held back, and the handlers that it is kept from."""

    def __init__(self) -> None:
        self.before: dict[signal.Signals, Any] = {}
        self.impatient = False

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum = signum
            return
        self.impatient = True
        self.restore()
        signal.raise_signal(signum)


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
