"""The memory of a student by its shape, against what small students really hold."""

from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.students import memory
from cwt.students.load import load_student
from cwt.students.memory import (
    Shape,
    activation_bytes,
    cache_tokens,
    logit_bytes,
    scoring_tokens,
    shape_of,
    state_bytes,
    training_tokens,
)
from cwt.students.tokenized import whole_sequence
from test_families import family

CPU = torch.device("cpu")


def held_states(model):
    """Bytes of the weights, their gradients and AdamW's averages after a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    sum((p**2).sum() for p in trained).backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in trained)]
    for state in optimizer.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2"])
def test_full_training_holds_sixteen_bytes_a_weight(name):
    model = family(name).model
    assert state_bytes(shape_of(model)) == held_states(model)


def test_adapters_hold_sixteen_bytes_a_weight_and_the_frozen_base(tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    tiny().save(tmp_path)
    model = load_student(str(tmp_path), lora="r=4,alpha=8").model
    shape = shape_of(model)
    assert state_bytes(shape) == held_states(model)
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    assert state_bytes(shape, frozen_bytes=2) == held_states(model)


def held_activations(student, rows, checkpointing):
    """Bytes that autograd keeps for the backward pass, beside the weights."""
    model = student.model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = student.logits_at(student.collate(rows))
    model.eval()
    return sum(kept.values()), logits


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "smollm3", "granite"])
def test_activations_are_within_a_factor_of_what_autograd_keeps(name, checkpointing):
    student = family(name, layers=6)
    rows = [whole_sequence(student.tokenize(e)) for e in examples(4)]
    batch = student.collate(rows)
    held, logits = held_activations(student, rows, checkpointing)
    shape = shape_of(student.model)
    expected = activation_bytes(shape, 4, checkpointing) * batch.input_ids.numel()
    if checkpointing:  # the layer that is computed again is not there yet
        expected -= activation_bytes(replace(shape, layers=1), 4) * batch.input_ids.numel()
    assert logits.requires_grad
    assert 0.6 < expected / held < 1.7, (expected, held)


SEVEN = Shape(
    parameters=7_615_616_512, trained=7_615_616_512, layers=28, width=3584, inner=18_944,
    cached=1024, vocabulary=152_064, positions=32_768,
)  # fmt: skip


def test_the_documented_figures_of_a_7b_student():
    gb = 1e9
    assert state_bytes(SEVEN) / gb == pytest.approx(121.8, abs=0.1)
    lora = replace(SEVEN, trained=40_370_176)
    assert state_bytes(lora, 2) / gb == pytest.approx(15.8, abs=0.1)
    assert state_bytes(lora, 0.5625) / gb == pytest.approx(4.9, abs=0.1)


def test_passes_get_smaller_with_the_student_and_never_empty(monkeypatch):
    small = shape_of(tiny().model)
    monkeypatch.setattr(memory, "device_bytes", lambda device: 80 * 10**9)
    gpu = torch.device("cuda", 0)
    assert training_tokens(small, gpu, 2) == scoring_tokens(small, gpu, 2) == 16_384
    assert training_tokens(small, CPU, 4) == 2048
    lora = replace(SEVEN, trained=40_370_176)
    tokens = training_tokens(lora, gpu, 2)
    assert 500 < tokens < 16_384
    token = activation_bytes(lora, 2) + logit_bytes(lora, 2, True)
    needed = state_bytes(lora, 2) + tokens * token
    assert 0.6 * 80e9 < needed <= 0.7 * 80e9
    assert training_tokens(lora, gpu, 2, checkpointing=True) > 4 * tokens
    assert training_tokens(SEVEN, gpu, 2) == 1  # does not fit at all: the plan says so
    held = cache_tokens(SEVEN, gpu, 2) * SEVEN.layers * SEVEN.cached * 2
    assert held == pytest.approx(0.15 * 80e9, rel=0.01)
