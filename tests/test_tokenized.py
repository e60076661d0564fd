import pytest
import torch
from app_fixtures import encode, examples, tiny
from cwt.encode import IGNORE, Sample, collate, head_of_rows, sample
from cwt.errors import UserError
from transformers import AutoConfig, AutoModelForCausalLM


def test_units_join_to_the_ids_of_the_text():
    _, encoder = tiny()
    for example, item in zip(examples(50), encode(encoder, examples(50)), strict=True):
        ids = sum(item.units, ())
        assert ids[-1] == encoder.eos
        assert ids[:-1] == encoder.ids(example.rationale)
        assert encoder.text(ids) == example.rationale


def test_any_text_survives_the_embedded_tokenizer():
    _, encoder = tiny()
    text = "290 bananas \u00f7 2 groups = 145 \u2014 \u00e9t\u00e9, \u4f60\u597d!\n\tEnd"
    assert encoder.text(encoder.ids(text)) == text


def test_rows_of_each_method():
    _, encoder = tiny()
    (item,) = encode(encoder, examples(1), chunks=3)
    prompt, units, cuts = list(item.prompt), item.units, item.boundaries
    flat = [list(unit) for unit in units]
    whole = sample(item)
    assert whole.ids == prompt + sum(flat, [])
    assert whole.chunks[: len(prompt)] == [-1] * len(prompt)
    assert whole.loss_tokens == sum(map(len, units))
    for m in range(item.chunks):
        row = sample(item, chunk=m)
        before, mine = sum(flat[: cuts[m]], []), sum(flat[cuts[m] : cuts[m + 1]], [])
        assert row.ids == prompt + before + mine
        assert row.chunks == [-1] * (len(prompt) + len(before)) + [m] * len(mine)
    answer = sample(item, answer_only=True)
    assert answer.ids == prompt + flat[-1]
    assert answer.loss_tokens == len(flat[-1])
    holes = sample(item, keep={0, 2, len(units) - 1})
    assert holes.ids == prompt + flat[0] + flat[2] + flat[-1]


def test_a_long_row_loses_the_left_of_its_context_and_never_its_target():
    _, encoder = tiny()
    (item,) = encode(encoder, examples(1), chunks=3)
    last = sample(item, chunk=3)
    cut = sample(item, chunk=3, max_length=20)
    assert cut.ids == last.ids[-20:]
    assert cut.loss_tokens == last.loss_tokens
    assert sample(item, chunk=3, max_length=last.loss_tokens) is None  # no room for any context
    assert sample(item, chunk=3, max_length=last.loss_tokens + 1) is not None


def test_labels_are_the_next_token_and_padding_bears_no_loss():
    batch = collate([Sample([5, 6, 7, 8], [-1, -1, 0, 1]), Sample([5, 9], [-1, 2])], pad=8)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 8, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 7, 8], [9, IGNORE, IGNORE]]
    assert batch.chunk_ids.tolist() == [[-1, 0, 1], [2, -1, -1]]


@pytest.mark.parametrize("rows", [[], [Sample([1, 2], [-1, -1])]])
def test_a_batch_without_labels_is_refused(rows):
    with pytest.raises(ValueError, match="a batch needs at least one label"):
        collate(rows, pad=0)


def test_a_template_without_the_question_is_refused():
    from cwt.encode import Encoder

    _, encoder = tiny()
    with pytest.raises(UserError, match=r"must hold \{question\}, got 'Q'"):
        Encoder(encoder.tokenizer, "Q")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_head_sees_the_rows_that_bear_loss_and_no_other(architecture):
    model = small_model(architecture)  # gemma2 has a softcap on its logits
    batch = collate([Sample([5, 6, 7, 8], [-1, -1, 0, 1]), Sample([5, 9, 3], [-1, -1, 2])], pad=0)
    rows = batch.chunk_ids >= 0
    options = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    everything = model(**options).logits
    with head_of_rows(model, rows):
        some = model(**options).logits
    assert some.shape == (1, 3, 32)
    torch.testing.assert_close(some[0], everything[rows])
    wanted = torch.autograd.grad(everything[rows].square().sum(), list(model.parameters()))
    found = torch.autograd.grad(some.square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(model(**options).logits, everything)  # and the hook is gone


def small_model(architecture):
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=32, n_embd=16, n_layer=1, n_head=2)
    else:
        config = AutoConfig.for_model(
            architecture, vocab_size=32, hidden_size=16, intermediate_size=16, head_dim=8,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()
