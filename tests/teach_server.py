"""Shared by the tests of `cwt teach`: a server that misbehaves as told, and its questions."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-test-0123456789-very/secret\\key"
PROMPT_TOKENS, COMPLETION_TOKENS = 11, 7


@dataclass
class Reply:
    """What the server does with one request.

    Attributes:
        body: sent as JSON, or as it is where it is bytes.
        claims: bytes that the header promises beyond those that are sent.
        before: seconds of silence before the headers.
        drip: seconds between the bytes of the body.
        drop: close the connection without a word.
    """

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    claims: int = 0
    before: float = 0.0
    drip: float = 0.0
    drop: bool = False


def says(text: str | None, finish: str = "stop", usage: bool = True, **message: Any) -> Reply:
    """A completion in the words of the OpenAI interface."""
    body: dict[str, Any] = {
        "choices": [{"message": {"content": text, **message}, "finish_reason": finish}]
    }
    if usage:
        body["usage"] = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    return Reply(body)


def right(question: str, words: str = "We count.") -> Reply:
    """The right answer to a question of `write_questions`: the number in it, and one."""
    return says(f"{words} The answer is {int(question.split()[1]) + 1}")


@dataclass
class Call:
    """A request that arrived: when, for what, and which one it was of that question (0, 1, ...)."""

    question: str
    nth: int
    at: float
    payload: dict[str, Any]
    headers: dict[str, str]
    path: str


class BadServer:
    """Answers each request with what `behave` returns for it; keeps every call."""

    def __init__(self, behave: Callable[[Call], Reply]) -> None:
        self.behave, self.calls = behave, []
        self._lock, self._asked = threading.Lock(), Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body are 40 ms apart

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:  # the client was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> BadServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        payload = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = payload["messages"][-1]["content"] if "messages" in payload else payload["prompt"]
        question = prompt.strip().split("\n")[-1]
        with self._lock:
            nth = self._asked[question]
            self._asked[question] += 1
            call = Call(
                question, nth, time.monotonic(), payload, dict(handler.headers), handler.path
            )
            self.calls.append(call)
        reply = self.behave(call)
        time.sleep(reply.before)
        if reply.drop:
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) + reply.claims))
        handler.end_headers()
        if reply.drip:
            for byte in body:
                handler.wfile.write(bytes([byte]))
                time.sleep(reply.drip)
        else:
            handler.wfile.write(body)
        handler.close_connection = bool(reply.claims)


def write_questions(folder: Path, n: int) -> Path:
    """Question i is "Add i and one.", its answer i + 1."""
    rows = [
        {"id": f"q{i}", "question": f"Add {i} and one.", "answer": str(i + 1)} for i in range(n)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_template(folder: Path) -> str:
    """A template that shows the question alone."""
    path = folder / "plain.j2"
    path.write_text("{{ question }}", encoding="utf-8")
    return str(path)
