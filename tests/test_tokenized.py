import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.students.pretrained import logits_only_at
from cwt.students.tokenized import (
    IGNORE_INDEX,
    PromptTokenizer,
    TokenSequence,
    build_sequence,
    collate,
)
from transformers import AutoConfig, AutoModelForCausalLM


def test_units_join_to_the_ids_of_the_text():
    student = tiny()
    for example in examples(50):
        item = student.tokenize(example)
        assert item.example == example
        ids = sum(item.units, ())
        assert ids[-1] == student.tokenizer.eos
        assert ids[:-1] == student.ids(example.rationale)
        assert student.text(ids) == example.rationale


def test_any_text_survives_the_embedded_tokenizer():
    student = tiny()
    text = "290 bananas \u00f7 2 groups = 145 \u2014 \u00e9t\u00e9, \u4f60\u597d!\n\tEnd"
    assert student.text(student.ids(text)) == text


def test_rows_of_each_method():
    (example,) = examples(1, chunks=3)
    item = tiny().tokenize(example)
    prompt, units, cuts = list(item.prompt), item.units, example.boundaries
    flat = [list(unit) for unit in units]
    whole = build_sequence(item)
    assert whole.ids == prompt + sum(flat, [])
    assert whole.chunks[: len(prompt)] == [-1] * len(prompt)
    assert whole.loss_tokens == sum(map(len, units))
    for m in range(example.chunks):
        row = build_sequence(item, chunk=m)
        before, mine = sum(flat[: cuts[m]], []), sum(flat[cuts[m] : cuts[m + 1]], [])
        assert row.ids == prompt + before + mine
        assert row.chunks == [-1] * (len(prompt) + len(before)) + [m] * len(mine)
    answer = build_sequence(item, answer_only=True)
    assert answer.ids == prompt + flat[-1]
    assert answer.loss_tokens == len(flat[-1])
    holes = build_sequence(item.keeping(frozenset({0, 2, len(units) - 1})))
    assert holes.ids == prompt + flat[0] + flat[2] + flat[-1]


def test_a_long_row_loses_the_beginning_of_its_context_and_never_question_or_target():
    item = tiny().tokenize(*examples(1, chunks=3))
    last, question = build_sequence(item, chunk=3), len(item.prompt)
    cut = build_sequence(item, chunk=3, max_length=question + 20)
    assert cut.ids == last.ids[:question] + last.ids[-20:]
    assert cut.chunks == last.chunks[:question] + last.chunks[-20:]
    assert cut.shortened == len(last.ids) - question - 20 > 0
    least = question + last.loss_tokens
    assert build_sequence(item, chunk=3, max_length=least).ids == (
        last.ids[:question] + last.ids[-last.loss_tokens :]
    )
    assert build_sequence(item, chunk=3, max_length=least - 1) is None
    assert build_sequence(item, chunk=3, max_length=len(last.ids)) == last
    assert build_sequence(item, max_length=len(last.ids) - 1) is None  # all of it is target


def test_labels_are_the_next_token_and_padding_bears_no_loss():
    batch = collate(
        [TokenSequence([5, 6, 7, 8], [-1, -1, 0, 1]), TokenSequence([5, 9], [-1, 2])], pad=8
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 8, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE_INDEX, 7, 8], [9, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.chunk_ids.tolist() == [[-1, 0, 1], [2, -1, -1]]


@pytest.mark.parametrize("rows", [[], [TokenSequence([1, 2], [-1, -1])]])
def test_a_batch_without_labels_is_refused(rows):
    with pytest.raises(ValueError, match="a batch needs at least one label"):
        collate(rows, pad=0)


def test_a_template_without_the_question_is_refused():
    with pytest.raises(UserError, match=r"must hold \{question\}, got 'Q'"):
        PromptTokenizer(tiny().tokenizer.tokenizer, "Q")


def test_a_tokenizer_that_ends_nothing_is_refused():
    tokenizer = tiny().tokenizer.tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        PromptTokenizer(tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_head_sees_the_rows_that_bear_loss_and_no_other(architecture):
    model = small_model(architecture)  # gemma2 has a softcap on its logits
    batch = collate(
        [TokenSequence([5, 6, 7, 8], [-1, -1, 0, 1]), TokenSequence([5, 9, 3], [-1, -1, 2])], pad=0
    )
    rows = batch.bears_loss
    options = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    everything = model(**options).logits
    with logits_only_at(model, rows):
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


def test_the_name_of_a_special_token_in_the_data_is_text():
    """llama.cpp's users met it: "<eos>" in a question or a rationale ended the sequence."""
    student = tiny()
    eos = student.tokenizer.eos
    example = Example("a", "What ends <eos> here?", ("It ends <eos>.", " The answer is 1"), "1")
    tokenized = student.tokenize(example)
    assert eos not in tokenized.prompt
    assert student.text(tokenized.prompt) == "What ends <eos> here?\n"
    assert [unit.count(eos) for unit in tokenized.units] == [0, 1]
    assert student.text(tokenized.units[0]) == "It ends <eos>."
    chat = PromptTokenizer(student.tokenizer.tokenizer, "{question}<eos>")
    assert chat.prompt("Why?")[-1] == eos
    assert chat.prompt("Why <eos>?").count(eos) == 1
