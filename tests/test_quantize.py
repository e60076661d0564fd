"""A base in 4 bits under adapters, and AdamW with averages in 8 bits."""

import sys
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.cli import main
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.files import read_json, read_lines
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student, merge
from cwt.students.memory import average_bytes, shape_of, state_bytes
from cwt.students.quantize import FourBit, bitsandbytes, is_quantized
from cwt.students.tokenized import whole_sequence
from cwt.training import loop
from cwt.training.loop import train
from cwt.training.optimizer import make_optimizer
from cwt.training.recipe import Recipe
from transformers import LlamaConfig, LlamaForCausalLM

FOUR_BIT = FourBit(torch.float32, torch.device("cpu"))
RECIPE = Recipe(
    target="chunk", budget=6, budget_unit="optimizer_steps", batch_size=4, learning_rate=5e-3
)
EIGHT = replace(RECIPE, optimizer="adamw8bit")


@pytest.fixture
def installed():
    pytest.importorskip("peft", reason="adapters need peft")
    try:
        return bitsandbytes("the test")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama as a folder; bitsandbytes wants rows of whole blocks of 64 weights."""
    folder, prompts = tmp_path_factory.mktemp("base"), tiny().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=776, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=prompts.eos,
    )  # fmt: skip
    CausalStudent(LlamaForCausalLM(config), prompts).save(folder)
    return folder


def logits(student):
    rows = [whole_sequence(student.tokenize(e)) for e in examples(3)]
    with torch.no_grad():
        return student.logits_at(student.collate(rows))


def unpacked(package, weight):
    return package.functional.dequantize_4bit(weight.data, weight.quant_state)


def test_without_the_package_one_line_says_so(monkeypatch, base, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ImportError
    with pytest.raises(UserError, match=r"--quantize 4bit needs the package bitsandbytes: pip "):
        load_student(str(base), lora="r=2", four_bit=FOUR_BIT)
    with pytest.raises(UserError, match=r"--optimizer adamw8bit needs the package bitsandbytes"):
        train(tiny(), examples(4), EIGHT, tmp_path / "s", cpu=True)
    with pytest.raises(SystemExit):
        main([
            "run", "--student", str(base), "--lora", "r=2", "--quantize", "4bit", "--methods",
            "FTT", "--data.train-size", "4", "--data.validation-size", "2", "--data.test-size",
            "2", "--out", str(tmp_path / "r"),
        ])  # fmt: skip
    assert "pip install bitsandbytes" in " ".join(capsys.readouterr().err.split())


def test_weights_in_4_bits_are_not_trained(base):
    with pytest.raises(UserError, match="--quantize 4bit needs --lora, or a student with adapters"):
        load_student(str(base), four_bit=FOUR_BIT)


def test_the_base_is_packed_and_the_logits_are_those_of_its_unpacked_weights(installed, base):
    student = load_student(str(base), lora="r=2,alpha=4", four_bit=FOUR_BIT)
    whole = load_student(str(base))
    assert is_quantized(student.model)
    assert not is_quantized(whole.model)
    plain = dict(whole.model.named_parameters())
    packed = 0
    for name, weight in student.model.get_base_model().named_parameters():
        original = plain.get(name.replace(".base_layer", ""))
        if hasattr(weight, "quant_state"):
            packed += 1
            own = unpacked(installed, weight)
            error = (own - original).norm() / original.norm()
            assert 0.05 < error < 0.25, name  # of NF4 on normal weights: about a tenth
            original.data = own
    assert packed == 7 * 2  # q, k, v, o, gate, up, down of two layers
    torch.testing.assert_close(logits(student), logits(whole), rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_the_packed_base_after_a_pass_without(installed, base):
    student = load_student(str(base), lora="r=2,alpha=4", four_bit=FOUR_BIT)
    for name, weight in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    student.model.eval()
    logits(student)
    batch = student.collate([whole_sequence(student.tokenize(examples(1)[0]))])
    student.model.train()
    found, values = [], []
    for packed in (True, False):
        if not packed:
            for module in student.model.modules():
                if hasattr(module, "base_layer"):
                    plain = torch.nn.Linear(*reversed(module.base_layer.weight.quant_state.shape))
                    plain.weight.data = unpacked(installed, module.base_layer.weight)
                    plain.bias = None
                    module.base_layer = plain.requires_grad_(False)
        student.model.zero_grad()
        loss = student.token_loss(batch).loss
        loss.backward()
        values.append(loss.item())
        grads = {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
        found.append({n: g.clone() for n, g in grads.items()})
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert found[0].keys() == found[1].keys()
    for name, grad in found[1].items():
        scale = grad.abs().max()
        torch.testing.assert_close(found[0][name] / scale, grad / scale, rtol=1e-4, atol=1e-4)


def test_states_are_as_many_bytes_as_the_formula_says(installed, base):
    student = load_student(str(base), lora="r=4", four_bit=FOUR_BIT)
    model = student.model
    shape, whole = shape_of(model), shape_of(load_student(str(base), lora="r=4").model)
    assert replace(shape, quantized=0) == whole
    assert 0 < shape.quantized < shape.parameters - shape.trained
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for weight in model.parameters():
        if hasattr(weight, "quant_state"):
            state = weight.quant_state
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    held += 12 * shape.trained  # gradients and two averages
    # A tensor's last block of scales is held whole.
    assert state_bytes(shape) == pytest.approx(held, abs=4 * 14 + 64)


def test_averages_in_8_bits_are_as_many_bytes_as_the_formula_says(installed):
    weight = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = make_optimizer([weight], EIGHT)
    weight.sum().backward()
    optimizer.step()
    state = optimizer.state[weight]
    held = sum(state[k].nbytes for k in ("state1", "state2", "absmax1", "absmax2"))
    assert held == 2 * average_bytes("adamw8bit") * weight.numel()
    assert average_bytes("adamw") == 4


def test_train_save_load_generate_and_merge(installed, base, tmp_path):
    student = load_student(str(base), lora="r=4,alpha=8", four_bit=FOUR_BIT)
    before = logits(student)
    folder = tmp_path / "FTT"
    train(student, examples(8), EIGHT, folder, cpu=True)
    after = logits(student)
    assert not torch.allclose(before, after, atol=1e-3)
    log = [row["loss"] for row in read_lines(folder / "train_log.jsonl")]
    assert len(log) == 6
    again = load_student(str(folder), four_bit=FOUR_BIT)
    torch.testing.assert_close(logits(again), after)
    assert [g.text for g in evaluate(again, examples(2), 8)[1]] == [
        g.text for g in evaluate(student, examples(2), 8)[1]
    ]
    merge(str(folder), tmp_path / "whole")  # into the base that was never packed
    whole = load_student(str(tmp_path / "whole"))
    torch.testing.assert_close(logits(whole), logits(load_student(str(folder))), rtol=1e-4,
                               atol=1e-4)  # fmt: skip


def test_eight_bits_train_nearly_as_thirty_two_and_resume(installed, tmp_path, monkeypatch):
    losses = {}
    for recipe in (RECIPE, EIGHT):
        train(tiny(), examples(8), recipe, tmp_path / recipe.optimizer, cpu=True)
        rows = read_lines(tmp_path / recipe.optimizer / "train_log.jsonl")
        losses[recipe.optimizer] = [row["loss"] for row in rows]
    assert losses["adamw8bit"] != losses["adamw"]
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.05)
    whole, step = loop._Run.step, []

    def stopped(self):
        step.append(1)
        if len(step) == 4:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(loop._Run, "step", stopped)
    often = replace(EIGHT, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), examples(8), often, tmp_path / "again", cpu=True)
    train(tiny(), examples(8), often, tmp_path / "again", cpu=True)
    rows = read_lines(tmp_path / "again/train_log.jsonl")
    assert [row["loss"] for row in rows] == losses["adamw8bit"]


def test_a_run_with_a_packed_base(installed, base, tmp_path, capsys):
    out = tmp_path / "r"
    main([
        "run", "--student", str(base), "--lora", "r=2,alpha=4", "--quantize", "4bit",
        "--optimizer", "adamw8bit", "--dtype", "float32", "--methods", "STT-at-once",
        "--data.train-size", "6", "--data.validation-size", "2", "--data.test-size", "2",
        "--budget", "300", "--skip.rounds", "1", "--eval.max-new-tokens", "4",
        "--eval.latency-questions", "0", "--train.validations", "0", "--out", str(out),
    ])  # fmt: skip
    capsys.readouterr()
    plan = read_json(out / "run.json")
    assert plan["student"]["quantized"] > 0
    recipe = read_json(out / "students/STT-at-once-round-1/train.json")["recipe"]
    assert recipe["optimizer"] == "adamw8bit"
