"""Evaluation through an OpenAI-compatible server: the prompt, the files and the grades of `hf`."""

import json
import shutil
import threading

import pytest
from app_fixtures import examples, tiny
from cwt.cli import main
from cwt.config import EvalConfig
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate_by, latency_by
from cwt.evaluation.generators import LocalGenerator, Written
from cwt.evaluation.server import ServerGenerator, ServerOptions
from cwt.files import read_json, read_lines
from cwt.students.chat import PromptStyle
from cwt.students.load import load_student, load_tokenizer
from cwt.students.tokenized import PromptTokenizer
from teach_server import BadServer, Reply
from test_chat import tokenizer
from test_teach_models import start_serving

STYLES = ("chatml", "gemma", "plain")


def completed(text, finish="stop", prompt=None, written=None):
    usage = {} if prompt is None else {"prompt_tokens": prompt, "completion_tokens": written}
    return Reply({"choices": [{"text": text, "finish_reason": finish}], "usage": usage})


def generator(server, **options):
    values = {"model": "student", "backoff": 0.01, "timeout": 20.0} | options
    return ServerGenerator(tiny().tokenizer, ServerOptions(server.url, **values))


def test_questions_are_sent_as_the_student_was_trained_and_come_back_in_order(monkeypatch):
    monkeypatch.setenv("CWT_SERVER_KEY", "sk-0123456789")
    some, words = examples(9), tiny().tokenizer
    lock, at_once, most = threading.Barrier(3, timeout=10), [], []

    def behave(call):
        at_once.append(1)
        most.append(len(at_once))
        lock.wait()  # three questions are in flight at once, else it breaks
        at_once.pop()
        i = next(i for i, e in enumerate(some) if call.payload["prompt"] == f"{e.question}\n")
        ids = words.prompt(some[i].question)
        return completed(f"{i}. The answer is {some[i].answer}", "stop", len(ids), 7 + i)

    with BadServer(behave) as server:
        asking = generator(server, concurrency=3)
        score, rows = evaluate_by(asking, some, max_new_tokens=55)
    assert max(most) == 3
    assert [r.text for r in rows] == [f"{i}. The answer is {e.answer}" for i, e in enumerate(some)]
    assert [r.tokens for r in rows] == [7 + i for i in range(9)]
    assert (score.accuracy, score.well_formed, score.truncated) == (1.0, 1.0, 0.0)
    for call in server.calls:
        assert call.path == "/v1/completions"
        assert call.headers["Authorization"] == "Bearer sk-0123456789"
        rest = {k: v for k, v in call.payload.items() if k != "prompt"}
        assert rest == {"model": "student", "max_tokens": 55, "temperature": 0.0, "top_p": 1.0}


def test_what_a_server_writes_is_kept_whole_and_counted():
    text = " <think>1 + 1</think> The answer is 2 \n"
    replies = [completed(text), completed(text, "length", None), completed("", "stop", None)]
    with BadServer(lambda call: replies[len(server.calls) - 1]) as server:
        written = generator(server, concurrency=1).write(["a", "b", "c"], 9)
    tokens = len(tiny().ids(text))
    assert written == [Written(text, tokens + 1, True), Written(text, tokens, False),
                       Written("", 1, True)]  # fmt: skip


def test_a_server_that_fails_for_a_while_is_asked_again():
    def behave(call):
        if call.nth == 0:
            return Reply({"error": "busy"}, status=503, headers={"Retry-After": "0.1"})
        return Reply(drop=True) if call.nth == 1 else completed("The answer is 1")

    with BadServer(behave) as server:
        assert [w.text for w in generator(server).write(["x", "y"], 5)] == ["The answer is 1"] * 2
    assert len(server.calls) == 6


@pytest.mark.parametrize(
    ("reply", "tries", "message"),
    [(Reply({"error": {"message": "no such model"}}, status=404), 1, "'student': HTTP 404: no suc"),
     (Reply({"error": "oops"}, status=500), 3, "HTTP 500: oops"),
     (completed("x", "stop", 400, 1), 1, r"it read 400 tokens where the prompt has \d+: it serves"),
     (Reply({"choices": [{"text": None}]}), 3, "not a completion"),
     (Reply(status=503, headers={"Retry-After": "999"}), 1, "a wait of 999 s, more than max_wait")],
)  # fmt: skip
def test_an_evaluation_without_an_answer_is_an_error(reply, tries, message):
    with BadServer(lambda call: reply) as server, pytest.raises(UserError, match=message):
        generator(server, retries=2, concurrency=1).write(["x", "y"], 5)
    assert len(server.calls) == tries


