"""Tokens as the student knows them: the whole text is tokenized once, units by the characters."""

import random

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.data.example import Example
from cwt.data.marks import with_stage_marks
from cwt.data.tasks import TASKS, generate_examples
from cwt.data.units import split_units
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.skipping.ratify import ratify_skips
from cwt.skipping.scoring import answer_value, places_of, score_tokens
from cwt.students.causal import CausalStudent
from cwt.students.tokenized import PromptTokenizer, build_sequence, whole_sequence
from cwt.training.chunking import unit_embeddings, unit_nll
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

QWEN2 = (  # its splitting rule: a full stop takes the line feeds after it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def traces(n=40):
    """Rationales in paragraphs, as reasoning models write them."""
    rng, found = random.Random(0), []
    for i in range(n):
        a, b = rng.randrange(2, 99), rng.randrange(2, 99)
        text = (
            f"Okay, {a} and {b}.\n\nWe add them: {a} + {b} = {a + b}. Fine!\n\nWait, let me check. "
            f"{b} + {a} = {a + b}.\n\nYes \u2014 that is right \U0001f44d.\nSo we are done.\n\n"
            f"The answer is {a + b}"
        )
        found.append(Example(f"t{i}", f"What is {a} + {b}?", split_units(text), str(a + b)))
    return found


def texts():
    return [f"{e.question}\n{e.rationale}" for e in traces()]


def qwen_like():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, initial_alphabet=alphabet)


