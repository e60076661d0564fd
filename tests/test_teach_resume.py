"""`cwt teach` that is killed, interrupted, out of disk, or run again: nothing is paid twice."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import filelock
import pytest
import teach_server
from cwt.data.readers import read_examples
from cwt.errors import UserError
from cwt.teaching import TeachConfig
from cwt.teaching.grading import verdict
from cwt.teaching.journal import Journal
from cwt.teaching.prompts import load_styles
from cwt.teaching.workers import Run
from teach_run import CALL, Knower, asking, journal_rows, manifest, rationales
from teach_server import (
    BadServer,
    Reply,
    plain_template,
    right,
    says,
    write_questions,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ask(tmp_path):
    return asking(tmp_path)


def test_a_trial_on_the_first_questions_counts_for_the_whole_file(ask):
    trial, _ = ask(lambda call: right(call.question), n=5, first=2)
    assert (trial.accepted, trial.questions) == (2, 2)
    result, server = ask(lambda call: right(call.question), n=5)
    assert (result.accepted, len(server.calls)) == (5, 3)


def test_a_second_run_asks_nothing_again(ask, tmp_path):
    first, _ = ask(lambda call: right(call.question), n=6, samples=2)
    before = (tmp_path / "out" / "rationales.jsonl").read_bytes()
    second, server = ask(lambda call: right(call.question), n=6, samples=2)
    assert (server.calls, second.totals.paid) == ([], first.totals.paid)
    assert second.totals.verdicts == {"accepted": 6, "duplicate": 6}
    assert (tmp_path / "out" / "rationales.jsonl").read_bytes() == before


def test_a_question_whose_answer_changed_is_asked_again(ask, tmp_path, monkeypatch):
    ask(lambda call: right(call.question), n=3)

    def changed(folder, n):
        path = teach_server.write_questions(folder, n)
        path.write_text(path.read_text().replace('"answer": "2"', '"answer": "5"'))
        return path

    monkeypatch.setattr("teach_run.write_questions", changed)
    result, server = ask(lambda call: says("The answer is 5"), n=3)
    assert [call.question for call in server.calls] == ["Add 1 and one."]
    assert (result.accepted, manifest(tmp_path)["completions_of_other_questions"]) == (3, 1)


def test_other_settings_need_another_folder(ask):
    ask(lambda call: right(call.question))
    with pytest.raises(UserError, match=r"made with temperature 0\.7, now it is 0\.1"):
        ask(lambda call: right(call.question), temperature=0.1)


def test_settings_may_change_until_a_completion_came(ask):
    with pytest.raises(UserError, match="no such model"):
        ask(lambda call: Reply({"error": "no such model"}, 404), temperature=0.1)
    assert ask(lambda call: right(call.question), temperature=0.9)[0].accepted == 1


def test_half_a_surrogate_pair_does_not_break_the_files(ask, tmp_path):
    ask(lambda call: says("So\ud800. The answer is 1"))
    assert rationales(tmp_path)[0]["rationale"] == "So?. The answer is 1"


@pytest.mark.parametrize(
    "url", ["http://a:99999/v1", "http://a b/v1", "http://[::1/v1", "http://\u2025/v1"]
)
def test_an_address_that_is_none_is_refused(ask, url):
    with pytest.raises(UserError, match=r"base_url .*address"):
        ask(lambda call: right(call.question), base_url=url)


def test_one_run_at_a_time(ask, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(UserError, match="another `cwt teach` is at work"),
    ):
        ask(lambda call: right(call.question))


SCRIPT = """
import sys
from cwt.teaching import TeachConfig, teach
questions, url, style, out = sys.argv[1:]
config = TeachConfig(questions, "model", base_url=url, style=style, concurrency=4, samples=2,
                     max_tokens=50, timeout=5.0)
