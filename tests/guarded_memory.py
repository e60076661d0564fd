"""Memory whose pages can be closed: whoever touches a closed page gets SIGSEGV. Linux only."""

import ctypes
import mmap
import signal
import subprocess
import sys
from pathlib import Path

PAGE = mmap.PAGESIZE
MISSING = (
    "" if sys.platform.startswith("linux") else f"closes pages as Linux does, not {sys.platform}"
)
_PROT_NONE, _PROT_READ_WRITE = 0, 3
_libc = ctypes.CDLL(None, use_errno=True)


class Pages:
    """Anonymous memory at a page boundary; `buffer` is what numpy and torch take."""

    def __init__(self, size: int) -> None:
        self.buffer = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        assert self.address % PAGE == 0

    def protect(self, begin: int, end: int, closed: bool) -> None:
        """Closes or opens the bytes [begin, end), both multiples of PAGE."""
        assert begin % PAGE == end % PAGE == 0
        mode = _PROT_NONE if closed else _PROT_READ_WRITE
        failed = _libc.mprotect(
            ctypes.c_void_p(self.address + begin), ctypes.c_size_t(end - begin), mode
        )
        assert not failed, f"mprotect: errno {ctypes.get_errno()}"


def resident_pages(address: int, size: int) -> int:
    """Returns how many pages of [address, address + size) have ever been touched."""
    states = (ctypes.c_ubyte * (size // PAGE))()
    failed = _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), states)
    assert not failed, f"mincore: errno {ctypes.get_errno()}"
    return sum(state & 1 for state in states)


def wait_at_closed_pages() -> None:
    """From now on, a thread that touches a closed page tries again until the page is open.

    The handler of SIGSEGV is sched_yield: it returns, and the instruction runs once more.
    """
    _libc.signal.restype = ctypes.c_void_p
    _libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    _libc.signal(signal.SIGSEGV, ctypes.cast(_libc.sched_yield, ctypes.c_void_p))


def run_apart(code: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, which may be killed by what it proves."""
    tests = Path(__file__).resolve().parent
    paths = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", paths + code], capture_output=True, text=True, timeout=timeout
    )
