"""`cwt teach`: what it asks, and what it keeps of the answers."""

import pytest
from app_fixtures import DATA, needs_data
from cwt.data.readers import read_examples
from cwt.teaching import Completion, TeachConfig, teach
from cwt.teaching.grading import verdict
from teach_run import Knower, asking, journal_rows, manifest, rationales
from teach_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    BadServer,
    Reply,
    plain_template,
    right,
    says,
)


@pytest.fixture
def ask(tmp_path):
    return asking(tmp_path)


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
