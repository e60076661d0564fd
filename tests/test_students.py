"""Students: the protocol and the causal language models that keep it; loading and saving them."""

import inspect
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.tasks import TASKS
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.students.causal import CausalStudent
from cwt.students.load import TINY, load_student
from cwt.students.pretrained import PretrainedStudent
from cwt.students.student import Student, iterate_logits
from cwt.students.tokenized import build_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from pretrain_tiny import (
    facts_known,
    letter_facts,
    lookup_facts,
    number_facts,
    steps_known,
)
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel


def few_steps(folder, out):
    student, some = load_student(str(folder)), examples(4)
    recipe = Recipe(target="chunk", budget=3, budget_unit="optimizer_steps", batch_size=4)
    spent = train(student, some, recipe, out, cpu=True)
    assert spent.optimizer_steps == 3
    score, _ = evaluate(student, some[:2], max_new_tokens=4, batch_size=2)
    assert 0 < score.generated_tokens <= 4
    again = load_student(str(out))
    for name, value in student.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


ARCHITECTURES = ["llama", "gpt2", "gemma2"]


def small(architecture):
    """A student of two layers with the embedded tokenizer; gemma2 has a softcap on its logits."""
    torch.manual_seed(0)
    tokenizer = tiny().tokenizer
    common = {
        "vocab_size": len(tokenizer.tokenizer), "bos_token_id": None,
        "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad,
    }  # fmt: skip
    if architecture == "gpt2":
        config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=2, **common)
    else:
        config = AutoConfig.for_model(
            architecture, hidden_size=32, intermediate_size=32, head_dim=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, **common,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    if architecture == "gemma2":
        assert config.final_logit_softcapping
    embedding = model.get_input_embeddings().weight
    for weight in model.parameters():  # wide: what is written depends on the question
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1 if weight is embedding else 0.6)
    return CausalStudent(model, tokenizer)


def public(kind):
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


def test_a_causal_student_keeps_the_protocol():
    wanted, student = public(Student), tiny()
    own = public(PretrainedStudent) | public(CausalStudent)
    assert set(wanted) | set(Student.__annotations__) | {"plain_model"} == set(own) | {
        "model", "dtype", "pass_tokens",
    }  # fmt: skip
    assert isinstance(student.model, torch.nn.Module)
    assert student.device == torch.device("cpu")
    assert student.to(torch.device("cpu")) is student
    for name, member in wanted.items():
        mine = own[name]
        assert isinstance(member, property) == isinstance(mine, property), name
        if not isinstance(member, property):
            here, there = (inspect.signature(f).parameters for f in (mine, member))
            assert [(p.name, p.kind, p.default) for p in here.values()] == [
                (p.name, p.kind, p.default) for p in there.values()
            ], name


def rows_of(student):
    items = [student.tokenize(e) for e in examples(3)]
    return [build_sequence(items[0], 1), build_sequence(items[1]), build_sequence(items[2], 4)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_model_at_the_tokens_that_bear_loss(architecture):
    student = small(architecture)
    rows = rows_of(student)
    batch = student.collate(rows)
    found = student.logits_at(batch)
    assert torch.equal(student.logits_at(batch, model=student.model), found)
    wanted = []
    for row in rows:  # one by one, without padding
        logits = student.model(input_ids=torch.tensor([row.ids])).logits[0]
        wanted += [logits[t - 1] for t, chunk in enumerate(row.chunks) if chunk >= 0]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_go_into_the_head(architecture):
    student = small(architecture)
    batch = student.collate(rows_of(student))
    logits = student.model.get_output_embeddings()(student.hidden_states(batch)[batch.bears_loss])
    cap = getattr(student.model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, student.logits_at(batch), rtol=1e-4, atol=1e-4)


def test_iterate_logits_gives_every_row_once_the_shortest_first():
    student = tiny()
    student.model.train()
    rows = rows_of(student)
    seen, lengths = [], []
    for part, batch, logits in iterate_logits(student, rows, batch_size=2):
        assert not logits.requires_grad
        torch.testing.assert_close(
            logits, student.logits_at(student.collate([rows[i] for i in part]))
        )
        assert len(logits) == int(batch.bears_loss.sum())
        seen += part
        lengths += [len(rows[i].ids) for i in part]
    assert sorted(seen) == [0, 1, 2]
    assert lengths == sorted(lengths)
    assert not student.model.training


def greedy(student, prompt, n):
    """One prompt, no padding, no cache."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(student.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == student.tokenizer.eos:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("architecture", ["tiny", *ARCHITECTURES])
def test_batched_generation_equals_one_by_one_without_a_cache(architecture):
    student = tiny() if architecture == "tiny" else small(architecture)
    student.model.eval()
    prompts = [student.prompt(e.question) for e in [*examples(3), *examples(3, "letters")]]
    assert len({len(p) for p in prompts}) > 1
    together = student.generate(prompts, 30)
    assert together == [greedy(student, p, 30) for p in prompts]
    assert len(set(map(tuple, together))) > 1
    assert [student.ended(ids) for ids in together] == [
        ids[-1] == student.tokenizer.eos for ids in together
    ]


def test_nothing_written_has_not_ended():
    assert not tiny().ended([])
    assert tiny().ended([5, tiny().tokenizer.eos])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_student_is_the_same_when_loaded(architecture, tmp_path):
    student = small(architecture)
    student.save(tmp_path)
    again = load_student(str(tmp_path))
    rows = rows_of(student)
    assert rows_of(again) == rows
    assert torch.equal(
        again.logits_at(again.collate(rows)), student.logits_at(student.collate(rows))
    )


def test_the_prompt_asks_as_its_template_says():
    student = load_student("tiny", prompt="Q: {question}\nA:")
    (example,) = examples(1)
    wanted = f"Q: {example.question}\nA:"
    assert student.text(student.prompt(example.question)) == wanted
    assert student.tokenize(example).prompt == student.ids(wanted)
    braces = replace(example, question="What is {x} in {question}?")
    assert student.text(student.tokenize(braces).prompt) == f"Q: {braces.question}\nA:"


def test_the_embedded_base_knows_its_facts_and_single_steps():
    student = load_student("tiny")
    model, tokenizer = student.model, student.tokenizer.tokenizer
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
    taught = [task for task in TASKS if task != "stock"]  # which is left for students to learn
    known = {task: steps_known(model, tokenizer, task) for task in taught}
    for task, share in known.items():
        assert share == pytest.approx(record[f"step_{task}"], abs=0.02)
        assert share > 0.95, task


def test_a_gpt2_from_a_folder(tmp_path):
    small("gpt2").save(tmp_path / "gpt2")
    few_steps(tmp_path / "gpt2", tmp_path / "out")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2)
    CausalStudent(GPT2LMHeadModel(config), tiny().tokenizer).save(tmp_path / "s")
    with pytest.raises(UserError, match="tokenizer has 768 tokens, its embedding 100 rows"):
        load_student(str(tmp_path / "s"))


GGUF = os.environ.get("CWT_GGUF_STUDENT", "")


@pytest.mark.slow
@pytest.mark.skipif(not GGUF, reason="CWT_GGUF_STUDENT names no folder with one .gguf file")
def test_a_real_student_from_gguf(tmp_path):
    few_steps(Path(GGUF), tmp_path / "out")
