"""ChunkTrainer and ChunkSFTTrainer: one loss for any division of a step, and the columns arrive."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from integration_models import C, batch_for, eager_loss, rows_of, small_model
from integration_worker import dataset, options, train

from cwt_ext.integrations import ChunkCollator, ChunkSFTTrainer, ChunkTrainer, ModelChunkLoss

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The step in one batch on one process, by kind; each trained once."""
    done = {}

    def of(kind):
        if kind not in done:
            done[kind] = train(tmp_path_factory.mktemp("whole"), 1, kind)
        return done[kind]

    return of


def compare_runs(got, want):
    assert len(want["logs"]) == 3
    for one, other in zip(want["logs"], got["logs"], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], abs=1e-5), name
    for name, value in want["state"].items():
        torch.testing.assert_close(got["state"][name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("accumulation", "kind"), [(2, "token_mean"), (4, "token_mean"), (4, "chunk_mean")]
)
def test_accumulation_gives_one_loss(accumulation, kind, whole, tmp_path):
    """Without a normalizer, accumulation changed the loss."""
    compare_runs(train(tmp_path, accumulation, kind), whole(kind))


JOBS = ["1:token_mean", "4:token_mean", "2:chunk_mean", "2:active", "2:logits"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """integration_worker.py on two processes, every job."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(TESTS / "integration_worker.py"), str(out), *JOBS]
    paths = os.pathsep.join(str(p) for p in (TESTS.parent, TESTS))
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    base = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **group}
    started = []
    for rank in ("0", "1"):
        with (out / f"{rank}.txt").open("w") as log:
            own = {**base, "RANK": rank, "LOCAL_RANK": rank}
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    codes = [process.wait(240) for process in started]
    assert codes == [0, 0], (out / "0.txt").read_text()[-2000:]
    return torch.load(out / "results.pt")


@pytest.mark.ci
@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_give_the_loss_of_one(job, two_ranks, whole):
    """Means per rank were off by 9 %."""
    compare_runs(two_ranks[job], whole(job.split(":")[1]))


def test_the_logged_loss_is_the_eager_one_and_so_are_the_chunks(whole):
    model = small_model("llama")
    batch = ChunkCollator(0)(dataset()[:8])
    first = whole("token_mean")["logs"][0]
    assert first["loss"] == pytest.approx(eager_loss(model, batch).item(), abs=1e-5)
    stats = ModelChunkLoss(model)(batch).stats
    for chunk in range(C):
        only = torch.arange(C) == chunk
        want = eager_loss(model, batch, active=only).item()
        assert first[f"chunk_{chunk}/loss"] == pytest.approx(want, abs=1e-5)
        assert first[f"chunk_{chunk}/accuracy"] == pytest.approx(stats.accuracy[chunk].item())
        assert first[f"chunk_{chunk}/grad_share"] == pytest.approx(stats.grad_share[chunk].item())
    means = [eager_loss(model, ChunkCollator(0)([row])).item() for row in dataset()[:8]]
    assert abs(sum(means) / 8 - first["loss"]) > 0.02  # the mean of means is another loss
    weighted = whole("chunk_mean")["logs"][0]["loss"]
    want = eager_loss(model, batch, reduction="chunk_mean").item()
    assert weighted == pytest.approx(want, abs=1e-5)


def make_trainer(tmp_path, kind=ChunkTrainer, model=None, rows=None, arguments=None, **more):
    from datasets import Dataset
    from transformers import TrainingArguments

    data = Dataset.from_list(dataset() if rows is None else rows)
    arguments = arguments or TrainingArguments(**options(tmp_path, 1))
    return kind(model or small_model("llama"), arguments, train_dataset=data, **more)


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_a_dataset_keeps_its_columns(tmp_path, whole):
    """A Trainer drops columns that the model's forward does not name: KeyError: 'chunk_ids'."""
    rows = [{**row, "question": "not a tensor"} for row in dataset()]
    want = [row["loss"] for row in whole("token_mean")["logs"]]
    assert losses(make_trainer(tmp_path, rows=rows)) == pytest.approx(want, abs=1e-5)


def test_token_weights_and_label_smoothing_reach_the_loss(tmp_path):
    from transformers import TrainingArguments

    rows = [{**row, "token_weight": [0.5] * 4 + [1.0] * (len(row["labels"]) - 4)}
            for row in dataset()]  # fmt: skip
    model, batch = small_model("llama"), ChunkCollator(0)(rows[:8])
    weight = batch["token_weight"]
    want = eager_loss(model, batch, token_weight=weight).item()
    assert losses(make_trainer(tmp_path, rows=rows))[0] == pytest.approx(want, abs=1e-5)
    arguments = TrainingArguments(**options(tmp_path, 1, label_smoothing_factor=0.1))
    smooth = losses(make_trainer(tmp_path, arguments=arguments))[0]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = (batch["labels"] != -100) & (batch["chunk_ids"] >= 0)
    labels = batch["labels"].masked_fill(~mask, -100)[:, 1:]
    want = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.flatten(), label_smoothing=0.1
    )
    assert smooth == pytest.approx(want.item(), abs=1e-5)


def test_active_changes_between_steps(tmp_path):
    from transformers import TrainerCallback

    class NextChunk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.active = torch.arange(C) == state.global_step

    active = torch.arange(C) == 0
    trainer = make_trainer(tmp_path, active=active, callbacks=[NextChunk()])
    trainer.train()
    seen = [[f"chunk_{c}/loss" in row for c in range(C)] for row in trainer.state.log_history[:3]]
    assert seen == torch.eye(C, dtype=torch.bool).tolist()


@pytest.mark.parametrize("family", ["t5-tied", "bart"])
def test_an_encoder_decoder_trains(family, tmp_path):
    batch = batch_for(family, rows=8)
    rows = [{name: batch[name][i].tolist() for name in ("input_ids", "labels", "chunk_ids")}
            for i in range(8)]  # fmt: skip
    model = small_model(family)
    want = eager_loss(model, batch).item()
    trainer = make_trainer(tmp_path, model=model, rows=rows)
    assert losses(trainer)[0] == pytest.approx(want, abs=1e-5)
    assert trainer.chunk_loss.path == "linear_chunk_loss"


def test_evaluation_gives_the_loss_the_chunks_and_the_logits(tmp_path):
    from datasets import Dataset

    batch = batch_for("llama", rows=6, seed=5)
    given = []

    def metrics(prediction):
        given.append(prediction.predictions.shape)
        return {"rows": len(prediction.label_ids)}

    for compute_metrics in (None, metrics):
        trainer = make_trainer(tmp_path, compute_metrics=compute_metrics)
        trainer.args.per_device_eval_batch_size = 4
        trainer.predict(Dataset.from_list(dataset()[:3]))  # leaves nothing in the next log
        given.clear()
        found = trainer.evaluate(Dataset.from_list(rows_of(batch)))
        parts = [
            {name: value[s] for name, value in batch.items()} for s in (slice(0, 4), slice(4, 6))
        ]
        each = [eager_loss(trainer.model, part).item() for part in parts]
        assert found["eval_loss"] == pytest.approx((4 * each[0] + 2 * each[1]) / 6, abs=1e-5)
        logged = trainer.state.log_history[-1]
        for chunk in range(C):  # over tokens, not a mean of batches
            want = eager_loss(trainer.model, batch, active=torch.arange(C) == chunk).item()
            assert logged[f"eval_chunk_{chunk}/loss"] == pytest.approx(want, abs=1e-5)
    longest = max(len(row["labels"]) for row in rows_of(batch))
    assert given == [(6, longest, 61)]
    assert found["eval_rows"] == 6


def test_what_cannot_work_is_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(ValueError, match="compute_loss_func must not be given"):
        make_trainer(tmp_path, compute_loss_func=print)
    with pytest.raises(ValueError, match="max_length=4 is for the default collator"):
        make_trainer(tmp_path, max_length=4, data_collator=ChunkCollator(0))
    compiled = TrainingArguments(**options(tmp_path, 1, torch_compile=True))
    with pytest.raises(ValueError, match="torch_compile=True compiles the model together with its"):
        make_trainer(tmp_path, arguments=compiled)
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}] * 8
    with pytest.raises(ValueError, match="row 0 must have input_ids and chunk_ids"):
        make_trainer(tmp_path, rows=rows).train()
    unlabelled = [{**row, "labels": [-100] * len(row["labels"])} for row in dataset()]
    with pytest.raises(ValueError, match="no token of the 8 rows has a label and a chunk"):
        make_trainer(tmp_path, rows=unlabelled).train()
    trainer = make_trainer(tmp_path, active=torch.zeros(C))
    with pytest.raises(ValueError, match="no token of this step counts"):
        trainer.train()


