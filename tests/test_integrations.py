"""The chunk loss of transformers models: equal to eager torch on the model's own logits."""

import doctest
import importlib
import logging
import sys
import warnings

import pytest
import torch
from integration_models import FAMILIES, SEQ2SEQ, C, V, batch_for, eager_loss, small_model

import cwt_ext
from cwt_ext.integrations import ChunkCollator, ModelChunkLoss


def gradients(model, loss):
    """Of every parameter that the loss reaches; the model is left without any."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def compare_with_eager(model, batch, loss_of, **options):
    """Asserts that loss and every gradient equal the eager ones to 1e-5."""
    weight = batch.get("token_weight")
    wanted = eager_loss(model, batch, token_weight=weight, **options)
    want = gradients(model, wanted)
    out = loss_of(batch, loss_of.step([batch], active=options.get("active")))
    assert out.loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    got = gradients(model, out.loss)
    assert got.keys() == want.keys()
    scale = max(grad.abs().max().item() for grad in want.values())
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-5, atol=1e-5 * scale, msg=name)
    return out


@pytest.mark.parametrize("backend", ["fused", "logits"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_eager_ones(family, backend):
    model, batch = small_model(family), batch_for(family)
    loss_of = ModelChunkLoss(model, backend=backend)
    out = compare_with_eager(model, batch, loss_of)
    assert loss_of.path == ("linear_chunk_loss" if backend == "fused" else out_path(backend))
    assert out.output.logits is None
    shift = family not in SEQ2SEQ
    labels, ids = (batch[n][:, 1:] if shift else batch[n] for n in ("labels", "chunk_ids"))
    tokens = [int(((labels != -100) & (ids == c)).sum()) for c in range(C)]
    assert out.stats.tokens.tolist() == tokens


def out_path(backend):
    return f'chunk_loss: backend="{backend}"'


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "t5-tied", "bart"])
@pytest.mark.parametrize("backend", ["fused", "logits"])
@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean"])
@pytest.mark.parametrize("active", [[True, False, True], [0.5, 0.0, 2.0]], ids=["bool", "float"])
def test_weights_of_chunks_and_tokens(family, backend, reduction, active):
    model, batch = small_model(family), batch_for(family)
    batch["token_weight"] = torch.rand(batch["labels"].shape)
    loss_of = ModelChunkLoss(model, backend=backend, reduction=reduction)
    options = {"active": torch.tensor(active), "reduction": reduction}
    out = compare_with_eager(model, batch, loss_of, **options)
    assert out.stats.tokens[1] == 0


@pytest.mark.parametrize("backend", ["fused", "logits"])
def test_a_batch_alone_knows_its_chunks(backend):
    model, batch = small_model("llama"), batch_for("llama")
    out = ModelChunkLoss(model, reduction="chunk_mean", backend=backend)(batch)
    want = eager_loss(model, batch, reduction="chunk_mean")
    assert out.loss.item() == pytest.approx(want.item(), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma3-capped", "t5-tied"])
def test_micro_batches_add_up_to_the_step(family):
    model, batch = small_model(family), batch_for(family, rows=4)
    batch["labels"][1:, :7] = -100  # unequal parts
    for reduction in ("token_mean", "chunk_mean"):
        loss_of = ModelChunkLoss(model, reduction=reduction, num_chunks=C)
        parts = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(4)]
        step = loss_of.step(parts)
        total = sum(loss_of(part, step).loss.item() for part in parts)
        assert total == pytest.approx(eager_loss(model, batch, reduction=reduction).item(), 1e-6)


def adapted(model, targets, **options):
    import peft

    with warnings.catch_warnings():  # PEFT asks transformers in a way that is deprecated
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(target_modules=targets, r=2, **options)
        found = peft.get_peft_model(model, config)
    with torch.no_grad():  # LoRA starts at 0, where an ignored adapter does not show
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "t5-untied"])
def test_lora_on_the_body_is_fused(family):
    model, batch = small_model(family), batch_for(family)
    loss_of = ModelChunkLoss(adapted(model, ["q"] if family in SEQ2SEQ else ["q_proj"]))
    compare_with_eager(loss_of.model, batch, loss_of)
    assert loss_of.path == "linear_chunk_loss"
    head = model.get_output_embeddings()
    assert not head.weight.requires_grad


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "t5-untied"])
def test_lora_on_the_head_is_honoured(family, caplog):
    model, batch = small_model(family), batch_for(family)
    before = eager_loss(model, batch).item()
    loss_of = ModelChunkLoss(adapted(model, ["lm_head"]))
    compare_with_eager(loss_of.model, batch, loss_of)
    assert abs(eager_loss(loss_of.model, batch).item() - before) > 1e-2  # it matters
    assert "peft.tuners.lora.layer.Linear, not a torch.nn.Linear" in loss_of.path
    assert [(r.levelno, "peft.tuners" in r.message) for r in caplog.records] == [
        (logging.WARNING, True)
    ]


def test_a_head_that_peft_saves_whole_is_honoured():
    model, batch = small_model("llama"), batch_for("llama")
    loss_of = ModelChunkLoss(adapted(model, ["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.add_(0.3)
    compare_with_eager(loss_of.model, batch, loss_of)
    assert "ModulesToSaveWrapper" in loss_of.path


def test_an_adapter_that_comes_later_is_noticed():
    model, batch = small_model("llama"), batch_for("llama")
    loss_of = ModelChunkLoss(model)
    loss_of(batch)
    assert loss_of.path == "linear_chunk_loss"
    adapted(model, ["lm_head"])  # in place
    compare_with_eager(model, batch, loss_of)
    assert loss_of.path.startswith("chunk_loss: the head is a peft")


def test_a_head_with_a_parametrisation_is_not_fused():
    model, batch = small_model("llama"), batch_for("llama")
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    loss_of = ModelChunkLoss(model)
    compare_with_eager(model, batch, loss_of)
    assert loss_of.path.startswith("chunk_loss: the head is parametrised")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda z: z.abs(), "another way than by a scale, a softcap or an offset"),
        (lambda z: z.log_softmax(-1), "another way than by a scale, a softcap or an offset"),
        (lambda z: torch.tanh(z + 0.3) * 2, "another way than by a scale, a softcap or an offset"),
        (lambda z: z[..., :50], "another way than by a scale, a softcap or an offset"),
    ],
    ids=["abs", "log_softmax", "offset and cap", "cut"],
)
def test_unknown_treatment_of_the_logits_is_left_to_the_model(change, why):
    model, batch = small_model("llama"), batch_for("llama")
    batch["labels"] = batch["labels"].clamp_max(49)
    forward = model.forward

    def changed(*args, **kwargs):
        output = forward(*args, **kwargs)
        output["logits"] = change(output.logits)
        return output

    model.forward = changed
    loss_of = ModelChunkLoss(model)
    compare_with_eager(model, batch, loss_of)
    assert why in loss_of.path
    with pytest.raises(ValueError, match=rf'backend="fused" cannot run: .*{why}'):
        ModelChunkLoss(model, backend="fused")(batch)


def test_a_hook_on_the_head_is_seen_by_the_check():
    """The head is a plain Linear, but its output is not what its weight gives."""
    model, batch = small_model("llama"), batch_for("llama")
    model.lm_head.register_forward_hook(lambda m, a, out: out + 0.1 * a[0].sum(-1, keepdim=True))
    loss_of = ModelChunkLoss(model)
    compare_with_eager(model, batch, loss_of)
    assert loss_of.path.startswith("chunk_loss: ")


def test_a_model_that_uses_its_head_in_its_own_way_is_not_fused():
    model, batch = small_model("llama"), batch_for("llama")
    body, head = model.model, model.lm_head

    def forward(input_ids, attention_mask=None, **_):
        from transformers.modeling_outputs import CausalLMOutput

        hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return CausalLMOutput(logits=hidden @ head.weight.T)

    model.forward = forward
    loss_of = ModelChunkLoss(model)
    out = loss_of(batch, loss_of.step([batch]))
    assert out.loss.item() == pytest.approx(eager_loss(model, batch).item(), abs=1e-5)
    assert "the model calls its head 0 times" in loss_of.path


def test_the_check_draws_no_random_number_and_leaves_the_model_as_it_was():
    model, batch = small_model("gpt2", embd_pdrop=0.5), batch_for("gpt2")
    model.train()
    before = torch.get_rng_state()
    first = ModelChunkLoss(model)
    first(batch)
    one_pass = torch.get_rng_state()
    torch.set_rng_state(before)
    first(batch)  # already measured
    assert torch.equal(torch.get_rng_state(), one_pass)
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.lm_head)
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=batch["input_ids"]).logits.shape == (4, 12, V)


def test_half_precision_measures_the_softcap_exactly():
    model, batch = small_model("gemma2", final_logit_softcapping=30.0), batch_for("gemma2")
    loss_of = ModelChunkLoss(model.bfloat16())
    out = loss_of(batch)
    assert loss_of.path == "linear_chunk_loss"
    assert loss_of._measured[-1].softcap == 30.0
    assert loss_of._measured[-1].scale == 1.0
    want = eager_loss(model.float(), batch).item()
    assert out.loss.item() == pytest.approx(want, rel=2e-2)


def test_all_logits_on_request():
    model, batch = small_model("gemma2"), batch_for("gemma2")
    out = ModelChunkLoss(model)(batch, keep_logits=True)
    wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(out.output.logits, wanted)
    assert out.loss.item() == pytest.approx(eager_loss(model, batch).item(), abs=1e-5)


def test_a_compiled_body_is_fine_and_a_compiled_head_is_refused():
    model, batch = small_model("llama"), batch_for("llama")
    in_place = small_model("llama")
    in_place.compile(backend="eager")
    for compiled in (torch.compile(model, backend="eager"), in_place):
        with pytest.raises(TypeError, match=r"together with its head.*base_model.compile\(\)"):
            ModelChunkLoss(compiled)
    model.base_model.compile(backend="eager")
    loss_of = ModelChunkLoss(model)
    compare_with_eager(model, batch, loss_of)
    assert loss_of.path == "linear_chunk_loss"


def test_activation_checkpointing_changes_nothing():
    model, batch = small_model("llama"), batch_for("llama")
    model.train()
    model.activation_checkpointing_enable()
    compare_with_eager(model, batch, ModelChunkLoss(model))


@pytest.mark.parametrize("backend", ["logits", "fused"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "t5-tied"])
def test_autocast(family, backend):
    model, batch = small_model(family), batch_for(family)
    loss_of = ModelChunkLoss(model, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        out = loss_of(batch, loss_of.step([batch]))
        want = eager_loss(model, batch)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(want.item(), rel=2e-3)
    got, want = gradients(model, out.loss), gradients(model, want)
    for name, grad in want.items():
        distance = (got[name] - grad).norm() / max(grad.norm(), 1e-3)
        assert distance < 0.05, name


# Silent faults that users met


def test_labels_are_shifted_for_causal_models_and_for_no_other():
    """Unshifted labels trained a model to copy, with a small and wrong loss."""
    for family, shifted in (("llama", True), ("t5-tied", False)):
        model, batch = small_model(family), batch_for(family)
        loss_of = ModelChunkLoss(model)
        assert loss_of.shift is shifted
        compare_with_eager(model, batch, loss_of)
    already = {**batch_for("llama"), "shift_labels": batch["labels"]}
    with pytest.raises(ValueError, match="got 'shift_labels', but labels are shifted here"):
        ModelChunkLoss(small_model("llama"))(already)


def test_the_step_counts_no_label_of_an_inactive_chunk():
    """Labels of chunks that bear no loss were counted: 1.68 for 7.1."""
    model, batch = small_model("llama"), batch_for("llama")
    active = torch.tensor([False, True, False])
    loss_of = ModelChunkLoss(model)
    step = loss_of.step([batch], active=active)
    labels, ids = batch["labels"][:, 1:], batch["chunk_ids"][:, 1:]
    assert step.normalizer == int(((labels != -100) & (ids == 1)).sum())
    assert step.normalizer < int((labels != -100).sum())
    compare_with_eager(model, batch, loss_of, active=active)


def test_columns_that_were_truncated_apart_are_refused():
    batch = batch_for("llama")
    batch["labels"] = batch["labels"][:, :8]
    with pytest.raises(ValueError, match=r"chunk_ids must be \(B, T\) as the labels \(4, 8\).*12"):
        ModelChunkLoss(small_model("llama"))(batch)
    row = {"input_ids": [1, 2, 3], "chunk_ids": [0, 0, 0, 1]}
    with pytest.raises(ValueError, match=r"row 0 has chunk_ids of shape \(4,\) and input_ids.*3"):
        ChunkCollator(0)([row])


def test_a_step_without_a_token_that_counts_is_refused():
    model, batch = small_model("llama"), batch_for("llama")
    with pytest.raises(ValueError, match="no token of this step counts"):
        ModelChunkLoss(model).step([batch], active=torch.tensor([False] * 4))
    batch["labels"][:] = -100
    with pytest.raises(ValueError, match="no token of this step counts"):
        ModelChunkLoss(model).step([batch])
    for backend in ("fused", "logits"):  # a batch within a step may have none
        out = ModelChunkLoss(model, backend=backend)(batch)
        assert out.loss == 0
        out.loss.backward()
        assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "call", "error", "match"),
    [
        ({"reduction": "sum"}, None, ValueError, "reduction must be .*got 'sum'"),
        ({"backend": "best"}, None, ValueError, "backend must be \"auto\".*got 'best'"),
        ({"reduction": "chunk_mean"}, lambda f, b: f.step([b]), ValueError, "num_chunks or active"),
        (
            {},
            lambda f, b: f.step([b], active=torch.ones(2)),
            IndexError,
            "there are 2 chunks.* reach 2",
        ),
        (
            {},
            lambda f, b: f({"input_ids": b["labels"]}),
            ValueError,
            "'chunk_ids', got .'input_ids",
        ),
        ({"num_chunks": 2}, lambda f, b: f(b), IndexError, "there are 2 chunks.* reach 2"),
    ],
    ids=["reduction", "backend", "chunks", "beyond", "columns", "num_chunks"],
)
def test_wrong_arguments_say_what_was_wanted(options, call, error, match):
    model, batch = small_model("llama"), batch_for("llama")
    with pytest.raises(error, match=match):
        call(ModelChunkLoss(model, **options), batch)


def test_a_model_without_a_head_and_one_with_a_router_are_refused():
    with pytest.raises(TypeError, match=r"a transformers model with an output head.*got Linear"):
        ModelChunkLoss(torch.nn.Linear(2, 2))
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
        output_router_logits=True,
    )  # fmt: skip
    model, batch = MixtralForCausalLM(config), batch_for("llama")
    with pytest.raises(ValueError, match=r"router loss \(aux_loss\), which is not supported"):
        ModelChunkLoss(model)(batch)
    model.config.output_router_logits = False
    compare_with_eager(model, batch, ModelChunkLoss(model))


# The collator


def test_collator_pads_and_truncates_every_column_alike():
    rows = [
        {
            "input_ids": [5, 6, 7, 8],
            "chunk_ids": [-1, 0, 0, 1],
            "labels": [-100, 6, 7, 8],
            "token_weight": [0, 1, 1, 0.5],
        },
        {"input_ids": [9, 3], "chunk_ids": [-1, 0], "labels": [9, 3], "token_weight": [1, 1]},
    ]
    batch = ChunkCollator(2, max_length=3, pad_to_multiple_of=4)(rows)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[6, 7, 8, 2], [9, 3, 2, 2]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
        "labels": [[6, 7, 8, -100], [9, 3, -100, -100]],
        "chunk_ids": [[0, 0, 1, -1], [-1, 0, -1, -1]],
        "token_weight": [[1, 1, 0.5, 0], [1, 1, 0, 0]],
    }
    first = ChunkCollator(2, max_length=3, truncation="keep_start")(rows)
    assert first["input_ids"].tolist() == [[5, 6, 7], [9, 3, 2]]
    assert first["chunk_ids"].tolist() == [[-1, 0, 0], [-1, 0, -1]]


def test_collator_of_an_encoder_decoder_keeps_source_and_target_apart():
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [3, 4], "chunk_ids": [0, 1]}]
    batch = ChunkCollator(0, max_length=3, encoder_decoder=True)(rows * 2)
    assert batch["input_ids"].tolist() == [[6, 7, 8]] * 2
    assert batch["labels"].tolist() == [[3, 4]] * 2
    with pytest.raises(ValueError, match="input_ids and chunk_ids and labels, got"):
        ChunkCollator(0, encoder_decoder=True)([{"input_ids": [1], "chunk_ids": [0]}])


def test_collator_refuses_what_bears_no_loss_and_says_what_it_lost(caplog):
    row = {"input_ids": [5, 6, 7], "chunk_ids": [0, -1, -1]}
    with pytest.raises(ValueError, match="no token of the 1 rows has a label and a chunk within"):
        ChunkCollator(0, max_length=2)([row])
    other = {"input_ids": [5, 6, 7], "chunk_ids": [0, 1, 1]}
    caplog.clear()
    collator = ChunkCollator(0, max_length=2)
    collator([row, other])
    collator([row, other])
    assert [r.message for r in caplog.records] == [
        "ChunkCollator: max_length=2 cuts off every label of a row; it adds nothing to the loss. "
        "Further rows are not reported."
    ]
    for wrong, match in (
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"truncation": "left"}, 'truncation must be "keep_end" or "keep_start", got \'left\''),
    ):
        with pytest.raises(ValueError, match=match):
            ChunkCollator(0, **wrong)
    with pytest.raises(ValueError, match=r"row 0 must have input_ids and chunk_ids, got \['labels"):
        ChunkCollator(0)([{"labels": [1]}])
    with pytest.raises(ValueError, match="every row must have the same columns"):
        ChunkCollator(0)([other, {**other, "token_weight": [1, 1, 1]}])


# Imports


@pytest.mark.parametrize("module", ["collator", "model_loss", "transformers_trainer"])
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"cwt_ext.integrations.{module}"))
    assert result.attempted > 2
    assert result.failed == 0


def test_names_that_need_a_package_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "cwt_ext.integrations.sft_trainer", raising=False)
    with pytest.raises(ImportError, match="ChunkSFTTrainer needs `pip install trl`"):
        cwt_ext.integrations.ChunkSFTTrainer  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cwt_ext.integrations.Nothing  # noqa: B018
