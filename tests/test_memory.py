"""The memory of a student by its shape, against what small students really hold."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.students import memory
from cwt.students.load import load_student
from cwt.students.memory import (
    Shape,
    activation_bytes,
    average_bytes,
    block_bytes,
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
GPU = torch.device("cuda", 0)


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


SHAPES = {  # of Qwen2.5
    "0.5 B": Shape(494_032_768, 494_032_768, 24, 896, 4864, 256, 151_936, 32_768),
    "1.5 B": Shape(1_543_714_304, 1_543_714_304, 28, 1536, 8960, 512, 151_936, 32_768),
    "7.6 B": Shape(7_615_616_512, 7_615_616_512, 28, 3584, 18_944, 1024, 152_064, 32_768),
}
SEVEN = SHAPES["7.6 B"]


def with_adapters(shape, r=16):
    """The shape with adapters on q, k, v, o, gate, up and down."""
    keys = shape.cached // 2
    ends = 4 * shape.width + 2 * (shape.width + keys) + 3 * (shape.width + shape.inner)
    adapters = shape.layers * r * ends
    return replace(shape, parameters=shape.parameters + adapters, trained=adapters)


def packed(shape, tied):
    """The shape with all but its embeddings and head in 4 bits."""
    ends = shape.vocabulary * shape.width * (1 if tied else 2)
    return replace(shape, quantized=shape.parameters - shape.trained - ends)


def test_the_documented_memory_is_that_of_the_formulas():
    text = (Path(__file__).parents[1] / "docs/students.md").read_text(encoding="utf-8")
    table = text.split("<!-- memory table -->")[1].split("<!-- end")[0]
    found = {}
    for line in table.strip().splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name] = [float(cell) for cell in cells]
    for name, shape in SHAPES.items():
        lora = with_adapters(shape)
        held = [
            state_bytes(shape), state_bytes(shape, average=average_bytes("adamw8bit")),
            state_bytes(lora, 2), state_bytes(packed(lora, name != "7.6 B"), 2),
            4096 * activation_bytes(shape, 2), 4096 * activation_bytes(shape, 2, True),
            4096 * logit_bytes(shape, 2, True), block_bytes(shape, GPU, True),
        ]  # fmt: skip
        assert found[name] == [round(b / 1e9, 1) for b in held], name


def test_the_blocks_are_those_of_linear_chunk_loss():
    from cwt_ext import linear_chunk_loss as module

    for device in (CPU, GPU):
        own = importlib.import_module(module.__module__)
        held = own._BLOCK_BYTES.get(device.type, own._ACCELERATOR_BLOCK_BYTES)
        assert block_bytes(SEVEN, device, False) == held
        gradient = 4 * SEVEN.vocabulary * SEVEN.width
        assert block_bytes(SEVEN, device, True) == held + gradient
        assert block_bytes(with_adapters(SEVEN), device, True) == held


def test_passes_get_smaller_with_the_student_and_never_empty(monkeypatch):
    small = shape_of(tiny().model)
    monkeypatch.setattr(memory, "device_bytes", lambda device: 80 * 10**9)
    gpu = GPU
    assert training_tokens(small, gpu, 2) == scoring_tokens(small, gpu, 2) == 16_384
    assert training_tokens(small, CPU, 4) == 2048
    lora = with_adapters(SEVEN)
    tokens = training_tokens(lora, gpu, 2)
    assert 500 < tokens < 16_384
    token = activation_bytes(lora, 2) + logit_bytes(lora, 2, True)
    needed = state_bytes(lora, 2) + tokens * token
    assert 0.6 * 80e9 < needed <= 0.7 * 80e9
    assert training_tokens(lora, gpu, 2, checkpointing=True) > 4 * tokens
    without = training_tokens(lora, gpu, 2, linear=True)
    assert without > tokens
    needed = state_bytes(lora, 2) + block_bytes(lora, gpu, True)
    assert needed + without * activation_bytes(lora, 2) == pytest.approx(0.7 * 80e9, rel=0.01)
    assert training_tokens(SEVEN, gpu, 2) == 1  # does not fit at all: the plan says so
    held = cache_tokens(SEVEN, gpu, 2) * SEVEN.layers * SEVEN.cached * 2
    assert held == pytest.approx(0.15 * 80e9, rel=0.01)
