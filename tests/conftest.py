import gc
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same cases on every run: a suite that gates a landing must not depend on luck.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# A script that starts the suite in its background has it ignore Ctrl-C, and so would every process
# that a test starts: tests of stopping in order would fail, or wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


seed_everything()  # some parameters are drawn when a module is imported: alike in every process


@pytest.fixture(autouse=True)
def _seeds() -> None:
    seed_everything()


@pytest.fixture(scope="session")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded student as a folder, so that it is one of the user's own; it is only read."""
    from app_fixtures import tiny

    folder = tmp_path_factory.mktemp("mine")
    tiny().save(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch, as in the processes of a test: the last bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses the key of whoever runs it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test on data beside the project, `realdata(path)`, where its path is not there."""
    for mark in item.iter_markers("realdata"):
        if not mark.args[0].exists():
            pytest.skip("the data beside the project is not there: ../shared (marker realdata)")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keeps what is imported out of garbage collections; each training asks for one."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why tests were skipped: one line a reason, with how many."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped: tests, reason")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5}  {' '.join(reason.split())}")
