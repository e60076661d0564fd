"""Every family of students, small and random: train, judge, generate, save, load; the loss."""

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.skipping.judge import find_skips
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student
from cwt.students.memory import shape_of
from cwt.students.seq2seq import Seq2SeqStudent
from cwt.students.tokenized import PromptTokenizer, build_sequence, whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.validation import held_out_loss
from t5_student import t5_student
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

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
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
ENCODER_DECODERS = {
    "t5": {**_T5, "tie_word_embeddings": True},  # its head's input is scaled by d_model**-0.5
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},  # as Flan-T5
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0,
    },
}  # fmt: skip
ALL = [*FAMILIES, *ENCODER_DECODERS]
RECIPE = Recipe(target="chunk", budget=3, budget_unit="optimizer_steps", batch_size=4)


def family(name, tokenizer=None, layers=2, positions=512):
    """A random student of two layers with the embedded tokenizer, and spare rows of embedding."""
    torch.manual_seed(0)
    if name in ENCODER_DECODERS:
        return encoder_decoder(name, positions)
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
    return CausalStudent(widened(model.float()), tokenizer)


def widened(model):
    """A model with wide weights, so that logits reach the softcaps."""
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return model


def encoder_decoder(name, positions=512):
    """As `family`; its tokenizer ends a text as T5's does, and begins it where BART's does."""
    tokenizer = tiny().tokenizer.tokenizer
    bos, eos, pad = tokenizer.pad_token, tokenizer.eos_token, tokenizer.pad_token
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {bos, eos}]
    if name == "bart":
        tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}" if name == "bart" else f"$A {eos}", special_tokens=special
    )
    prompts = PromptTokenizer(tokenizer, encoder=True)
    config = AutoConfig.for_model(
        name, **ENCODER_DECODERS[name], vocab_size=len(tokenizer) + 8, eos_token_id=prompts.eos,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.convert_tokens_to_ids(pad),
        decoder_start_token_id=prompts.eos if name == "bart" else prompts.pad,
        **({"max_position_embeddings": positions} if name == "bart" else {}),
    )  # fmt: skip
    return Seq2SeqStudent(widened(AutoModelForSeq2SeqLM.from_config(config).float()), prompts)


def own_loss(student, row):
    """The model's own loss of a row: labels in, loss out."""
    ids, chunks, start = row.ids, row.chunks, ()
    if isinstance(student, Seq2SeqStudent):
        start = student.tokenizer.start  # of the decoder's text, after the model's own start
        ids, chunks = [*start, *ids[row.prompt :]], [-1] * len(start) + chunks[row.prompt :]
    labels = [i if c >= 0 else -100 for i, c in zip(ids, chunks, strict=True)]
    options = {"input_ids": torch.tensor([row.ids if ids is row.ids else row.ids[: row.prompt]])}
    if start:  # the model shifts labels itself, and reads what bears no loss as padding
        options["decoder_input_ids"] = torch.tensor([[*student.decoder_start[:1], *ids[:-1]]])
    with torch.no_grad():
        return float(student.model(**options, labels=torch.tensor([labels])).loss)


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_the_models_own(name):
    student = family(name)
    student.model.eval()
    rows = [whole_sequence(student.tokenize(e)) for e in examples(3)]
    wanted = [own_loss(student, row) for row in rows]
    assert len({round(v, 3) for v in wanted}) == 3
    for row, value in zip(rows, wanted, strict=True):
        assert held_out_loss(student, [row])[0] == pytest.approx(value, rel=1e-5)
    tokens = [row.loss_tokens for row in rows]
    mean = sum(n * v for n, v in zip(tokens, wanted, strict=True)) / sum(tokens)
    assert held_out_loss(student, rows)[0] == pytest.approx(mean, rel=1e-5)  # padded together


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_encoder_reads_the_question_and_the_decoder_the_chunks(name):
    student = family(name)
    student.model.eval()
    item = student.tokenize(examples(1, chunks=3)[0])
    row = build_sequence(item, chunk=1)
    batch = student.collate([row])
    begin, end = list(student.tokenizer.start), list(student.tokenizer.finish)
    assert end == [student.tokenizer.eos]
    assert bool(begin) == (name == "bart")
    assert batch.input_ids[0].tolist() == list(item.prompt)
    assert list(item.prompt)[-1:] == end
    assert batch.decoder_input_ids[0].tolist() == [
        *student.decoder_start, *row.ids[len(item.prompt) : -1]
    ]  # fmt: skip
    assert student.decoder_start[1:] == tuple(begin)
    context = sum(c < 0 for c in row.chunks) - len(item.prompt)
    assert context > 0
    assert batch.bears_loss[0].tolist() == [
        i >= len(begin) + context for i in range(batch.labels.shape[1])
    ]
    states = student.hidden_states(batch)  # the head's input, T5's before it is scaled
    scale = 32**-0.5 if name == "t5" else 1.0
    bias = getattr(student.model, "final_logits_bias", 0.0)
    logits = student.model.get_output_embeddings()(states[batch.bears_loss] * scale) + bias
    torch.testing.assert_close(logits, student.logits_at(batch), rtol=1e-4, atol=1e-4)


