"""Rows for other trainers: parsed back they are the example, and TRL has our loss on them."""

import json
import math
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.cli import main
from cwt.data.example import Example
from cwt.data.export import ROWS, Wording, samples
from cwt.errors import UserError
from cwt.files import read_json, read_lines, write_json
from cwt.pipeline.export import token_row, trained_examples
from cwt.pipeline.methods import METHODS
from cwt.pipeline.workspace import open_workspace, saved_config
from cwt.students.tokenized import IGNORE_INDEX, PromptTokenizer, build_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler

ROOT = Path(__file__).resolve().parents[1]
WORDING = Wording("Q: {question}\n", "<s>", "</s>")

HARD = Example(
    id="hard",
    question="¿Qué {question} es «½»?\n\tA\u2028B",
    units=(
        "数える。",
        "\n\n1. é = e\u0301 😀",
        "\u00a0\u2028 \\frac{1}{2} </s>\t",
        "  ",
        "\nThe answer is ½",
    ),
    answer="½",
).chunked([0, 2, 4, 5])
SHORT = HARD.keeping(frozenset({0, 2, 4}))
CHUNK_GONE = HARD.keeping(frozenset({0, 1, 4}))
CASES = [HARD, SHORT, CHUNK_GONE, *examples(3)]


def rows_of(example, to, what):
    """The rows of an example as a file gives them back, beside their samples."""
    chosen = list(samples([example], what))
    return chosen, [
        json.loads(json.dumps(ROWS[to](s, WORDING), ensure_ascii=False)) for s in chosen
    ]


def wanted(example, what):
    """(context, target, ends) of every row, by build_sequence's rule, in plain loops."""
    of_unit, result = example.chunk_of_units(), []
    chunks = range(example.chunks) if what == "chunks" else [None]
    for chunk in chunks:
        context = target = ""
        for u, unit in enumerate(example.units):
            if u in example.kept and (chunk is None or of_unit[u] <= chunk):
                if chunk is None or of_unit[u] == chunk:
                    target += unit
                else:
                    context += unit
        if target:
            result.append((context, target, chunk in (None, example.chunks - 1)))
    return result


@pytest.mark.parametrize("what", ["chunks", "rationales"])
@pytest.mark.parametrize("example", CASES, ids=lambda e: e.id)
def test_every_format_parsed_back_is_the_example(example, what):
    prompt = WORDING.template.replace("{question}", example.question)
    expected = wanted(example, what)
    _, rows = rows_of(example, "trl", what)
    assert [(r["prompt"], r["completion"], r["ends"]) for r in rows] == [
        (prompt + context, target, ends) for context, target, ends in expected
    ]
    _, rows = rows_of(example, "messages", what)
    assert [[(m["role"], m["content"]) for m in r["messages"]] for r in rows] == [
        [("user", prompt + context), ("assistant", target)] for context, target, _ in expected
    ]
    _, rows = rows_of(example, "alpaca", what)
    assert [(r["instruction"], r["input"], r["output"]) for r in rows] == [
        (prompt, context, target) for context, target, _ in expected
    ]
    for row, (context, target, ends) in zip(
        rows_of(example, "axolotl", what)[1], expected, strict=True
    ):
        first, second, *rest = row["segments"]
        assert (first, second) == (
            {"label": False, "text": "<s>"},
            {"label": False, "text": prompt},
        )
        said = [(s["label"], s["text"]) for s in rest]
        assert said.pop() == (True, "</s>") if ends else said
        assert "".join(text for label, text in said if label) == target
        assert "".join(text for label, text in said if not label) == context
        user, assistant = (m["content"] for m in row["messages"])
        assert user == [{"type": "text", "text": prompt}]
        kept = "".join(example.units[u] for u in sorted(example.kept))
        assert "".join(p["text"] for p in assistant) == kept
        (start,) = (i for i, p in enumerate(assistant) if p["train"])
        assert assistant[start]["text"] == target
        assert "".join(p["text"] for p in assistant[:start]) == context


