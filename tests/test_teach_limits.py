"""The limits of `cwt teach`: tokens, money and time are used up and never passed."""

import time

import pytest
from teach_run import CALL, asking, manifest
from teach_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Reply,
    right,
)


@pytest.fixture
def ask(tmp_path):
    return asking(tmp_path)


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
