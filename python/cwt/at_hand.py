"""What a process is working on, kept in a file so that it outlives the process.

A worker that is killed can say nothing any more; its parent reads the file and says which examples
it had. A process that was given no file keeps nothing.
"""

import os
from collections.abc import Sequence
from pathlib import Path

_SIZE = 1000  # bytes of the file; within a page, so that no kill leaves half a line
_NAMED = 8  # examples by their id, at most

_file = -1  # descriptor of this process's file; -1: none


def keep_at(path: Path) -> None:
    """Keeps from now on what this process has at hand in a file, and nothing yet."""
    global _file
    if _file >= 0:
        os.close(_file)
    _file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    at_hand("")


def at_hand(doing: str, examples: Sequence[str] = ()) -> None:
    """Keeps what is begun now.

    Args:
        doing: what is done, in a few words.
        examples: ids of the examples that it is done with; the first eight are kept.
    """
    if _file < 0:
        return
    line, ids = doing, [name for name in examples if name]
    if ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        line += f" ({', '.join(ids[:_NAMED])}{more})"
    # Always as long, because a shorter line would leave the end of a longer one behind it.
    os.pwrite(_file, line.encode("utf-8", "replace")[:_SIZE].ljust(_SIZE), 0)


def was_at_hand(path: Path) -> str:
    """Returns what a process had at hand from its file; "" where there is none."""
    if not path.exists():
        return ""
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split())
