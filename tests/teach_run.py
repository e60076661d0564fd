"""Shared by the tests of `cwt teach`: a run over a few questions, and the files that it leaves."""

import json

from cwt.data.readers import read_examples
from cwt.teaching import Completion, TeachConfig, teach
from teach_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    BadServer,
    plain_template,
    write_questions,
)

CALL = PROMPT_TOKENS + COMPLETION_TOKENS


def asking(tmp_path):
    """Returns what runs teach over n questions against a behaviour and gives (result, server)."""

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