@pytest.mark.parametrize("example", CASES, ids=lambda e: e.id)
def test_jsonl_holds_the_whole_example(example):
    chosen, (row,) = rows_of(example, "jsonl", "rationales")
    segments = row["segments"]
    of_unit = [s["chunk"] for s in segments]
    again = Example(
        id=row["id"],
        question=row["question"],
        units=tuple(s["text"] for s in segments),
        answer=row["answer"],
        roles=example.roles,
        boundaries=(*(of_unit.index(m) for m in range(of_unit[-1] + 1)), len(segments)),
        kept_units=frozenset(u for u, s in enumerate(segments) if s["kept"]),
    )
    assert again == example.keeping(example.kept)
    assert all(s["train"] == s["kept"] for s in segments)
    chosen, rows = rows_of(example, "jsonl", "chunks")
    for sample, row in zip(chosen, rows, strict=True):
        assert {s["chunk"] for s in row["segments"] if s["train"]} == {sample.chunk}
        said = [s for s in row["segments"] if s["kept"]]
        assert "".join(s["text"] for s in said if not s["train"]) == sample.context
        assert said[-1]["train"]
        assert row["ends"] == (sample.chunk == example.chunks - 1)
        assert row["prompt"] == "Q: " + row["question"] + "\n"


# What axolotl documents of the two kinds of rows (docs/dataset-formats/template_free.qmd and
# conversation.qmd, version 0.18): every key it names, with its type. axolotl itself is not run.
SEGMENT = {"label": bool, "text": str}
PART = {"type": str, "text": str, "train": bool}


@pytest.mark.parametrize("what", ["chunks", "rationales"])
@pytest.mark.parametrize("example", CASES, ids=lambda e: e.id)
def test_axolotl_rows_follow_its_documentation(example, what):
    for row in rows_of(example, "axolotl", what)[1]:
        assert set(row) == {"segments", "messages"}
        for segment in row["segments"]:
            assert {key: type(value) for key, value in segment.items()} == SEGMENT
        for message in row["messages"]:
            assert set(message) == {"role", "content"}
            for part in message["content"]:
                assert part["type"] == "text"
                assert part["text"]
                assert {key: type(value) for key, value in part.items()}.items() <= PART.items()
        user, assistant = row["messages"]
        assert [user["role"], assistant["role"]] == ["user", "assistant"]
        # "If a part has no flag it inherits the turn's": the user's is not in roles_to_train.
        assert all("train" not in part for part in user["content"])
        assert all("train" in part for part in assistant["content"])


def axolotl_input_output(row, tokenizer):
    """What axolotl's documentation of `type: input_output` says becomes of a row."""
    ids, labels = [], []
    for segment in row["segments"]:
        part = tokenizer(segment["text"], add_special_tokens=False)["input_ids"]
        ids += part
        labels += part if segment["label"] else [IGNORE_INDEX] * len(part)
    return ids, labels


def test_axolotl_segments_have_the_ids_and_the_mask_of_our_rows():
    speller = tiny().tokenizer
    wording = Wording(speller.template, *speller.special_texts)
    chosen = list(samples(CASES[3:], "chunks"))
    for sample in chosen:
        ours = token_row(sample, speller)
        ids, labels = axolotl_input_output(ROWS["axolotl"](sample, wording), speller.tokenizer)
        assert (ids, labels) == (ours["input_ids"], ours["labels"])


def test_rows_in_tokens_are_those_of_build_sequence():
    speller = tiny().tokenizer
    whole = examples(4)
    for what in ("chunks", "rationales"):
        for sample in samples([*whole, SHORT, CHUNK_GONE], what):
            row = token_row(sample, speller)
            sequence = build_sequence(speller.tokenize(sample.example), sample.chunk)
            assert row["input_ids"] == sequence.ids
            assert [label >= 0 for label in row["labels"]] == [c >= 0 for c in sequence.chunks]
            trained = [label for label in row["labels"] if label >= 0]
            assert (trained[-1] == speller.eos) == sample.ends
            assert speller.text(trained) == sample.target
    sample = next(samples(whole, "rationales"))
    assert token_row(sample, speller, max_length=3) is None
    last = list(samples(whole[:1], "chunks"))[-1]
    ids, question = token_row(last, speller)["input_ids"], speller.prompt(last.example.question)
    cut = token_row(last, speller, max_length=len(question) + 20)
    assert cut["input_ids"] == [*question, *ids[-20:]]


# --- a run, its file, and TRL -------------------------------------------------------------------

SIZES = ["--data.train-size", "8", "--data.validation-size", "4", "--data.test-size", "4"]


@pytest.fixture(autouse=True)
def _its_own_accelerator():
    """TRL's trainer leaves its precision in accelerate's shared state: what follows starts anew."""
    from accelerate.state import AcceleratorState

    before = dict(os.environ)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in set(os.environ) - set(before):
        if name.startswith("ACCELERATE_"):
            del os.environ[name]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    main(["data", "--out", str(out), *SIZES])
    main(["chunk", "--out", str(out)])
    return out


def exported(run_folder, file, *flags):
    main(["export", "--out", str(run_folder), "--file", str(file), *flags])
    return read_lines(file)