# TRL


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 61)}}
    model = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>")


def make_sft(tmp_path, tokenizer, rows=None, more=None, **settings):
    from trl import SFTConfig

    settings = {"max_length": None, "bf16": False, "shuffle_dataset": False, **settings}
    with warnings.catch_warnings():  # TRL itself sets an option that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        arguments = SFTConfig(**options(tmp_path, **{"accumulation": 1, **settings}))
        more = {"processing_class": tokenizer, **(more or {})}
        return make_trainer(tmp_path, ChunkSFTTrainer, rows=rows, arguments=arguments, **more)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_sft_gives_the_loss_of_the_trainer(accumulation, tmp_path, tokenizer, whole):
    trainer = make_sft(tmp_path, tokenizer, accumulation=accumulation)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    for got, want in zip(logs, whole("token_mean")["logs"], strict=True):
        for name in ("loss", "chunk_0/loss", "chunk_1/accuracy", "chunk_2/grad_share"):
            assert got[name] == pytest.approx(want[name], abs=1e-5), name


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_sft_truncates_every_column_alike(mode, tmp_path, tokenizer):
    """max_length cut ids and labels, but not chunk_ids."""
    rows = dataset()
    cut = slice(None, 8) if mode == "keep_start" else slice(-8, None)
    short = [{name: value[cut] for name, value in row.items()} for row in rows]
    trainer = make_sft(tmp_path, tokenizer, rows, max_length=8, truncation_mode=mode)
    model, batch = small_model("llama"), ChunkCollator(0)(short[:8])
    assert losses(trainer)[0] == pytest.approx(eager_loss(model, batch).item(), abs=1e-5)
    assert {len(row["chunk_ids"]) for row in trainer.train_dataset} == {7, 8}