def greedy(student, prompt, n):
    """One prompt, no padding, no cache."""
    ids = list(student.decoder_start)
    for _ in range(n):
        with torch.no_grad():
            out = student.model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([ids])
            )
        ids.append(int(out.logits[0, -1].argmax()))
        if ids[-1] == student.tokenizer.eos:
            break
    return ids[len(student.decoder_start) :]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_batched_generation_of_an_encoder_decoder_equals_one_by_one(name):
    student = family(name)
    student.model.eval()
    prompts = [student.prompt(e.question) for e in [*examples(3), *examples(3, "letters")]]
    assert len({len(p) for p in prompts}) > 1
    together = student.generate(prompts, 20)
    assert together == [greedy(student, p, 20) for p in prompts]
    assert len(set(map(tuple, together))) > 1


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_adapters_in_an_encoder_decoder(name, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    family(name).save(tmp_path / "base")
    student, some = load_student(str(tmp_path / "base"), lora="r=4,alpha=8"), examples(4)
    train(student, some, RECIPE, tmp_path / "adapted", cpu=True)
    again = load_student(str(tmp_path / "adapted"))
    prompts = [again.prompt(e.question) for e in some]
    assert again.generate(prompts, 8) == student.generate(prompts, 8)
    rows = [whole_sequence(again.tokenize(e)) for e in some]
    wanted = held_out_loss(student, rows)[0]
    assert held_out_loss(again, rows)[0] == pytest.approx(wanted, rel=1e-6)
    assert held_out_loss(load_student(str(tmp_path / "base")), rows)[0] != wanted


@pytest.mark.slow
def test_a_t5_learns_a_generated_task(tmp_path):
    """From random weights; whoever says yes to every question is right in about half of them."""
    known, asked = generate_examples("coin", [2000, 100], seed=0, steps=3)
    student = t5_student()
    assert 100_000 < student.model.num_parameters() < 1_000_000
    recipe = Recipe(
        target="rationale", budget=500, budget_unit="optimizer_steps", batch_size=16,
        learning_rate=3e-3,
    )  # fmt: skip
    train(student, known, recipe, tmp_path, cpu=True)
    score, _ = evaluate(load_student(str(tmp_path)), asked, max_new_tokens=160)
    assert score.accuracy >= 0.8
    assert score.well_formed >= 0.9


def test_an_encoder_decoder_without_a_start_is_refused(tmp_path):
    student = family("t5")
    student.model.config.decoder_start_token_id = None
    student.save(tmp_path)
    with pytest.raises(UserError, match="has no decoder_start_token_id"):
        load_student(str(tmp_path))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_shape_of_an_encoder_decoder(name):
    student = family(name)
    shape = shape_of(student.model)
    assert (shape.layers, shape.width, shape.inner, shape.cached) == (4, 32, 48, 64)
    assert shape.positions == (512 if name == "bart" else 0)
    batch = student.collate([whole_sequence(student.tokenize(examples(1)[0]))])
    with torch.no_grad():
        cache = student.model(**batch.inputs, use_cache=True).past_key_values
    tokens = {"self_attention_cache": batch.labels.shape[1]}
    tokens["cross_attention_cache"] = batch.input_ids.shape[1]
    for part, n in tokens.items():
        layers = getattr(cache, part).layers
        held = sum(t.numel() for layer in layers for t in (layer.keys, layer.values))
        assert held == 2 * shape.cached * n


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
