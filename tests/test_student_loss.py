"""The loss of a student through linear_chunk_loss: the model's own, and without its logits."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from app_fixtures import examples, tiny
from cwt.evaluation.diagnostics import diagnose
from cwt.files import read_json, read_lines
from cwt.skipping.scoring import score_tokens, unit_entropies
from cwt.students import loss
from cwt.students.adapters import add_adapters, parse_lora
from cwt.students.causal import CausalStudent
from cwt.students.loss import LINEAR
from cwt.students.tokenized import TokenSequence, build_sequence, whole_sequence
from cwt.training.chunking import unit_nll
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.validation import held_out_loss
from forked import in_a_process
from test_families import ALL, RECIPE, family, own_loss
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def small(monkeypatch):
    """Every vocabulary counts as a large one."""
    monkeypatch.setattr(loss, "SMALL_VOCABULARY", 0)


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradients_are_the_models_own(small, name):
    student, items = family(name), [tiny().tokenize(e) for e in examples(3)]
    student.model.eval()
    assert student.loss_path == LINEAR
    whole = [whole_sequence(student.tokenize(x.example)) for x in items]
    wanted = [own_loss(student, row) for row in whole]
    for row, value in zip(whole, wanted, strict=True):
        assert held_out_loss(student, [row])[0] == pytest.approx(value, rel=1e-5)
    rows = [build_sequence(student.tokenize(x.example), chunk=m) for m, x in enumerate(items)]
    batch = student.collate(rows)
    found = student.token_loss(batch, reduction="sum", normalizer=7.0)
    held = gradients(student.model, found.loss)
    plain = F.cross_entropy(student.logits_at(batch), batch.targets[0], reduction="sum") / 7
    assert found.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    wanted = gradients(student.model, plain)
    most = max(grad.abs().max() for grad in wanted.values())
    for parameter, grad in wanted.items():  # those of the keys' biases are zero but for rounding
        scale = grad.abs().max().clamp_min(0.01 * most)
        torch.testing.assert_close(held[parameter] / scale, grad / scale, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "bart"])
def test_training_judging_and_chunking_are_as_with_logits(monkeypatch, name, tmp_path):
    def everything(folder):
        student, some = family(name), examples(6)
        items = [student.tokenize(e) for e in some]
        before = {
            "scores": [sorted(x.items()) for x in score_tokens(student, items, 4)],
            "entropies": unit_entropies(student, items, 4),
            "nll": [x.tolist() for x in unit_nll(student, items, 4)],
        }
        train(student, some, RECIPE, folder, cpu=True)
        return before, read_lines(folder / "train_log.jsonl")

    wanted, log = everything(tmp_path / "logits")
    assert read_json(tmp_path / "logits/train.json")["head"].startswith("logits: a small vocab")
    monkeypatch.setattr(loss, "SMALL_VOCABULARY", 0)
    found, same_log = everything(tmp_path / "linear")
    assert read_json(tmp_path / "linear/train.json")["head"] == LINEAR
    for x, y in zip(found["scores"], wanted["scores"], strict=True):
        assert [(place, right) for place, (right, _) in x] == [(q, right) for q, (right, _) in y]
        assert [p for _, (_, p) in x] == pytest.approx([p for _, (_, p) in y], rel=1e-4, abs=1e-6)
    for key in ("entropies", "nll"):
        for x, y in zip(found[key], wanted[key], strict=True):
            assert x == pytest.approx(y, rel=1e-4, abs=1e-4)
    for x, y in zip(same_log, log, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        if name != "gemma2":  # before the softcap the gradients are others
            assert x["chunk_grad_norm"] == pytest.approx(y["chunk_grad_norm"], rel=1e-4)
    assert "chunk_mean_grad_norm" in log[0]
    assert all(0 < ratio <= 1 for ratio in same_log[0]["chunk_hidden_smoothing"] if ratio)


def test_chunks_that_weigh_the_same_weigh_the_same_without_logits(monkeypatch, tmp_path):
    recipe = Recipe(
        target="rationale", budget=2, budget_unit="optimizer_steps", batch_size=2, weigh="chunk",
        micro_batch_size=1,
    )  # fmt: skip
    losses = []
    for smallest in (16_384, 0):
        monkeypatch.setattr(loss, "SMALL_VOCABULARY", smallest)
        train(family("granite"), examples(4), recipe, tmp_path / str(smallest), cpu=True)
        losses.append([r["loss"] for r in read_lines(tmp_path / f"{smallest}/train_log.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][1]


def test_an_adapter_on_the_head_keeps_the_logits(small):
    pytest.importorskip("peft", reason="adapters need peft")
    for targets, path in (("q_proj+v_proj", LINEAR), ("q_proj+lm_head", "logits: the head is a ")):
        student = family("llama")
        student.model = add_adapters(student.model, parse_lora(f"r=4,targets={targets}"), "base")
        torch.nn.init.normal_(dict(student.model.named_parameters())[
            next(n for n, _ in student.model.named_parameters() if "lora_B" in n)
        ])  # fmt: skip
        assert student.loss_path.startswith(path)
        batch = student.collate([whole_sequence(student.tokenize(examples(1)[0]))])
        wanted = F.cross_entropy(student.logits_at(batch), batch.targets[0])
        assert student.token_loss(batch).loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_small_vocabulary_and_logits_of_ones_own_keep_the_logits(monkeypatch):
    class Cold(CausalStudent):
        def logits_at(self, batch, model=None):
            return super().logits_at(batch, model) / 2

    assert tiny().loss_path == "logits: a small vocabulary (768 tokens)"
    monkeypatch.setattr(loss, "SMALL_VOCABULARY", 0)
    student = Cold(tiny().model, tiny().tokenizer)
    assert student.loss_path == "logits: the student has logits of its own"
    batch = student.collate([whole_sequence(student.tokenize(examples(1)[0]))])
    wanted = F.cross_entropy(tiny().logits_at(batch) / 2, batch.targets[0])
    assert student.token_loss(batch).loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_diagnosis_computes_logits_whatever_the_head(small):
    student, items = tiny(), [tiny().tokenize(e) for e in examples(4, chunks=2)]
    assert student.loss_path == LINEAR
    assert diagnose(student, items, items, 2)["test"]["loss"] > 0


def status(field):
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(field)) * 1024


def step_of(smallest):
    """The path, the loss and the memory of a step, where vocabularies from `smallest` on are large.

    In a process of its own."""
    loss.SMALL_VOCABULARY = smallest
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50_000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    student = CausalStudent(LlamaForCausalLM(config), tiny().tokenizer)
    ids = torch.randint(0, 50_000, (16, 129)).tolist()
    batch = student.collate([TokenSequence(row, [-1] + [0] * 128) for row in ids])
    path = student.loss_path.split(":")[0]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    result = student.token_loss(batch)
    result.loss.backward()
    return path, result.loss.item(), status("VmHWM") - before


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs"
)
def test_a_step_holds_one_block_of_logits():
    """2,048 tokens of 50,000 logits are 410 MB, and their gradient as much; a block is 117 MB."""
    found = {}
    for smallest in (1_000_000, 0):
        path, *figures = in_a_process(step_of, smallest)
        found[path] = figures
    (loss_logits, with_logits), (loss_linear, linear) = found["logits"], found[LINEAR]
    logits = 2048 * 50_000 * 4
    assert loss_linear == pytest.approx(loss_logits, rel=1e-6)
    assert with_logits > 1.9 * logits
    assert linear < (112 << 20) + 0.2 * logits
