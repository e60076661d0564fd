"""`cwt teach` with real models: `transformers serve` in a process of its own, and a local one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from cwt.teaching import TeachConfig, teach

TINY = Path(__file__).resolve().parents[1] / "python" / "cwt" / "students" / "tiny"
QUESTIONS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded student with a chat template that is the prompt it was trained on."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    path = folder / "generation_config.json"  # transformers serve samples only where it says so
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True}))
    return folder


@pytest.fixture(scope="module")
def oracle(model):
    """Greedy texts of the model, one at a time: {question: (text, prompt tokens, tokens)}."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    texts = {}
    for example in generate_examples("arithmetic", [QUESTIONS], seed=3, steps=1)[0]:
        prompt = tokenizer(example.question + "\n", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            written = network.generate(prompt, max_new_tokens=200, do_sample=False)[0]
        written = written[prompt.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        texts[example.question] = (text, prompt.shape[1], len(written))
    return texts


@pytest.fixture
def config(oracle, model, tmp_path):
    """Gold is what the model answers itself, but for every third question, where it is not."""
    rows = [
        {"id": f"q{i}", "question": question, "answer": text.rsplit(" ", 1)[1] + "7" * (i % 3 == 0)}
        for i, (question, (text, *_)) in enumerate(oracle.items())
    ]
    questions, style = tmp_path / "questions.json", tmp_path / "plain.j2"
    questions.write_text(json.dumps(rows))
    style.write_text("{{ question }}")

    def make(**options):
        values = {"temperature": 0.0, "max_tokens": 200, "model": str(model), "timeout": 60.0}
        return TeachConfig(str(questions), **(values | {"style": str(style)} | options))

    return make


def check_against(oracle, out):
    """Every third question is wrong, all other texts are the oracle's, and so is the bill."""
    rows = [json.loads(line) for line in (out / "rationales.jsonl").read_text().splitlines()]
    wanted = [
        (f"q{i}", question, text)
        for i, (question, (text, *_)) in enumerate(oracle.items())
        if i % 3
    ]
    assert [(row["id"], row["question"], row["rationale"]) for row in rows] == wanted
    manifest = json.loads((out / "teach.json").read_text())
    assert manifest["verdicts"] == {"accepted": len(wanted), "wrong answer": 2}
    assert manifest["totals"]["prompt_tokens"] == sum(n for _, n, _ in oracle.values())
    assert manifest["totals"]["completion_tokens"] == sum(n for *_, n in oracle.values())
    assert manifest["totals"]["completions_without_usage"] == 0


def start_serving(*model):
    """The address of a real OpenAI-compatible server, of one model or of any that it is asked."""
    pytest.importorskip("fastapi", reason="transformers serve needs the extra `serving`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", "serve", *model,
         "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"transformers serve did not start: {process.communicate()[1][-2000:]}")
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def served(model):
    yield from start_serving(str(model))


@pytest.mark.parametrize("api", ["chat", "completion"])
def test_transformers_serve_gives_the_texts_and_tokens_of_the_model(
    config, oracle, served, tmp_path, api
):
    teach(config(base_url=served, api=api, concurrency=4), tmp_path / "out")
    check_against(oracle, tmp_path / "out")


def test_transformers_serve_samples_by_seed(config, served, tmp_path):
    options = {"base_url": served, "temperature": 1.5, "samples": 2, "seed": 5, "concurrency": 1}
    texts = []
    for folder in ("a", "b"):
        result = teach(config(**options), tmp_path / folder)
        assert result.totals.completions == 2 * QUESTIONS
        rows = map(json.loads, (tmp_path / folder / "journal.jsonl").read_text().splitlines())
        texts.append([row["text"] for row in rows if row["event"] == "completion"])
    assert texts[0] == texts[1]
    assert texts[0][0::2] != texts[0][1::2]


def test_transformers_serve_refuses_what_it_does_not_know(config, served, tmp_path):
    extra = '{"nonsense": 1}'
    with pytest.raises(UserError, match=r"HTTP 422: Unexpected fields .*nonsense"):
        teach(config(base_url=served, extra=extra, give_up=1), tmp_path / "out")


@pytest.mark.parametrize(("template", "batch"), [(True, 1), (True, 5), (False, 8)])
def test_a_local_model_gives_the_same_texts_in_batches(
    config, oracle, model, tmp_path, template, batch
):
    source = model if template else TINY  # without a chat template the prompt is plain text
    result = teach(config(model=str(source), concurrency=batch), tmp_path / "out")
    check_against(oracle, tmp_path / "out")
    assert result.stopped == "finished"


def test_a_local_model_is_cut_off_and_samples_by_seed(config, tmp_path):
    options = {"concurrency": 1, "samples": 2, "seed": 1, "temperature": 1.5, "max_tokens": 12}
    texts = []
    for folder in ("a", "b"):
        result = teach(config(**options), tmp_path / folder)
        rows = map(json.loads, (tmp_path / folder / "journal.jsonl").read_text().splitlines())
        texts.append([row["text"] for row in rows if row["event"] == "completion"])
        assert result.totals.verdicts == {"cut off": 2 * QUESTIONS}
        assert result.totals.paid.completion == 12 * 2 * QUESTIONS
    assert texts[0] == texts[1]
    assert texts[0][0::2] != texts[0][1::2]


def test_a_prompt_that_does_not_fit_is_a_failure_of_its_question(config, tmp_path):
    with pytest.raises(UserError, match=r"max_tokens 1020 are more than the model's 1024"):
        teach(config(max_tokens=1020), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "teach.json").read_text())
    assert manifest["failures"] == {"prompt too long": QUESTIONS}
    assert manifest["totals"]["tokens_perhaps_lost"] == 0


def test_a_model_that_is_not_there_is_named(config, tmp_path):
    with pytest.raises(UserError, match=r"model '\./nowhere' cannot be loaded on cpu: .*base_url"):
        teach(config(model="./nowhere", device="cpu"), tmp_path / "out")
