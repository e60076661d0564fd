"""What a process had at hand outlives it, whatever it was killed in the middle of."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cwt.at_hand import was_at_hand

ROOT = Path(__file__).resolve().parents[1]


def killed(path, *calls):
    """Starts a process that keeps what it has at hand and then kills itself."""
    code = "\n".join(
        [
            "import os, sys",
            "from pathlib import Path",
            "from cwt.at_hand import at_hand, keep_at",
            "at_hand('nobody asked', ['a'])",
            f"keep_at(Path({str(path)!r}))",
            *calls,
            "os.kill(os.getpid(), 9)",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "python")}
    )
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("calls", "kept"),
    [
        ([], ""),
        (["at_hand('reading', ['q1', '', 'q2'])"], "reading (q1, q2)"),
        (["at_hand('step ' * 150)", "at_hand('sampling')"], "sampling"),
        (
            ["at_hand('training, step 3', [f'q{i}' for i in range(20)])"],
            "training, step 3 (q0, q1, q2, q3, q4, q5, q6, q7 and 12 more)",
        ),
    ],
)
def test_the_last_thing_at_hand_is_kept(tmp_path, calls, kept):
    killed(tmp_path / "note", *calls)
    assert was_at_hand(tmp_path / "note") == kept


def test_a_long_one_is_cut_and_none_is_none(tmp_path):
    killed(tmp_path / "note", "at_hand('é' * 900)")
    assert was_at_hand(tmp_path / "absent") == ""
    doing = was_at_hand(tmp_path / "note")
    assert doing.startswith("é" * 490)
    assert (tmp_path / "note").stat().st_size == 1000
