"""`cwt teach` against a server that misbehaves on purpose."""

import json
import time
from email.utils import formatdate

import pytest
from cwt.errors import UserError
from cwt.teaching import TeachConfig, teach
from cwt.teaching.client import retry_after
from teach_run import CALL, asking, manifest
from teach_server import (
    KEY,
    Reply,
    plain_template,
    right,
    says,
    write_questions,
)


@pytest.fixture
def ask(tmp_path):
    return asking(tmp_path)


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
