"""The key, the options and the prompts of `cwt teach`."""

import json
import logging

import pytest
from cwt.errors import UserError
from cwt.teaching import TeachConfig
from cwt.teaching.prompts import load_styles
from teach_run import asking
from teach_server import (
    KEY,
    Reply,
    right,
    says,
)


@pytest.fixture
def ask(tmp_path):
    return asking(tmp_path)


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
