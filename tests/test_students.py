"""Loading students: the embedded one, other architectures, GGUF; each trains a few steps."""

import json
import os
from pathlib import Path

import pytest
import torch
from app_fixtures import encode, examples
from cwt.encode import Encoder
from cwt.errors import UserError
from cwt.evaluate import evaluate
from cwt.pretrain_tiny import (
    facts_known,
    letter_facts,
    lookup_facts,
    number_facts,
    steps_known,
)
from cwt.recipe import Recipe
from cwt.students import TINY, load_student, save_student
from cwt.tasks import TASKS
from cwt.train import train
from transformers import GPT2Config, GPT2LMHeadModel


def few_steps(folder, out):
    model, tokenizer = load_student(str(folder))
    encoder = Encoder(tokenizer)
    some = examples(4)
    items = encode(encoder, some)
    recipe = Recipe("cwt", 3, "optimizer_steps", batch_size=4)
    spent = train(model, encoder, items, [None] * 4, recipe, out, cpu=True)
    assert spent.optimizer_steps == 3
    score, _ = evaluate(model, encoder, some[:2], max_new_tokens=4, batch_size=2)
    assert 0 < score.generated_tokens <= 4
    again, _ = load_student(str(out))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_embedded_base_knows_its_facts_and_single_steps():
    model, tokenizer = load_student("tiny")
    assert 100_000 <= model.num_parameters() <= 1_000_000
    assert (TINY / "model.safetensors").stat().st_size < 3_000_000
    record = json.loads((TINY / "base.json").read_text())
    found = {
        "number_facts": facts_known(model, tokenizer, number_facts()[::7]),
        "letter_facts": facts_known(model, tokenizer, letter_facts()),
        "lookups": facts_known(model, tokenizer, lookup_facts(100)),
    }
    assert min(found.values()) > 0.95
    assert min(v for k, v in record.items() if k in found) > 0.95
    known = {task: steps_known(model, tokenizer, task) for task in TASKS}
    for task, share in known.items():
        assert share == pytest.approx(record[f"step_{task}"], abs=0.02)
        assert share > 0.95, task


def test_a_gpt2_from_a_folder(tmp_path):
    _, tokenizer = load_student("tiny")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    save_student(tmp_path / "gpt2", GPT2LMHeadModel(config), tokenizer)
    few_steps(tmp_path / "gpt2", tmp_path / "out")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    _, tokenizer = load_student("tiny")
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2)
    save_student(tmp_path / "s", GPT2LMHeadModel(config), tokenizer)
    with pytest.raises(UserError, match="tokenizer has 768 tokens, its embedding 100 rows"):
        load_student(str(tmp_path / "s"))


GGUF = os.environ.get("CWT_GGUF_STUDENT", "")


@pytest.mark.slow
@pytest.mark.skipif(not GGUF, reason="CWT_GGUF_STUDENT names no folder with one .gguf file")
def test_a_real_student_from_gguf(tmp_path):
    few_steps(Path(GGUF), tmp_path / "out")
