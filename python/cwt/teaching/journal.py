"""The journal: every request, completion and failure as one line, on disk before the next request.

Lines of journal.jsonl, told apart by `event`:

start       a run begins
request     n is about to be sent; `reserved` is the most that it can cost
completion  n came back: the text, its tokens, the verdict on it
failure     n brought nothing: the reason, and whether the server may have charged for it

A request without a completion or a failure was in flight when its run was killed.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

from cwt.errors import UserError

Row = dict[str, Any]


class Journal:
    """Appends rows to a file; a row is on the disk when `append` returns. Safe among threads.

    Args:
        path: of the file; made where it is absent. A last line that a killed process left
            unfinished is removed.

    Raises:
        UserError: a line before the last is not a row.

    Attributes:
        rows: what the file held when it was opened.
        repaired: bytes of an unfinished last line that were removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write_lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._written = self._synced = 0
        self._failure: OSError | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            content = path.read_bytes()
            self.rows, good = _rows(path, content)
            self.repaired = len(content) - good
            if self.repaired:
                os.ftruncate(self._file, good)
            os.fsync(self._file)
            _sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, row: Row) -> None:
        """Writes a row and returns when it is on the disk.

        Raises:
            OSError: it cannot be written; nothing more can be after that.
        """
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._write_lock:
            if self._failure:  # half a line must stay the last
                raise self._failure
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError as error:
                self._failure = error
                raise
            self._written += 1
            mine = self._written
        with self._sync_lock:  # who waited here may find its row synced by another
            if self._synced < mine:
                reached = self._written
                os.fsync(self._file)
                self._synced = reached

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def _rows(path: Path, content: bytes) -> tuple[list[Row], int]:
    """Returns (rows, bytes that they take up); only the last line may be unfinished."""
    rows: list[Row] = []
    good = 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        finished = number < len(lines)
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError:
            row = None
        if finished and isinstance(row, dict):
            rows.append(row)
            good += len(line) + 1
        elif number < len(lines) - 1:
            raise UserError(f"{path}, line {number}: wanted a JSON object, the line is damaged.")
    return rows, good


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