def llama2_like():
    """SentencePiece's way: a space before the text, no pre-tokenizer, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581"),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # so that training joins no lines
        pre_tokenizers.Split(Regex("\n+"), "isolated"),
        pre_tokenizers.Split(Regex("(?<=[^\u2581])(?=\u2581)"), "isolated"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return trained(tokenizer, more=["<unk>"])


def metaspace():
    """As T5 and Gemma have it: every word with the space before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.Split(Regex("\n+"), "isolated"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return trained(tokenizer, more=["<unk>"])


def trained(tokenizer, more=(), **options):
    special = ["</s>", "<|end|>", *more]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False, **options
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


KINDS = {"qwen": qwen_like, "llama2": llama2_like, "metaspace": metaspace}


def own_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_tokenizers_own_of_the_whole_text(kind):
    tokenizer = KINDS[kind]()
    prompts, moved = PromptTokenizer(tokenizer), 0
    for example in traces():
        item = prompts.tokenize(example)
        assert all(item.units)
        row = [*item.prompt, *sum(item.units, ())]
        assert row[:-1] == own_ids(tokenizer, f"{example.question}\n{example.rationale}")
        assert row[-1] == prompts.eos
        moved += row != [*item.prompt, *sum((prompts.ids(u) for u in example.units), ()), row[-1]]
    assert moved == 40  # what tokenizing unit by unit gives is another text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_tokenized_as_its_own_text(kind):
    tokenizer = KINDS[kind]()
    prompts, rng, changed = PromptTokenizer(tokenizer), random.Random(1), 0
    for example in traces():
        last = len(example.units) - 1
        keep = {0, last} | {u for u in example.middle_units if rng.random() < 0.5}
        item = prompts.tokenize(example).keeping(frozenset(keep))
        left = "".join(example.units[u] for u in sorted(keep))
        row = whole_sequence(item)
        assert row.ids[:-1] == own_ids(tokenizer, f"{example.question}\n{left}")
        assert set(item.written.units) == keep
        known = [p for p in places_of(item) if p[1] >= 0]
        tokens = dict(zip(places_of(item), item.written.ids, strict=True))
        assert len(tokens) == len(item.written.ids)
        assert all(item.units[u][p] == tokens[u, p] for u, p in known)
        changed += len(known) < len(tokens)
        # The line feeds before the answer are a token with the prompt's, which is there already.
        alone = build_sequence(item, answer_only=True)
        assert alone.ids[: len(item.prompt)] == list(item.prompt)
        written = tokenizer.convert_ids_to_tokens(alone.ids[len(item.prompt) :])
        assert written[0] != "\u2581"
        assert prompts.text(alone.ids[len(item.prompt) :]) == example.units[-1]
    assert changed or kind != "qwen"


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_belongs_to_the_unit_in_which_it_begins(kind):
    prompts = PromptTokenizer(KINDS[kind]())
    for example in traces(5):
        item = prompts.tokenize(example)
        for u, (ids, starts) in enumerate(zip(item.units, item.starts, strict=True)):
            assert len(ids) == len(starts)
            assert list(starts) == sorted(starts)
            found = prompts.text(ids).strip()
            begin = example.units[u][starts[0] :].strip()
            assert found.startswith(begin[:3])


def test_a_text_that_names_special_tokens_stays_text():
    tokenizer = qwen_like()
    prompts = PromptTokenizer(tokenizer, "{question}<|end|>")
    example = Example("a", "Why <|end|>?", ("As <|end|> says.", "\nThe answer is 1"), "1")
    item = prompts.tokenize(example)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert list(item.prompt).count(end) == 1
    assert item.prompt[-1] == end
    assert not any(end in unit for unit in item.units)
    assert prompts.text(sum(item.units, ())) == example.rationale


def test_a_unit_without_a_token_of_its_own_is_tokenized_by_itself():
    tokenizer = qwen_like()
    tokenizer.add_tokens(["done.\n\nThe"])
    prompts = PromptTokenizer(tokenizer)
    example = Example("a", "Why?", ("We are done.", "\n\n", "The answer is 1"), "1")
    item = prompts.tokenize(example)
    assert [prompts.text(unit) for unit in item.units] == list(example.units)


@pytest.mark.parametrize("task", TASKS)
def test_of_the_embedded_tokenizer_both_ways_agree(task):
    prompts, rng = tiny().tokenizer, random.Random(0)
    for plain in generate_examples(task, [60], seed=3)[0]:
        halves = plain.chunked([0, len(plain.units) - 1, len(plain.units)])
        for example in (plain, *with_stage_marks([halves])):
            alone = [prompts.ids(unit) for unit in example.units]
            alone[-1] = (*alone[-1], prompts.eos)
            item = prompts.tokenize(example)
            assert item.units == tuple(alone)
            last = len(alone) - 1
            keep = {0, last} | {u for u in example.middle_units if rng.random() < 0.5}
            left = item.keeping(frozenset(keep))
            assert list(left.written.ids) == sum((list(alone[u]) for u in sorted(keep)), [])
            assert places_of(left) == [(u, p) for u in sorted(keep) for p in range(len(alone[u]))]


def student(kind):
    torch.manual_seed(0)
    tokenizer = KINDS[kind]()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=None, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return CausalStudent(model.float().eval(), PromptTokenizer(tokenizer))


def log_probabilities(own, ids):
    with torch.no_grad():
        return own.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_remaining_text(kind):
    own, rng = student(kind), random.Random(2)
    items = [own.tokenize(e) for e in traces(6)]
    parts = []
    for item in items:
        last = len(item.units) - 1
        keep = {0, last} | {u for u in item.example.middle_units if rng.random() < 0.5}
        parts.append(item.keeping(frozenset(keep)))
    for item, found in zip(parts, score_tokens(own, parts, 4), strict=True):
        left = "".join(item.example.units[u] for u in sorted(item.example.kept))
        text = f"{item.example.question}\n{left}"
        ids = [*own_ids(own.tokenizer.tokenizer, text), own.tokenizer.eos]
        table = log_probabilities(own, ids)
        n = len(item.prompt)
        wanted = [float(table[t - 1, ids[t]].exp()) for t in range(n, len(ids))]
        assert [p for _, p in found.values()] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
        value = [own.text([ids[n + i]]) for i, at in enumerate(found) if at in answer_value(item)]
        assert "".join(value).replace(" ", "") == item.example.answer


@pytest.mark.parametrize("kind", KINDS)
def test_units_cost_and_are_embedded_by_their_own_tokens(kind):
    own = student(kind)
    items = [own.tokenize(e) for e in traces(3)]
    nlls, vectors = unit_nll(own, items, 2), unit_embeddings(own, items, 2)
    for item, nll, vector in zip(items, nlls, vectors, strict=True):
        ids = [*item.prompt, *sum(item.units, ())]
        table = log_probabilities(own, ids)
        with torch.no_grad():
            states = own.model(
                input_ids=torch.tensor([ids]), output_hidden_states=True
            ).hidden_states[-1][0]
        t = len(item.prompt)
        for u, unit in enumerate(item.units):
            wanted = -sum(float(table[t + i - 1, token]) for i, token in enumerate(unit))
            assert nll[u] == pytest.approx(wanted, rel=1e-4)
            inputs = len(unit) - (u == len(item.units) - 1)  # the end is no input
            mean = states[t : t + inputs].mean(0)
            torch.testing.assert_close(torch.tensor(vector[u]), mean, rtol=1e-3, atol=1e-4)
            t += len(unit)


@pytest.mark.parametrize("kind", KINDS)
def test_judges_decide_on_any_tokenizer(kind):
    """The answer's rise of every decision against passes over the text that is left, one by one."""
    own, some = student(kind), traces(4)
    criterion = SkipCriterion(min_probability=0.3, max_answer_nll_rise=0.1)
    shorter, decisions = find_skips(own, some, criterion, batch_size=3)
    again, ratified = ratify_skips(own, shorter, criterion, batch_size=3)
    assert {d.skipped for d in (*decisions, *ratified)} == {True, False}
    assert len(ratified) == sum(len(e.middle_units) for e in some)

    def value_nll(example, keep):
        text = f"{example.question}\n" + "".join(example.units[u] for u in sorted(keep))
        ids = own_ids(own.tokenizer.tokenizer, text)
        before = own_ids(own.tokenizer.tokenizer, text[: text.rindex(" is ") + 3])
        assert ids[: len(before)] == before
        table = log_probabilities(own, ids)
        return -sum(float(table[t - 1, ids[t]]) for t in range(len(before), len(ids)))

    gone = {e.id: set() for e in some}
    by_id = {e.id: e for e in some}
    for d in decisions:
        whole = set(range(len(by_id[d.id].units)))
        rise = value_nll(by_id[d.id], whole - gone[d.id] - {d.unit})
        rise -= value_nll(by_id[d.id], whole)
        assert d.answer_rise == pytest.approx(rise, abs=2e-3)
        if d.skipped:
            gone[d.id].add(d.unit)
    assert [set(range(len(e.units))) - gone[e.id] for e in some] == [set(e.kept) for e in shorter]
    assert [set(e.kept) for e in again] == [
        set(range(len(e.units))) - {d.unit for d in ratified if d.id == e.id and d.skipped}
        for e in some
    ]


def test_examples_of_the_fixture_have_chunks():
    """A chunk's row is the beginning of the whole row."""
    own = tiny()
    for example in examples(5):
        item = own.tokenize(example)
        whole = whole_sequence(item).ids
        for m in range(example.chunks):
            row = build_sequence(item, chunk=m)
            assert row.ids == whole[: len(row.ids)]
