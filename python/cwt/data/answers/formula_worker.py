"""The program of the child process of `formula`: reads [given, wanted] a line, answers true/false.

It is run as a file and imports nothing of cwt, so that it starts wherever math-verify does.
"""

import json
import logging
import sys
import warnings

_MEMORY = 4 << 30  # bytes


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows, where the time limit alone must do
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _same(given: str, wanted: str) -> bool:
    from math_verify import parse, verify

    gold = parse(f"${wanted}$", parsing_timeout=None)
    answer = parse(f"${given}$", parsing_timeout=None)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))


def main() -> None:
    """Answers until the other side closes."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write between the answers
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        print(f"{error}", file=answers, flush=True)
        return
    _limit_memory()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        given, wanted = json.loads(line)
        try:
            same = _same(given, wanted)
        except (Exception, RecursionError, MemoryError):  # sympy raises of every kind
            same = False
        print("true" if same else "false", file=answers, flush=True)


if __name__ == "__main__":
    main()
