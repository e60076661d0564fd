# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""Compares two formulas with math-verify, in bounded time, whatever they say.

sympy evaluates what it reads: `10^{10^{10}}` and `99999999!` fill the memory for hours, and a check
before evaluating can name the known explosions only. So the comparison runs in a child process
that is killed when its time is over. math-verify's own time limits use signals, which work in the
main thread of a process only; a child works in any thread or process. One child serves all threads
of a process and stays: importing sympy takes longer than a thousand comparisons. The known
explosions are turned away before, because each of them would cost the whole time limit.
"""

import atexit
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from cwt.errors import UserError

SECONDS = 5.0  # for one comparison
_START_SECONDS = 120.0  # for importing sympy, on a busy machine
_SIGNS = str.maketrans(
    {"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "∪": "\\cup ", "÷": "/"}
)
_LONGEST = 500
_LARGEST_EXPONENT = 1000
_LARGEST_FACTORIAL = 200
_LONGEST_NUMBER = 300

_START = "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv[1], run_name='__main__')"


LATEX = re.compile(r"\\[A-Za-z{]|[\^√π∞∪∩≤≥±]|\w_\w|\w_\{")


def same_formula(given: str, wanted: str) -> bool:
    """Returns whether math-verify finds two formulas equal; False where it is not done in time.

    Two of its verdicts are not taken over: it reads \\Delta as \\delta, and it rounds to six
    digits, so that 3.14159265 would be \\pi.

    Args:
        given: the answer, LaTeX or plain, without dollars.
        wanted: the gold answer.

    Raises:
        UserError: math-verify cannot be started at all, for instance as it is not installed.
    """
    given, wanted = normal_formula(given), normal_formula(wanted)
    texts = [re.sub(r"\s", "", text) for text in (given, wanted)]
    if texts[0].casefold() == texts[1].casefold():
        return texts[0] == texts[1]
    rounded = [re.fullmatch(r"-?\d*\.\d{5,}", text) is not None for text in texts]
    symbolic = [re.search(r"\\?(?:pi|sqrt|ln|log|sin|cos|tan|frac)|[π√]", t) for t in texts]
    if (rounded[0] and symbolic[1]) or (rounded[1] and symbolic[0]):
        return False
    if any(len(text) > _LONGEST or explodes(text) for text in texts):
        return False
    return _verified(given, wanted)


@lru_cache(maxsize=10_000)
def _verified(given: str, wanted: str) -> bool:
    return _CHILD.ask(given, wanted)


def normal_formula(text: str) -> str:
    """Returns a formula in the spelling that math-verify reads best."""
    text = re.sub(r"√\s?(\w+|\([^()]*\))", r"\\sqrt{\1}", text).translate(_SIGNS)
    text = re.sub(r"\\?sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    return re.sub(r"_\{?\s?(\w)\s?\}?", r"_\1", text)


def explodes(text: str) -> bool:
    """Returns whether a text holds a tower of powers, or a power or factorial too large to write.

    What this does not name is left to the time limit.
    """
    if re.search(r"[)}\]!]\s?!", text):  # the factorial of an expression
        return True
    flat = re.sub(r"[{}()\s]|\\left|\\right", "", text.replace("**", "^"))
    if re.search(r"\^-?[\w.]+\^", flat):
        return True
    exponents = re.findall(r"\^[-+]?(\d+)", flat)
    factorials = re.findall(r"(\d+)!", flat)
    return (
        any(len(n) > 6 or int(n) > _LARGEST_EXPONENT for n in exponents)
        or any(len(n) > 6 or int(n) > _LARGEST_FACTORIAL for n in factorials)
        or any(len(n) > _LONGEST_NUMBER for n in re.findall(r"\d+", flat))
    )


class _Child:
    """A process that compares formulas; started at the first question, restarted when killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def ask(self, given: str, wanted: str) -> bool:
        """Returns whether the process says yes; False where it takes too long, or dies twice."""
        with self._lock:
            try:
                # One death may be an accident; a second one is the question's doing.
                answer = self._ask(given, wanted) or self._ask(given, wanted)
            except queue.Empty:
                answer = ""
                self._stop()
            return answer == "true"

    def _ask(self, given: str, wanted: str) -> str:
        """Returns what the process answers; empty where it died.

        Raises:
            queue.Empty: it is not done in time.
        """
        process = self._process
        if process is None or process.poll() is not None:
            self._stop()
            process = self._start()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # then the reader has put an empty line
            process.stdin.write(json.dumps([given, wanted]) + "\n")
            process.stdin.flush()
        answer = self._answers.get(timeout=SECONDS)
        if not answer:
            self._stop()
        return answer

    def _start(self) -> "subprocess.Popen[str]":
        worker = Path(__file__).with_name("formula_worker.py")
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", _START, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._answers = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, self._answers), daemon=True)
        reader.start()
        try:
            first = self._answers.get(timeout=_START_SECONDS)
        except queue.Empty:
            first = f"not ready after {_START_SECONDS:.0f} s"
        if first != "ready":
            self._stop()
            raise UserError(f"cannot compare formulas: math-verify: {first or 'it ended'}.")
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            # What is left to write fails, as nobody reads it; the reader's thread sees the end.
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._stop()


def _read(process: "subprocess.Popen[str]", answers: "queue.Queue[str]") -> None:
    """Passes on the lines of a process, and an empty one when it has ended."""
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        for line in process.stdout:
            answers.put(line.strip())
    answers.put("")


_CHILD = _Child()
_INHERITED: list[_Child] = []


def _after_fork() -> None:
    """Gives a forked process a child of its own: it must not talk to its parent's."""
    global _CHILD
    _INHERITED.append(_CHILD)  # kept, so that nobody waits for a process that is not ours
    _CHILD = _Child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _CHILD.close())
