import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same cases on every run: a suite that gates a landing must not depend on luck.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


seed_everything()  # some parameters are drawn when a module is imported: alike in every process


@pytest.fixture(autouse=True)
def _seeds() -> None:
    seed_everything()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test on data beside the project, `realdata(path)`, where its path is not there."""
    for mark in item.iter_markers("realdata"):
        if not mark.args[0].exists():
            pytest.skip("the data beside the project is not there: ../shared (marker realdata)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why tests were skipped: one line a reason, with how many."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped: tests, reason")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5}  {' '.join(reason.split())}")
