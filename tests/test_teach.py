"""`cwt teach` against a server that misbehaves on purpose, killed runs, limits and the key."""

import asyncio
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import filelock
import pytest
import teach_server
from app_fixtures import DATA, needs_data
from cwt.data.readers import read_examples
from cwt.errors import UserError
from cwt.teaching import Completion, TeachConfig, teach
from cwt.teaching.client import retry_after
from cwt.teaching.grading import verdict
from cwt.teaching.journal import Journal
from cwt.teaching.prompts import load_styles
from cwt.teaching.workers import Run
from teach_server import (
    COMPLETION_TOKENS,
    KEY,
    PROMPT_TOKENS,
    BadServer,
    Reply,
    plain_template,
    right,
    says,
    write_questions,
)

ROOT = Path(__file__).resolve().parents[1]
CALL = PROMPT_TOKENS + COMPLETION_TOKENS


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def ask(tmp_path):
    """Runs teach over n questions against a behaviour; returns (result, server)."""

    def run(behave, n=1, **options):
        with BadServer(behave) as server:
            options = {
                "style": plain_template(tmp_path), "backoff": 0.01, "max_tokens": 50,
                "concurrency": 1, "timeout": 5.0, "base_url": server.url,
            } | options  # fmt: skip
            questions = str(write_questions(tmp_path, n))
            result = teach(TeachConfig(questions, "model", **options), tmp_path / "out")
        return result, server

    return run