def test_the_command_writes_what_a_row_of_the_table_trains(run_folder, tmp_path, capsys):
    ws = open_workspace(saved_config(run_folder), run_folder)
    whole = ws.training_examples()
    capsys.readouterr()
    rows = exported(run_folder, tmp_path / "a.jsonl", "--to", "trl")
    assert f"a.jsonl: {len(rows)} rows\n" in capsys.readouterr().out
    wording = Wording("{question}\n", "", "<eos>")
    assert rows == [ROWS["trl"](s, wording) for s in samples(whole, "chunks")]
    rows = exported(run_folder, tmp_path / "b.jsonl", "--to", "alpaca", "--method", "FTT")
    assert [r["output"] for r in rows] == [e.rationale for e in whole]
    assert "docs/exporting.md" not in capsys.readouterr().out
    rows = exported(run_folder, tmp_path / "c.jsonl", "--to", "trl", "--method", "answer-only")
    assert [r["completion"] for r in rows] == [e.units[-1] for e in whole]
    rows = exported(run_folder, tmp_path / "d.jsonl", "--to", "jsonl", "--method", "CWT-dp")
    assert len(rows) == sum(e.chunks for e in ws.training_examples("dp"))
    main(["export", "--out", str(run_folder), "--to", "axolotl", "--tokenized"])
    rows = read_lines(run_folder / "export/axolotl-tokens/CWT-chunks.jsonl")
    speller = tiny().tokenizer
    assert rows == [token_row(s, speller) for s in samples(whole, "chunks")]
    assert all(set(r) == {"input_ids", "attention_mask", "labels"} for r in rows)


def test_skips_are_those_of_the_chosen_round(run_folder, tmp_path):
    ws = open_workspace(saved_config(run_folder), run_folder)
    whole = ws.training_examples()
    with pytest.raises(UserError, match="holds no STT yet; run `cwt train --method STT"):
        trained_examples(ws, METHODS["STT"])
    with pytest.raises(UserError, match="holds no continued yet"):
        trained_examples(ws, METHODS["continued"])
    for r in range(1, 5):
        kept = [sorted(e.kept - set(e.middle_units[:r])) for e in whole]
        write_json(ws.skips(f"STT-round-{r}"), {"kept_units": kept})
    write_json(ws.choice("STT"), {"student": "STT-round-2"})
    rows = exported(run_folder, tmp_path / "s.jsonl", "--to", "messages", "--method", "STT")
    second = read_json(ws.skips("STT-round-2"))["kept_units"]
    assert [r["messages"][1]["content"] for r in rows] == [
        "".join(e.units[u] for u in kept) for e, kept in zip(whole, second, strict=True)
    ]


