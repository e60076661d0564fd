"""train_log.jsonl: a line a step, growing as a run goes on and cut back where it resumes."""

import itertools
import json
import time
from pathlib import Path
from typing import Any, TextIO

_FLUSH_SECONDS = 2.0


class StepLog:
    """Writes rows to a JSONL file that others may read meanwhile.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.flushed = 0.0

    def begin(self, after: int) -> None:
        """Opens the file and keeps its first `after` rows, those of the steps already done."""
        kept = 0  # bytes
        if after:
            with self.path.open("rb") as file:
                kept = sum(len(line) for line in itertools.islice(file, after))
        self.file = self.path.open("a", encoding="utf-8")
        self.file.truncate(kept)  # in place: a crash from here on loses none of the rows kept

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; it reaches the disk within two seconds of the next one."""
        assert self.file is not None
        self.file.write(json.dumps(row) + "\n")
        if time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings all rows to the file."""
        assert self.file is not None
        self.file.flush()
        self.flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        if self.file:
            self.file.close()