def test_sft_masks_the_prompt_as_trl_does(tmp_path, tokenizer):
    rows = []
    for row in dataset():
        masked = {name: row[name] for name in ("input_ids", "chunk_ids")}
        rows.append({**masked, "completion_mask": [0] * 5 + [1] * (len(row["labels"]) - 5)})
    trainer = make_sft(tmp_path, tokenizer, rows, completion_only_loss=True)
    for row in rows:
        row["labels"] = [-100] * 5 + row["input_ids"][5:]
    model, batch = small_model("llama"), ChunkCollator(0)(rows[:8])
    assert losses(trainer)[0] == pytest.approx(eager_loss(model, batch).item(), abs=1e-5)


def test_sft_refuses_what_would_lose_the_chunks(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="packing=True drops chunk_ids"):
        make_sft(tmp_path, tokenizer, packing=True, max_length=8)
    with pytest.raises(ValueError, match="padding_free=True is not supported"):
        make_sft(tmp_path, tokenizer, padding_free=True)
    with pytest.raises(ValueError, match=r"with input_ids and chunk_ids, got the columns \['text'"):
        make_sft(tmp_path, tokenizer, rows=[{"text": "w3 w4"}] * 8)
    with pytest.raises(ValueError, match="give max_length in SFTConfig, got max_length=8"):
        make_sft(tmp_path, tokenizer, more={"max_length": 8})