def test_tokens_of_a_format_that_has_none_are_refused(run_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--out", str(run_folder), "--to", "alpaca", "--tokenized"])
    assert stopped.value.code == 2
    assert "--tokenized goes with --to trl or axolotl, got --to alpaca" in capsys.readouterr().err


RECIPE = Recipe(target="chunk", budget=1200, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def our_steps(run_folder, tmp_path_factory):
    """The real loop on the run's chunks: its loss and learning-rate factor a step, its rows."""
    student, out = tiny(), tmp_path_factory.mktemp("ours")
    student.save(out / "start")
    whole = open_workspace(saved_config(run_folder), run_folder).training_examples()
    train(student, whole, RECIPE, out / "trained", cpu=True)
    log = read_lines(out / "trained/train_log.jsonl")
    sampler = Sampler([student.tokenize(e) for e in whole], RECIPE)
    drawn = [row.ids for _ in log for row in sampler.draw()]
    spent = [0, *(row["loss_tokens"] for row in log)]
    shares = [tokens / RECIPE.budget for tokens in spent]
    factors = [min(s / 0.05 + 0.02, 1.0) * max(0.05, 1 - s) for s in shares]
    return out / "start", [row["loss"] for row in log], factors, drawn


def trl_losses(start, rows, factors, out):
    """The loss that TRL's SFTTrainer logs a step: the rows in order, our optimizer and rates."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), RECIPE.learning_rate, (0.9, 0.98), weight_decay=RECIPE.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors.__getitem__)
    config = SFTConfig(
        str(out), max_length=None, per_device_train_batch_size=RECIPE.batch_size,
        num_train_epochs=1, train_sampling_strategy="sequential", logging_steps=1,
        max_grad_norm=1.0, bf16=False, activation_checkpointing=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(start),
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def in_drawn_order(rows, tokens, drawn):
    place = {tuple(t["input_ids"]): row for row, t in zip(rows, tokens, strict=True)}
    return [place[tuple(ids)] for ids in drawn]


def documented_code(name):
    """The Python block of docs/exporting.md that holds a name."""
    text = (ROOT / "docs/exporting.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if name in b)
    return block


def test_trl_has_the_loss_of_our_loop_step_by_step(run_folder, our_steps, tmp_path):
    start, losses, factors, drawn = our_steps
    assert len(losses) >= 5
    tokens = exported(run_folder, tmp_path / "t.jsonl", "--to", "trl", "--tokenized")
    texts = exported(run_folder, tmp_path / "x.jsonl", "--to", "trl")
    from_tokens = trl_losses(
        start, in_drawn_order(tokens, tokens, drawn), factors, tmp_path / "tokens"
    )
    assert from_tokens == pytest.approx(losses, abs=1e-5)
    # Text, with the end of the sequence where it belongs, as the documentation says.
    from transformers import AutoTokenizer

    names = {"tokenizer": AutoTokenizer.from_pretrained(start)}
    exec(documented_code("def in_tokens"), names)
    in_order = in_drawn_order(texts, tokens, drawn)
    mapped = [names["in_tokens"](row) for row in in_order]
    assert [row["input_ids"] for row in mapped] == drawn
    assert trl_losses(start, mapped, factors, tmp_path / "text") == pytest.approx(losses, abs=1e-5)


def test_trl_ends_every_completion_of_text(run_folder, our_steps, tmp_path):
    """The behaviour that `ends` and --tokenized are for: should it change, the docs must."""
    start, losses, factors, drawn = our_steps
    tokens = exported(run_folder, tmp_path / "t.jsonl", "--to", "trl", "--tokenized")
    texts = exported(run_folder, tmp_path / "x.jsonl", "--to", "trl")
    in_order = in_drawn_order(texts, tokens, drawn)
    plain = trl_losses(start, in_order, factors, tmp_path / "plain")
    eos = tiny().tokenizer.eos
    ended = []
    for row, text in zip(in_drawn_order(tokens, tokens, drawn), in_order, strict=True):
        end = [] if text["ends"] else [eos]
        ended.append({"input_ids": row["input_ids"] + end, "labels": row["labels"] + end})
    assert plain == pytest.approx(trl_losses(start, ended, factors, tmp_path / "ended"), abs=1e-5)
    assert all(abs(a - b) > 1e-3 for a, b in zip(plain, losses, strict=True))


def test_the_documented_training_runs(run_folder, our_steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base-model").symlink_to(our_steps[0])
    tokens = exported(run_folder, tmp_path / "cwt.jsonl", "--to", "trl", "--tokenized")
    names = {}
    with warnings.catch_warnings():  # TRL itself sets an option that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        exec(documented_code("SFTTrainer(").replace("\n)", "\n    use_cpu=True,\n)", 1), names)
    state = names["trainer"].state
    assert state.global_step == state.num_train_epochs * math.ceil(len(tokens) / 16)
    rows = names["trainer"].train_dataset
    assert [row["labels"] for row in rows] == [row["labels"] for row in tokens]


def llama_like(texts):
    """A tokenizer with the splitting rule of Llama 3: a full stop takes the line feed after it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_token_of_two_units_is_trained_with_the_first():
    """The whole text has a token ".\n" that reaches into the next chunk."""
    lines = [f"\nStep {n} adds {n} to {2 * n}." for n in range(1, 20)]
    example = Example("lines", "How many?", (lines[0][1:], *lines[1:]), "9").chunked([0, 9, 18, 19])
    speller = PromptTokenizer(llama_like([example.rationale]))
    wording = Wording(speller.template, *speller.special_texts)
    whole = [*speller.ids(wording.prompt(example) + example.rationale), speller.eos]
    first, middle, last = samples([example], "chunks")
    for sample, begins in ((first, "Step"), (middle, "Step"), (last, "Step")):
        row = token_row(sample, speller)
        assert row["input_ids"] == whole[: len(row["input_ids"])]
        trained = [label for label in row["labels"] if label >= 0]
        assert speller.text(trained[:1]) == begins
        ends = trained[-1:] == [speller.eos] if sample is last else True
        assert ends
        if sample is not last:
            assert speller.text(trained[-1:]) == ".\n"
        segments = axolotl_input_output(ROWS["axolotl"](sample, wording), speller.tokenizer)[0]
        assert segments != row["input_ids"][: len(segments)]
        assert speller.text(segments) == speller.text(row["input_ids"]).rstrip("\n")
