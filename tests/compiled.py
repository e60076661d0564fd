"""Keeps what tests compile, under the hash of all that it is made of: a run compiles what changed.

The files are in $XDG_CACHE_HOME/cwt-ext-tests (~/.cache without it), so that a fresh checkout finds
them; the thirty that were used last stay.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_KEPT = 30
_SOURCES = {".h", ".cuh", ".cpp", ".cu"}


def cache() -> Path:
    """Returns the folder of what is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cwt-ext-tests")


def place(compilers: Iterable[str], flags: Sequence[str], folders: Iterable[Path]) -> Path:
    """Returns where the result of a compilation is kept, and what the compiler said beside it.

    Args:
        compilers: programs whose versions count.
        flags: that count; paths of this checkout are not among them.
        folders: with the sources, of which each counts by its name and its bytes.
    """
    digest = hashlib.sha256("\0".join(flags).encode())
    for compiler in compilers:
        said = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        digest.update(said)
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SOURCES):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return cache() / digest.hexdigest()


def find(kept: Path) -> str | None:
    """Returns what the compiler said of a result that is kept; None where it is not."""
    said = kept.with_suffix(".said")
    if not (kept.exists() and said.exists()):
        return None
    for path in (kept, said):
        os.utime(path)
    return said.read_text(encoding="utf-8")


def keep(result: Path, kept: Path, said: str) -> None:
    """Keeps a result and what the compiler said; several processes may do so at once."""
    cache().mkdir(parents=True, exist_ok=True)
    own = kept.with_suffix(f".{os.getpid()}")
    for target, write in (
        (kept, lambda: shutil.copy2(result, own)),
        (kept.with_suffix(".said"), lambda: own.write_text(said, encoding="utf-8")),
    ):
        write()
        os.replace(own, target)
    oldest_last = sorted(cache().glob("*.said"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in oldest_last[_KEPT:]:
        old.unlink(missing_ok=True)
        old.with_suffix("").unlink(missing_ok=True)
