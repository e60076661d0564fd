"""train_log.jsonl grows while a run goes on, and is cut back exactly where it resumes."""

import json
from dataclasses import replace

import pytest
from cwt.files import read_lines
from cwt.training import step_log
from cwt.training.step_log import StepLog
from train_cases import RECIPE, trained

SHORT = replace(RECIPE, budget=300, checkpoint_seconds=60.0)


def test_the_log_grows_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(step_log, "_FLUSH_SECONDS", -1.0)
    seen = []

    def look(share, text):
        rows = read_lines(tmp_path / "train_log.jsonl")
        seen.append(len(rows))
        assert text == f"loss {rows[-1]['loss']:.3f}"

    _, spent = trained(tmp_path, replace(SHORT, budget=900), progress=look)
    assert len(seen) > 2
    assert seen == list(range(1, spent.optimizer_steps + 1))


def test_rows_reach_the_disk_at_most_every_two_seconds(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now)
    log = StepLog(tmp_path / "log.jsonl")
    log.begin(after=0)
    counts = []
    for step in range(7):
        log.write({"step": step})
        counts.append(len(read_lines(log.path)))
        now += 0.9
    log.close()
    # Written at 100.0 (the first row), 102.7 and 105.4 seconds.
    assert counts == [1, 1, 1, 4, 4, 4, 7]
    assert read_lines(log.path) == [{"step": step} for step in range(7)]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_log_is_cut_back_to_the_steps_done(tmp_path, after):
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, "text": "\u2028é"} for step in range(3)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(content + '{"step": 3, "te')  # torn by a kill
    log = StepLog(path)
    log.begin(after)
    log.write({"step": "next"})
    log.close()
    assert read_lines(path) == [*rows[:after], {"step": "next"}]


def test_a_second_crash_before_the_first_flush_loses_no_row(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    log = StepLog(path)
    log.begin(after=2)
    assert read_lines(path) == [{"step": 1}, {"step": 2}]  # a kill here leaves this
    log.close()


def test_a_new_run_forgets_the_log_of_one_without_a_checkpoint(tmp_path):
    (tmp_path / "train_log.jsonl").write_text('{"step": 1, "loss": "another run\'s"}\n')
    _, spent = trained(tmp_path, SHORT)
    rows = read_lines(tmp_path / "train_log.jsonl")
    assert len(rows) == spent.optimizer_steps
    assert all(isinstance(row["loss"], float) for row in rows)