def journal_rows(folder):
    text = (folder / "out" / "journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def rationales(folder):
    text = (folder / "out" / "rationales.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def manifest(folder):
    return json.loads((folder / "out" / "teach.json").read_text(encoding="utf-8"))


# What is kept


def test_every_completion_is_judged_counted_and_paid(ask, tmp_path):
    texts = {
        0: says("One more. The answer is 1"),
        1: says("Zero and one. The answer is 1"),
        2: says("one  MORE. The answer is 1\n"),
        3: says("Two. The answer is 2"),
        4: says("I do not know."),
        5: says("One more. The ans", finish="length"),
        6: says(None),
        7: says("", finish="content_filter"),
        8: says("It is easy: #### 1", usage=False),
    }
    result, server = ask(lambda call: texts[call.nth], samples=9, price_in=2.0, price_out=5.0)
    assert result.totals.verdicts == {
        "accepted": 3, "duplicate": 1, "wrong answer": 1, "no answer": 1, "cut off": 1,
        "empty": 1, "content filter": 1,
    }  # fmt: skip
    assert [(row["id"], row["rationale"]) for row in rationales(tmp_path)] == [
        ("q0", "One more. The answer is 1"),
        ("q0#2", "Zero and one. The answer is 1"),
        ("q0#3", "It is easy: #### 1"),
    ]
    assert {(row["question"], row["answer"]) for row in rationales(tmp_path)} == {
        ("Add 0 and one.", "1")
    }
    # The one without usage counts at the most it can be: a token a byte, 64 around, max_tokens.
    prompt, written = 8 * PROMPT_TOKENS + len("Add 0 and one.") + 64, 8 * COMPLETION_TOKENS + 50
    totals = manifest(tmp_path)["totals"]
    assert (totals["prompt_tokens"], totals["completion_tokens"]) == (prompt, written)
    assert totals["completions_without_usage"] == 1
    assert totals["money"] == pytest.approx((2 * prompt + 5 * written) / 1e6, rel=1e-12)
    assert (totals["requests"], len(server.calls), result.answered) == (9, 9, 1)


def test_the_reader_understands_the_rationales(ask, tmp_path):
    ask(lambda call: right(call.question), n=5)
    read = read_examples(tmp_path / "out" / "rationales.jsonl").examples
    assert [(e.id, e.question, e.answer, e.rationale) for e in read] == [
        (f"q{i}", f"Add {i} and one.", str(i + 1), f"We count. The answer is {i + 1}")
        for i in range(5)
    ]


def test_the_request_is_the_configured_one(ask):
    options = {"temperature": 0.3, "top_p": 0.9, "seed": 40, "samples": 2}
    extra = {"max_tokens_field": "max_completion_tokens", "extra": '{"reasoning_effort": "low"}'}
    _, server = ask(lambda call: right(call.question, f"{call.nth}."), **options, **extra)
    assert [call.path for call in server.calls] == ["/v1/chat/completions"] * 2
    assert "Authorization" not in server.calls[0].headers
    wanted = {
        "model": "model", "temperature": 0.3, "top_p": 0.9, "max_completion_tokens": 50,
        "messages": [{"role": "user", "content": "Add 0 and one."}], "reasoning_effort": "low",
    }  # fmt: skip
    assert [call.payload for call in server.calls] == [wanted | {"seed": 40}, wanted | {"seed": 41}]


def test_enough_right_ones_end_a_question(ask):
    def behave(call):
        return says("The answer is 9") if call.nth == 0 else right(call.question, f"{call.nth}!")

    result, server = ask(behave, samples=8, enough=2)
    assert (len(server.calls), result.accepted) == (3, 2)


def test_a_question_goes_to_the_next_style_only_without_a_right_rationale(ask, tmp_path):
    (tmp_path / "hint.j2").write_text("Know {{ answer }}:\n{{ question }}", encoding="utf-8")
    styles = f"{plain_template(tmp_path)},{tmp_path / 'hint.j2'}"

    def behave(call):
        hinted = call.payload["messages"][0]["content"].startswith("Know 2:")
        return right(call.question) if "0" in call.question or hinted else says("The answer is 7")

    result, server = ask(behave, n=2, style=styles)
    assert (result.accepted, [call.question for call in server.calls]) == (
        2,
        ["Add 0 and one.", "Add 1 and one.", "Add 1 and one."],
    )
    assert list(manifest(tmp_path)["tells_the_answer"].values()) == [False, True]


@pytest.mark.parametrize(
    ("thinking", "message", "wanted"),
    [
        ("drop", says("<think>Hm, 0 + 1.</think>\nThe answer is 1"), "The answer is 1"),
        ("keep", says("<think>Hm, 0 + 1.</think>\nThe answer is 1"), "Hm, 0 + 1.\nThe answer is 1"),
        ("drop", says("Hm.</think>The answer is 1"), "The answer is 1"),
        ("drop", says("The answer is 1", reasoning_content="Hm, 0 + 1."), "The answer is 1"),
        ("keep", says("The answer is 1", reasoning_content="Hm."), "Hm.\nThe answer is 1"),
        ("keep", says("The answer is 1", reasoning="Hm."), "Hm.\nThe answer is 1"),
    ],
)
def test_thinking_is_dropped_or_kept(ask, tmp_path, thinking, message, wanted):
    ask(lambda call: message, thinking=thinking)
    assert [row["rationale"] for row in rationales(tmp_path)] == [wanted]


def test_the_completion_interface_gets_plain_text(ask):
    def behave(call):
        choice = {"text": "So 1. The answer is 1", "finish_reason": "stop"}
        return Reply({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})

    result, server = ask(behave, api="completion")
    assert (server.calls[0].path, server.calls[0].payload["prompt"]) == (
        "/v1/completions",
        "Add 0 and one.\n",
    )
    assert (result.accepted, result.totals.paid.all) == (1, 7)


def test_a_grader_that_fails_loses_no_paid_completion(ask, tmp_path, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("cwt.teaching.workers.verdict", broken)
    result, _ = ask(lambda call: right(call.question))
    assert result.totals.verdicts == {"grader failed: ZeroDivisionError": 1}
    assert [row["text"] for row in journal_rows(tmp_path) if row["event"] == "completion"] == [
        "We count. The answer is 1"
    ]


@pytest.mark.parametrize(
    ("text", "finish", "wanted"),
    [
        ("So it is 4. The answer is 4", "stop", "accepted"),
        ("so  it IS 3. The answer is 4", "stop", "duplicate"),
        ("The answer is 5", "stop", "wrong answer"),
        ("Four.", "stop", "no answer"),
        (" \n", "stop", "empty"),
        ("So it is 4. The answer is 4", "length", "cut off"),
    ],
)
def test_verdicts(text, finish, wanted):
    assert verdict(Completion(text, finish), "4", ["So it is 3. The answer is 4"])[0] == wanted


def test_a_file_with_columns_of_its_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("frage,loesung\nAdd 4 and one.,5\nAdd 6 and one.,7\nAdd 8 and one.,\n")
    with BadServer(lambda call: right(call.question)) as server:
        config = TeachConfig(
            str(path), "model", columns="question=frage, answer=loesung", base_url=server.url,
            style=plain_template(tmp_path), max_tokens=50,
        )  # fmt: skip
        assert teach(config, tmp_path / "out").accepted == 2
    assert [row["answer"] for row in rationales(tmp_path)] == ["5", "7"]
    assert manifest(tmp_path)["questions"]["dropped"] == {"no answer": 1}


class Knower:
    """A teacher of one's own: it knows every answer, and closes once."""

    def __init__(self, path):
        self.answers = {
            e.question: e.answer for e in read_examples(path, rationales=False).examples
        }
        self.closed = 0

    async def complete(self, messages, seed):
        question = messages[0]["content"]
        assert seed == 7
        return Completion(f"We think of it.\nThe answer is {self.answers[question]}", "stop", 2, 3)

    async def close(self):
        self.closed += 1


@needs_data
@pytest.mark.parametrize(
    "name", ["gsm8k/test.jsonl", "svamp/test.jsonl", "strategyqa/strategyQA_test.json"]
)
def test_real_questions_come_back_through_the_reader(tmp_path, name):
    teacher, shares = Knower(DATA / name), []
    config = TeachConfig(
        str(DATA / name),
        "knower",
        style=plain_template(tmp_path),
        seed=7,
        first=150,
        concurrency=16,
    )
    result = teach(config, tmp_path / "out", lambda share, text: shares.append(share), teacher)
    asked = read_examples(DATA / name, rationales=False).examples[:150]
    assert (result.accepted, teacher.closed) == (150, 1)
    read = read_examples(result.rationales).examples
    assert [(e.id, e.question, e.answer) for e in read] == [
        (e.id, e.question, e.answer) for e in asked
    ]
    assert shares == [(i + 1) / 150 for i in range(150)]


# What goes wrong and passes


def cut_json(call):
    body = json.dumps(right(call.question).body).encode()
    return Reply(body[: len(body) // 2])


MISBEHAVIOURS = {
    # name: (behaviour, failure as counted, whether the server may have charged for it)
    "500": (lambda call: Reply({"error": {"message": "oops"}}, 500), "HTTP 500", False),
    "503 page": (lambda call: Reply(b"<html>busy</html>", 503), "HTTP 503", False),
    "429": (lambda call: Reply({"error": "slow down"}, 429), "HTTP 429", False),
    "cut JSON": (cut_json, "not a completion", True),
    "cut body": (
        lambda call: Reply(right(call.question).body, claims=99), "connection lost", True,
    ),
    "dropped": (lambda call: Reply(drop=True), "connection lost", True),
    "slow headers": (
        lambda call: Reply(right(call.question).body, before=0.9),
        "no whole answer within 0.5 s", True,
    ),
    "dripping body": (
        lambda call: Reply(right(call.question).body, drip=0.02),
        "no whole answer within 0.5 s", True,
    ),
    "empty choices": (lambda call: Reply({"choices": []}), "no choices", True),
    "error in 200": (lambda call: Reply({"error": {"message": "no GPU"}}), "no choices", True),
    "nested without end": (lambda call: Reply(b"[" * 100_000), "not a completion", True),
    "broken surrogate": (lambda call: Reply({"error": "\ud800"}, 500), "HTTP 500", False),
    "not an object": (lambda call: Reply([1, 2]), "not a completion", True),
    "choice null": (lambda call: Reply({"choices": [None]}), "not a completion", True),
    "content number": (lambda call: says(7), "not a completion", True),
    "not gzip": (
        lambda call: Reply(b"plain", headers={"Content-Encoding": "gzip"}),
        "unreadable answer", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_passing_failure_is_tried_again(ask, tmp_path, name):
    behaviour, failure, charged = MISBEHAVIOURS[name]
    result, server = ask(
        lambda call: behaviour(call) if call.nth < 2 else right(call.question), timeout=0.5
    )
    assert (result.accepted, len(server.calls), result.stopped) == (1, 3, "finished")
    assert result.totals.failures == {failure: 2}
    most = len("Add 0 and one.") + 64 + 50
    assert result.totals.lost.all == (2 * most if charged else 0)
    assert result.totals.paid.all == CALL


def test_a_server_that_is_not_there_ends_the_run_with_its_address(tmp_path):
    config = TeachConfig(
        str(write_questions(tmp_path, 3)), "model", base_url="http://127.0.0.1:9/v1",
        style=plain_template(tmp_path), retries=1, backoff=0.01, give_up=2, concurrency=1,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"gave up after 2 .*no connection: http://127\.0\.0\.1:9"):
        teach(config, tmp_path / "out")
    assert manifest(tmp_path)["failures"] == {"no connection": 4}
    assert manifest(tmp_path)["totals"]["tokens_perhaps_lost"] == 0


def test_retry_after_holds_for_every_worker(ask):
    def behave(call):
        if call.question == "Add 0 and one." and call.nth == 0:
            return Reply({"error": "slow"}, 429, {"Retry-After": "1"})
        time.sleep(0.2)
        return right(call.question)

    result, server = ask(behave, n=9, concurrency=3)
    refused = next(call.at for call in server.calls if call.question == "Add 0 and one.")
    late = [call.at - refused for call in server.calls]
    assert (result.accepted, len(late)) == (9, 10)
    # Of the three, the two that were not refused had one request each on its way.
    assert sum(delay < 0.95 for delay in late) <= 3


def test_retry_after_is_seconds_or_a_date():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0
    date = formatdate(time.time() + 30, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(30, abs=2)
    for nothing in ("", "soon", "inf", "nan"):
        assert retry_after({"retry-after": nothing}) is None


def test_a_wait_that_is_too_long_ends_the_run_in_order_and_it_goes_on_later(ask):
    def behave(call):
        late = call.question.startswith("Add 2") and call.nth == 0
        return Reply(b"", 429, {"Retry-After": "3600"}) if late else right(call.question)

    began = time.monotonic()
    result, _ = ask(behave, n=4, max_wait=5.0)
    assert result.stopped == "the server asks for a wait of 3600 s, more than max_wait 5"
    assert (result.accepted, time.monotonic() - began < 3) == (2, True)
    again, server = ask(lambda call: right(call.question), n=4)
    assert (again.accepted, len(server.calls), again.stopped) == (4, 2, "finished")


# What goes wrong and stays


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply({"error": {"message": f"bad key {KEY}"}}, 401), r"HTTP 401: bad key \[key\]"),
        (Reply({"error": {"message": "no such model"}}, 404), "HTTP 404: no such model"),
        (Reply({"detail": "Not here"}, 405), "HTTP 405: Not here"),
        (
            Reply({"error": {"message": "Pay.", "code": "insufficient_quota"}}, 429),
            "HTTP 429: Pay",
        ),
        (Reply(b"", 301, {"Location": "https://else.where/"}), r"sends on to https://else\.where/"),
    ],
)
def test_a_refusal_ends_the_run_at_once(ask, tmp_path, monkeypatch, reply, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match=message) as caught:
        ask(lambda call: reply, n=20, concurrency=2)
    assert KEY not in str(caught.value)
    assert manifest(tmp_path)["totals"]["requests"] <= 2


def test_a_refusal_without_a_key_names_the_variable(ask):
    with pytest.raises(UserError, match=r"HTTP 401 \(no key was sent: MY_KEY is not set\)"):
        ask(lambda call: Reply(b"", 401), key_env="MY_KEY")


def test_a_question_that_is_refused_does_not_end_the_run(ask, tmp_path):
    def behave(call):
        refused = int(call.question.split()[1]) in range(5, 15)
        return Reply({"error": "too long"}, 400) if refused else right(call.question)

    result, server = ask(behave, n=20, give_up=3, samples=2, temperature=1.0)
    assert result.totals.failures == {"HTTP 400": 10}
    assert (result.answered, len(server.calls), result.stopped) == (10, 30, "finished")
    again, server = ask(lambda call: right(call.question), n=20, samples=2, temperature=1.0)
    assert (again.answered, len(server.calls)) == (20, 20)


def test_a_run_without_one_completion_is_an_error(ask):
    with pytest.raises(
        UserError, match="no request brought a completion; the last: HTTP 500: oops"
    ):
        ask(lambda call: Reply({"error": "oops"}, 500), n=2, retries=1)


def test_requests_that_are_all_refused_end_the_run(ask):
    with pytest.raises(UserError, match="gave up after 3 failed requests in a row; the last: HTTP"):
        ask(lambda call: Reply({"error": "max_tokens is unknown"}, 400), n=20, give_up=3)


# Limits


def test_the_limit_of_tokens_is_used_up_and_never_passed(ask, tmp_path):
    most, limit = len("Add 0 and one.") + 64 + 50, 1000

    def behave(call):
        time.sleep(0.01)
        return right(call.question)

    result, _ = ask(behave, n=100, concurrency=5, limit_tokens=limit)
    assert result.totals.paid.all <= limit
    assert limit - result.totals.paid.all < most + 1  # two digits in later questions
    assert result.stopped.startswith("limit_tokens 1000: ")
    assert manifest(tmp_path)["stopped"] == result.stopped
    more, server = ask(behave, n=100, concurrency=5, limit_tokens=1500)
    assert more.totals.paid.all <= 1500
    assert len(server.calls) == more.totals.completions - result.totals.completions
    done, _ = ask(behave, n=100, concurrency=5)
    assert (done.accepted, done.totals.completions, done.totals.paid.all) == (100, 100, 100 * CALL)


def test_what_is_in_flight_counts_against_the_limit(ask):
    most = len("Add 0 and one.") + 64 + 50

    def behave(call):  # each request costs all that it can
        time.sleep(0.1)
        body = dict(right(call.question).body)
        return Reply(body | {"usage": {"prompt_tokens": most - 50, "completion_tokens": 50}})

    result, server = ask(behave, n=10, concurrency=8, limit_tokens=4 * most - 1)
    assert (len(server.calls), result.totals.paid.all) == (3, 3 * most)


def test_the_limit_of_money_is_never_passed(ask):
    prices = {"price_in": 100.0, "price_out": 1000.0}
    paid = (100 * PROMPT_TOKENS + 1000 * COMPLETION_TOKENS) / 1e6
    result, _ = ask(
        lambda call: right(call.question), n=50, concurrency=4, limit_money=20 * paid, **prices
    )
    most = (100 * (len("Add 10 and one.") + 64) + 1000 * 50) / 1e6
    assert 20 * paid - most < result.money <= 20 * paid
    assert result.money == pytest.approx(paid * result.totals.completions)
    assert result.stopped.startswith("limit_money ")


def test_what_may_have_been_charged_counts_against_the_limit(ask):
    most = len("Add 0 and one.") + 64 + 50
    result, server = ask(lambda call: Reply(drop=True), limit_tokens=3 * most + 1, retries=20)
    assert (len(server.calls), result.totals.lost.all) == (3, 3 * most)
    assert result.stopped.startswith("limit_tokens")


def test_the_limit_of_time_is_never_passed_by_what_can_be_known(ask):
    def behave(call):
        time.sleep(0.15)
        return right(call.question)

    result, _ = ask(behave, n=100, concurrency=2, limit_seconds=1.0)
    assert 4 <= result.totals.completions <= 12
    assert result.totals.seconds <= 1.3  # a loaded machine is slower than its longest request
    assert result.stopped.startswith("limit_seconds 1: ")
    again, server = ask(behave, n=100, concurrency=2, limit_seconds=1.0)
    assert len(server.calls) <= 2
    assert again.totals.seconds >= result.totals.seconds


def test_a_wait_beyond_the_limit_of_time_ends_the_run(ask):
    began = time.monotonic()
    wait = Reply(b"", 429, {"Retry-After": "30"})
    result, _ = ask(lambda call: wait, limit_seconds=5.0, max_wait=60.0)
    assert result.stopped.startswith("limit_seconds 5: ")
    assert time.monotonic() - began < 3


# Resuming


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

    monkeypatch.setattr(sys.modules[__name__], "write_questions", changed)
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


# The key


def test_the_key_is_nowhere_but_in_the_request(ask, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    leaks = [
        Reply({"error": {"message": f"{'x' * 290} {KEY}"}}, 500),
        Reply(f"key {KEY}".encode(), 503),
        Reply({"choices": [], "error": {"message": KEY}}),
        says(f"Your key is {KEY}. The answer is 1"),
        says(f"I am sure. The answer is 1, {KEY}"),
    ]
    result, server = ask(lambda call: leaks[call.nth], samples=2, key_env="TEACHER_KEY")
    assert {call.headers["Authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert result.totals.completions == 2
    written = "".join(p.read_text() for p in (tmp_path / "out").iterdir() if p.is_file())
    assert "[key]" in written
    assert "TEACHER_KEY" in written
    output = capfd.readouterr()
    for text in (written, caplog.text, output.out, output.err, repr(result)):
        for secret in (KEY, json.dumps(KEY)[1:-1], KEY[:12]):
            assert secret not in text


@pytest.mark.parametrize("value", ["sk-\u2026secret", "sk-secret\nsecond-secret", "a b-secret"])
def test_a_key_that_cannot_be_one_is_refused_unseen(ask, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds white space or letters") as caught:
        ask(lambda call: right(call.question))
    assert "secret" not in str(caught.value)


# Options and prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "model must not be empty"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samples": 2, "temperature": 0.0}, "samples = 2 needs a temperature above 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"timeout": float("nan")}, "timeout must be above 0 seconds, got nan"),
        ({"api": "responses"}, "api must be chat or completion, got 'responses'"),
        ({"limit_money": 1.0}, "limit_money needs price_in or price_out"),
        ({"extra": "[1]", "base_url": "http://a"}, r"extra must be a JSON object, got '\[1\]'"),
        ({"extra": '{"n": 4}', "base_url": "http://a"}, "extra must not set n"),
        ({"extra": '{"stop": "x"}'}, "extra is for a server"),
        ({"columns": "question"}, "columns must be question=NAME,answer=NAME, got 'question'"),
        ({"base_url": "localhost:80"}, "must be an http or https address, got 'localhost:80'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        TeachConfig(**({"questions": "q.jsonl", "model": "m"} | options))


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "https://host/v1?api_key=secret"])
def test_an_address_that_holds_a_secret_is_refused_unseen(url):
    with pytest.raises(UserError, match="the key goes into the environment") as caught:
        TeachConfig("q.jsonl", "m", base_url=url)
    assert "secret" not in str(caught.value)


def shot(i):
    return read_examples_row(f"What is {i} + {i}?", f"It is {i} + {i} = {2 * i}.", str(2 * i))


def read_examples_row(question, rationale, answer):
    from cwt.data.example import Example

    return Example(question, question, (rationale, f" The answer is {answer}"), answer)


def test_the_styles_that_ship_show_what_they_should():
    question = read_examples_row("How many {{legs}} has a\nspider?", "", "eight thousand")
    zero, few, hinted = (
        style.messages(question) for style in load_styles("zero-shot,few-shot,hinted", [], 4)
    )
    for messages in (zero, few, hinted):
        assert [message["role"] for message in messages] == ["user"]
        assert messages[0]["content"].count(question.question) == 1
        assert "The answer is " in messages[0]["content"]
        assert messages[0]["content"] == messages[0]["content"].strip()
    assert "eight thousand" not in zero[0]["content"] + few[0]["content"]
    assert hinted[0]["content"].count("eight thousand") == 2
    assert few[0]["content"].count("Solution:") == 5


def test_few_shot_shows_the_shots_of_a_file_but_never_the_question_itself():
    shots = [shot(i) for i in range(4)]
    (style,) = load_styles("few-shot", shots, 2)
    asked = read_examples_row("what  is 0 + 0?", "", "0")
    text = style.messages(asked)[0]["content"]
    assert [f"It is {i} + {i} = {2 * i}. The answer is {2 * i}" in text for i in range(4)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert text.endswith("Problem:\nwhat  is 0 + 0?\nSolution:")


def test_a_template_of_ones_own_may_have_a_system_message(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("{% block system %}Be brief.{% endblock %}{% block user %}{{ question }}!"
                    "{% endblock %}")  # fmt: skip
    (style,) = load_styles(str(path), [], 4)
    assert style.messages(shot(1)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?!"},
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ question }} {{ answr }}", "there is no answr; a template may use answer, question"),
        ("Think.", "the template never shows"),
        ("{{ question }\n{% if %}", "line 1: no jinja2"),
        ("{% block usr %}{{ question }}{% endblock %}", "has the blocks user .* got usr"),
        ("{{ question.nothing }}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_work_is_refused(tmp_path, source, message):
    (tmp_path / "mine.j2").write_text(source)
    with pytest.raises(UserError, match=message):
        load_styles(str(tmp_path / "mine.j2"), [], 4)


@pytest.mark.parametrize(
    ("style", "shots", "message"),
    [
        ("cot", [], "style must be few-shot, hinted, zero-shot or the path of a template, got"),
        ("hinted,hinted", [], "style names hinted more than once"),
        ("zero-shot", [shot(1)], "shots are for a template that shows them; style zero-shot"),
    ],
)
def test_a_style_that_cannot_be_is_refused(style, shots, message):
    with pytest.raises(UserError, match=message):
        load_styles(style, shots, 4)