print(teach(config, out).accepted)
"""


def start(tmp_path, server, n):
    arguments = [str(write_questions(tmp_path, n)), server.url, plain_template(tmp_path)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments, str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "python")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_calls(server, process, n):
    deadline = time.monotonic() + 20
    while len(server.calls) < n:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_at_any_moment_it_loses_the_requests_in_flight_at_most(tmp_path):
    answered = Counter()

    def behave(call):
        time.sleep(0.01 + 0.02 * (call.nth % 3))
        answered[call.question] += 1
        return right(call.question, f"{answered[call.question]}.")

    n, kills = 40, (9, 31, 52)
    with BadServer(behave) as server:
        for calls in kills:
            process = start(tmp_path, server, n)
            wait_for_calls(server, process, calls)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.1)  # what it had in flight has been answered: it is paid for
            rows = journal_rows_of_a_killed_run(tmp_path)
            on_disk = sum(row["event"] == "completion" for row in rows)
            assert on_disk >= len(server.calls) - 4 * (kills.index(calls) + 1)
        process = start(tmp_path, server, n)
        output, errors = process.communicate()
        assert (process.returncode, output.strip()) == (0, str(2 * n)), errors
        asked = Counter(call.question for call in server.calls)
    extra = sum(asked.values()) - 2 * n
    assert set(asked) == {f"Add {i} and one." for i in range(n)}
    assert min(asked.values()) == 2
    assert 0 <= extra <= 4 * len(kills)
    totals = manifest(tmp_path)["totals"]
    assert totals["completions"] == totals["tokens"] / CALL == 2 * n
    # Every request that a kill cut off is in the running total, at the most that it can have cost.
    cut_off = manifest(tmp_path)["failures"]["in flight when a run was killed"]
    assert extra <= cut_off <= 4 * len(kills)
    assert totals["tokens_perhaps_lost"] >= cut_off * (len("Add 0 and one.") + 64 + 50)
    texts = {(row["question"], row["rationale"]) for row in rationales(tmp_path)}
    assert len(texts) == 2 * n


def journal_rows_of_a_killed_run(folder):
    content = (folder / "out" / "journal.jsonl").read_bytes()
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def test_interrupted_it_leaves_the_files_of_what_it_has(tmp_path):
    def behave(call):
        time.sleep(0.02)
        return right(call.question, f"{call.nth}.")

    with BadServer(behave) as server:
        process = start(tmp_path, server, 200)
        wait_for_calls(server, process, 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
        done = [row for row in journal_rows(tmp_path) if row["event"] == "completion"]
        assert len(server.calls) - 4 <= len(done) <= len(server.calls)
    assert manifest(tmp_path)["stopped"] == "interrupted"
    assert len(rationales(tmp_path)) == len(done)
    # What was in flight may have been charged for, and is in the running total.
    requests = manifest(tmp_path)["totals"]["requests"]
    assert manifest(tmp_path)["failures"] == {"interrupted": requests - len(done)}
    assert manifest(tmp_path)["totals"]["tokens_perhaps_lost"] >= 100 * (requests - len(done))


def test_a_completion_that_arrived_is_kept_whatever_is_interrupted(tmp_path, monkeypatch):
    grading = threading.Event()

    def slow(*args):
        grading.set()
        time.sleep(0.2)
        return verdict(*args)

    monkeypatch.setattr("cwt.teaching.workers.verdict", slow)
    path = write_questions(tmp_path, 1)
    config = TeachConfig(str(path), "knower", seed=7, style=plain_template(tmp_path))
    journal = Journal(tmp_path / "journal.jsonl")
    questions = read_examples(path, rationales=False).examples
    styles = load_styles(config.style, [], 4)
    run = Run(config, questions, styles, Knower(path), journal, lambda share, text: None)

    async def interrupted():
        task = asyncio.create_task(run.go())
        await asyncio.to_thread(grading.wait)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(interrupted())
    journal.close()
    assert run.kept == {"q0": ["We think of it.\nThe answer is 1"]}
    events = [json.loads(line)["event"] for line in journal.path.read_text().splitlines()]
    assert events == ["start", "request", "completion", "end"]


def test_a_journal_that_was_cut_anywhere_holds_its_whole_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    wanted = [{"n": 1}, {"t": "ä\u2028"}, {"t": "\ud800"}]
    for row in wanted:
        journal.append(row)
    journal.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        lines = sum(end <= cut for end in ends)
        assert len(journal.rows) == lines
        assert journal.repaired == cut - ([0, *ends][lines])
        journal.append({"n": 99})
        journal.close()
        after = Journal(path)
        assert after.rows == [*journal.rows, {"n": 99}]
        after.close()


def test_a_journal_damaged_in_the_middle_is_refused(ask, tmp_path):
    ask(lambda call: right(call.question), n=3)
    path = tmp_path / "out" / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2: .* damaged"):
        ask(lambda call: right(call.question), n=3)


def test_append_returns_when_the_row_is_synced(tmp_path, monkeypatch):
    path, sync, synced = tmp_path / "journal.jsonl", os.fsync, [0]

    def slow(handle):
        size = os.fstat(handle).st_size
        time.sleep(0.002)
        sync(handle)
        synced[0] = max(synced[0], size)

    journal = Journal(path)
    monkeypatch.setattr(os, "fsync", slow)
    bad = []

    def write(worker):
        for i in range(20):
            journal.append({"worker": worker, "i": i})
            line = json.dumps({"worker": worker, "i": i}).encode()
            if path.read_bytes().index(line + b"\n") + len(line) >= synced[0]:
                bad.append(line)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert bad == []
    found = Journal(path)
    assert Counter(row["worker"] for row in found.rows) == dict.fromkeys(range(8), 20)
    found.close()


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(ask, tmp_path, monkeypatch):
    write, calls = os.write, Counter()

    def full(handle, data):
        if b'"event"' not in bytes(data):
            return write(handle, data)
        calls["n"] += 1
        if calls["n"] == 8:
            return write(handle, data[:10])
        if calls["n"] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"No space left on device.*is on disk"):
            ask(lambda call: right(call.question), n=10, concurrency=3)
    result, _ = ask(lambda call: right(call.question), n=10, concurrency=3)
    assert (result.accepted, result.totals.completions) == (10, 10)


def test_it_runs_where_a_loop_is_running(ask):
    async def notebook():
        return ask(lambda call: right(call.question), n=3)[0]

    assert asyncio.run(notebook()).accepted == 3
