"""Every family of students, small and random: train, judge, generate, save, load; the loss."""

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.skipping.judge import find_skips
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student
from cwt.students.memory import shape_of
from cwt.students.tokenized import PromptTokenizer, whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.validation import held_out_loss
from transformers import AutoConfig, AutoModelForCausalLM

# What each family needs beside the common sizes; logits that are not the head's own are named.
FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "smollm3": {},
    "phi": {},
    "phi3": {},
    "mistral": {},
    "granite": {"logits_scaling": 7.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.3},
}
RECIPE = Recipe(target="chunk", budget=3, budget_unit="optimizer_steps", batch_size=4)


def family(name, tokenizer=None, layers=2, positions=512):
    """A random student of two layers with the embedded tokenizer, and spare rows of embedding."""
    torch.manual_seed(0)
    tokenizer = tokenizer or tiny().tokenizer
    options = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": positions,
    }  # fmt: skip
    if name == "gpt2":
        options = {"n_positions": positions}
    if name in ("phi", "phi3"):
        options.pop("head_dim")
    config = AutoConfig.for_model(
        name, **options | FAMILIES[name], vocab_size=len(tokenizer.tokenizer) + 8,
        bos_token_id=tokenizer.tokenizer.bos_token_id, eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():  # wide, so that logits reach the softcaps
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return CausalStudent(model.float(), tokenizer)


def own_loss(model, row):
    """The model's own loss of a row: labels in, loss out."""
    labels = [i if c >= 0 else -100 for i, c in zip(row.ids, row.chunks, strict=True)]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels]))
    return float(out.loss)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_models_own(name):
    student = family(name)
    student.model.eval()
    rows = [whole_sequence(student.tokenize(e)) for e in examples(3)]
    wanted = [own_loss(student.model, row) for row in rows]
    assert len({round(v, 3) for v in wanted}) == 3
    for row, value in zip(rows, wanted, strict=True):
        assert held_out_loss(student, [row])[0] == pytest.approx(value, rel=1e-5)
    tokens = [row.loss_tokens for row in rows]
    mean = sum(n * v for n, v in zip(tokens, wanted, strict=True)) / sum(tokens)
    assert held_out_loss(student, rows)[0] == pytest.approx(mean, rel=1e-5)  # padded together


@pytest.mark.parametrize("name", FAMILIES)
def test_train_judge_generate_save_and_load(name, tmp_path):
    student, some = family(name), examples(6)
    rows = [whole_sequence(student.tokenize(e)) for e in some]
    before = held_out_loss(student, rows)[0]
    spent = train(student, some, RECIPE, tmp_path, cpu=True)
    assert spent.optimizer_steps == 3
    assert held_out_loss(student, rows)[0] < before
    shorter, _ = find_skips(student, some[:2])
    assert all(e.kept_units is None or max(e.kept_units) == len(e.units) - 1 for e in shorter)
    again = load_student(str(tmp_path))
    score, written = evaluate(student, some[:3], max_new_tokens=8)
    assert 0 < score.generated_tokens <= 8
    assert len(written) == 3
    prompts = [student.prompt(e.question) for e in some[:3]]  # one tokenizer's ids for both
    assert again.generate(prompts, 8) == student.generate(prompts, 8)
    assert held_out_loss(again, rows)[0] == pytest.approx(held_out_loss(student, rows)[0], rel=1e-6)


def special(bos, eos, pad):
    """The embedded tokenizer with other special tokens; those that are not named are absent."""
    tokenizer = tiny().tokenizer.tokenizer
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = bos, eos, pad
    return tokenizer


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_bos_and_pad_may_be_absent(name, bos, pad, tmp_path):
    own = tiny().tokenizer.tokenizer
    tokenizer = special(
        own.eos_token if bos else None, own.eos_token, own.pad_token if pad else None
    )
    prompts = PromptTokenizer(tokenizer)
    assert prompts.pad == (own.pad_token_id if pad else own.eos_token_id)
    student = family(name, prompts)
    train(student, examples(4), RECIPE, tmp_path, cpu=True)
    again = load_student(str(tmp_path))
    questions = examples(3)
    together = [g.text for g in evaluate(again, questions, 8)[1]]
    alone = [evaluate(again, [e], 8)[1][0].text for e in questions]
    assert together == alone == [g.text for g in evaluate(student, questions, 8)[1]]


def test_without_an_end_of_sequence_token_a_student_is_refused():
    with pytest.raises(UserError, match="no end-of-sequence token"):
        PromptTokenizer(special(None, None, None))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shape_is_read_from_every_family(name):
    student = family(name)
    shape = shape_of(student.model)
    assert (shape.layers, shape.width, shape.positions) == (2, 32, 512)
    assert shape.vocabulary == len(student.tokenizer.tokenizer) + 8
    assert shape.inner == (128 if name == "gpt2" else 48)
    batch = student.collate([whole_sequence(student.tokenize(examples(1)[0]))])
    with torch.no_grad():
        cache = student.model(input_ids=batch.input_ids, use_cache=True).past_key_values
    held = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 2 * shape.cached * batch.input_ids.shape[1]