@pytest.mark.parametrize("kind", STYLES)
def test_the_text_of_a_chat_is_read_as_the_students_own_prompt(kind, tmp_path):
    """By a server that calls the saved tokenizer, which may begin every text with a token."""
    prompts = PromptTokenizer(tokenizer(kind), PromptStyle(chat=True))
    for question in ("What is 1 + 1?", " a\n\n b "):
        text = prompts.prompt_text(question)
        assert prompts.tokenizer.encode(text) == list(prompts.prompt(question))
    if kind == "plain":
        return
    end = prompts.tokenizer.convert_ids_to_tokens(prompts.eos)
    named = f"What does {end} mean?"
    assert prompts.prompt_text(named) is None  # its text would end a turn
    asked = []

    def behave(call):
        asked.append(call.payload["prompt"])
        return completed("The answer is 1")

    class Server(BadServer):
        def _answer(self, handler):  # prompts of ids have no lines
            handler.rfile = Rewritten(handler)
            super()._answer(handler)

    class Rewritten:
        def __init__(self, handler):
            body = handler.rfile.read(int(handler.headers["Content-Length"]))
            ids = json.loads(body)["prompt"]
            asked.append(ids)
            self.body = json.dumps({"prompt": "ids"}).encode()
            handler.headers.replace_header("Content-Length", str(len(self.body)))

        def read(self, length):
            return self.body

    with Server(behave) as server:
        ServerGenerator(prompts, ServerOptions(server.url, "student")).write([named], 5)
    assert asked[0] == list(prompts.prompt(named))


def test_a_tokenizer_that_begins_every_text_is_not_given_the_token_twice():
    words = tokenizer("gemma")
    from tokenizers.processors import TemplateProcessing

    begin = words.bos_token_id
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", begin)]
    )
    prompts = PromptTokenizer(words, PromptStyle(chat=True))
    assert words.encode("x")[0] == begin
    text = prompts.prompt_text("What is 1 + 1?")
    assert words.encode(text) == list(prompts.prompt("What is 1 + 1?"))
    assert words.encode(text).count(begin) == 1
    assert text.startswith("<start_of_turn>user\n")


def test_options():
    with pytest.raises(UserError, match=r"--generator server needs --base-url, .* got ''"):
        EvalConfig(generator="server")
    for secret in ("http://me:word@host/v1", "http://host/v1?key=word"):
        with pytest.raises(UserError, match="must hold neither a user") as raised:
            EvalConfig(generator="server", base_url=secret)
        assert "word" not in str(raised.value).replace("password", "")
    with pytest.raises(UserError, match=r"timeout must be above 0 seconds, got 0"):
        EvalConfig(timeout=0.0)


# A real server


@pytest.fixture(scope="module")
def served():
    """`transformers serve`, which loads the folder that a request names."""
    yield from start_serving()


def test_greedy_answers_of_a_server_are_those_of_the_model(served):
    some = examples(6)
    local = LocalGenerator(tiny())
    folder = tiny().model.name_or_path
    remote = ServerGenerator(load_tokenizer(folder), ServerOptions(served, folder, concurrency=3))
    for most in (120, 10):  # most answers end by themselves; all are cut off
        wanted = evaluate_by(local, some, most)
        found = evaluate_by(remote, some, most)
        assert found[1] == wanted[1]
        assert {r.truncated for r in found[1]} >= {most == 10}
        for key in ("accuracy", "generated_tokens", "well_formed", "truncated"):
            assert getattr(found[0], key) == getattr(wanted[0], key)
    assert latency_by(remote, some[:2], 4) > 0


def test_eval_writes_the_same_files_through_a_server(served, tmp_path):
    out, again = tmp_path / "hf", tmp_path / "server"
    main(["data", "--task", "letters", "--data.train-size", "12", "--data.validation-size", "4",
          "--data.test-size", "5", "--out", str(out)])  # fmt: skip
    main(["chunk", "--chunk.no-compare", "--out", str(out)])
    main(["train", "--method", "FTT", "--budget", "300", "--out", str(out)])
    shutil.copytree(out, again)
    limits = ["--method", "FTT", "--eval.max-new-tokens", "20", "--eval.latency-questions", "1"]
    main(["eval", *limits, "--out", str(out)])
    server = ["--generator", "server", "--base-url", served]
    main(["eval", *limits, *server, "--out", str(again)])
    assert read_lines(again / "evals/FTT.jsonl") == read_lines(out / "evals/FTT.jsonl")
    clock = ("tokens_per_second", "seconds_per_answer")
    scores = [
        {k: v for k, v in read_json(folder / "evals/FTT.json").items() if k not in clock}
        for folder in (out, again)
    ]
    assert scores[0] == scores[1]
    assert read_json(again / "latency/FTT.json")["seconds"] > 0
    assert read_json(again / "methods/FTT.json") == read_json(out / "methods/FTT.json")
    assert load_student(str(again / "students/FTT"))  # the folder that the server read
