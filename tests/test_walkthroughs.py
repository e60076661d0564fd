"""Walk-throughs of the documents, executed whole, in the order of the page."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from documents import FENCE, ROOT, indented, shrunk

SMALL_FLAGS = {
    "run": "--budget 300 --data.train-size 6 --data.validation-size 2 --data.test-size 2 "
    "--eval.max-new-tokens 20 --jobs 1",
    # Of so few examples one or two validate, and what they say of three steps is chance.
    "train": "--train.validations 0",
}
# What a walk-through leaves to the reader, by the first word.
LEFT_OUT = {"pip": "would change the environment that the tests run in"}


class Walk:
    """Executes a page from top to bottom: Python in one namespace, each command as it stands."""

    def __init__(self, page):
        self.page, self.names, self.server = page, {"__name__": "example"}, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def run(self):
        pieces = re.split(r"(^```\w*\n.*?^```$)", self.page.read_text("utf-8"), flags=re.M | re.S)
        for piece in pieces:
            if fenced := FENCE.fullmatch(piece):
                if fenced[1] == "python":
                    code = shrunk(fenced[2]).replace("8765", self.port)
                    exec(compile(code, self.page.name, "exec"), self.names)
            else:
                for line in indented(piece):
                    self.command(shlex.split(line.split("#")[0].replace("8765", self.port)))

    def command(self, words):
        from cwt.cli import main

        if words[0] == "cwt":
            flags = SMALL_FLAGS.get(words[1], "").split()
            main([*words[1:], *flags])
        elif words[:2] == ["transformers", "serve"]:
            self.serve(words[1:])
        else:
            assert words[0] in LEFT_OUT, f"{self.page.name}: {words}"

    def serve(self, words):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *words],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                assert self.server.poll() is None, "transformers serve ended"
                assert time.monotonic() < deadline, "transformers serve did not start"
                time.sleep(0.2)


@pytest.fixture
def walk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = []

    def begin(name):
        begun.append(Walk(ROOT / "docs" / name))
        begun[0].run()
        return begun[0]

    yield begin
    for one in begun:
        if one.server:
            one.server.kill()
            one.server.wait()


def test_the_quick_start_runs(walk, capsys, tmp_path):
    names = walk("quickstart.md").names
    printed = capsys.readouterr().out
    assert "cwt: all good" in printed
    assert "[0, 2, 4, 5]\n" in printed
    assert [row["name"] for row in names["report"]["methods"]][-1] == "STT"
    assert (tmp_path / "runs/quick/report.html").exists()


@pytest.mark.ci
def test_the_tutorial_runs(walk, capsys, tmp_path):
    """From the CSV to a reply over HTTP, which is the student's greedy text."""
    pytest.importorskip("fastapi", reason="transformers serve needs the extra `serving`")
    import cwt

    names = walk("tutorial.md").names
    printed = capsys.readouterr().out
    assert "right rationales" in printed
    assert {"FTT-small-batch", "STT", "continued"} <= {
        path.stem for path in (tmp_path / "runs/mine/methods").glob("*.json")
    }
    student = cwt.load_student(str(tmp_path / "served"))
    written = student.generate([student.prompt(names["test"][0].question)], 100)[0]
    assert names["reply"].strip() == student.text(written).strip()
