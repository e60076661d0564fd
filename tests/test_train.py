import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from app_fixtures import encode, examples, tiny
from cwt.evaluate import evaluate
from cwt.files import read_json, read_lines
from cwt.recipe import Recipe
from cwt.train import train
from torch.nn import functional as F

RECIPE = Recipe("cwt", 3000, batch_size=8, seed=5, sentence_dropout=0.2, checkpoint_seconds=0.0)


def trained(out, recipe=RECIPE, n=16, progress=lambda share, text: None):
    model, encoder = tiny()
    items = encode(encoder, examples(n))
    spent = train(model, encoder, items, [None] * n, recipe, out, progress, cpu=True)
    return model, spent


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_overfits_eight_examples(tmp_path):
    model, encoder = tiny()
    some = examples(8)
    items = encode(encoder, some)
    recipe = Recipe("ftt", 120_000, batch_size=8, learning_rate=3e-3)
    train(model, encoder, items, [None] * 8, recipe, tmp_path, cpu=True)
    score, rows = evaluate(model, encoder, some, 200, 8)
    assert score.accuracy == 1.0
    assert [r.text for r in rows] == [e.rationale for e in some]


def test_stop_and_resume_equals_straight_through(tmp_path):
    class Stop(Exception):
        pass

    def stop_half_way(share, text):
        if share > 0.5:
            raise Stop

    straight, spent = trained(tmp_path / "straight")
    with pytest.raises(Stop):
        trained(tmp_path / "stopped", progress=stop_half_way)
    assert (tmp_path / "stopped/checkpoint.pt").exists()
    assert not (tmp_path / "stopped/train.json").exists()
    resumed, again = trained(tmp_path / "stopped")
    assert same_weights(straight, resumed)
    assert again.loss_tokens == spent.loss_tokens
    logs = [read_lines(tmp_path / d / "train_log.jsonl") for d in ("straight", "stopped")]
    assert logs[0] == logs[1]
    assert not (tmp_path / "stopped/checkpoint.pt").exists()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trained(tmp_path)
    (tmp_path / "train.json").unlink()
    torch.save({"recipe": {"method": "ftt"}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="belongs to another recipe"):
        trained(tmp_path)


def test_micro_batches_give_the_gradient_of_the_whole_step(tmp_path):
    # Liger-Kernel#802, LLaMA-Factory#7443: a mean of means weighs short micro-batches too much.
    whole, _ = trained(tmp_path / "a", Recipe("ftt", 1500, batch_size=6))
    parts, _ = trained(tmp_path / "b", Recipe("ftt", 1500, batch_size=6, micro_batch_size=2))
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_one_step_is_adamw_on_the_mean_nll_of_the_chunk(tmp_path):
    """The first update against plain torch: autograd over F.cross_entropy in float64."""
    recipe = Recipe("cwt", 1, batch_size=3, weight_decay=0.0)
    model, spent = trained(tmp_path, recipe, n=3)
    assert spent.optimizer_steps == 1
    reference, encoder = tiny()
    reference = copy.deepcopy(reference).double()
    from cwt.sampler import Sampler

    rows = Sampler(encode(encoder, examples(3)), [None] * 3, recipe).draw()
    total = 0.0
    for row in rows:
        logits = reference(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        nll = F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
        total = total + nll[torch.tensor(row.chunks[1:]) >= 0].sum()
    count = sum(row.loss_tokens for row in rows)
    assert spent.loss_tokens == count
    (total / count).backward()
    assert read_lines(tmp_path / "train_log.jsonl")[0]["loss"] == pytest.approx(
        float(total.detach()) / count, rel=1e-5
    )
    # Adam's first step moves every weight by the learning rate against the sign of its gradient.
    rate = recipe.learning_rate * 0.02
    start = tiny()[0].state_dict()
    for name, parameter in reference.named_parameters():
        moved = (model.state_dict()[name] - start[name]).double()
        clear = parameter.grad.abs() > 1e-4
        torch.testing.assert_close(
            moved[clear], -rate * parameter.grad[clear].sign(), rtol=5e-2, atol=1e-7
        )


def test_log_holds_the_statistics_of_every_chunk(tmp_path):
    _, spent = trained(tmp_path, Recipe("ftt", 1000, batch_size=4))
    rows = read_lines(tmp_path / "train_log.jsonl")
    assert (
        rows[-1]["loss_tokens"]
        == spent.loss_tokens
        == read_json(tmp_path / "train.json")["loss_tokens"]
    )
    assert sum(sum(row["chunk_tokens"]) for row in rows) == spent.loss_tokens
    for row in rows:
        assert sum(row["chunk_nll"]) / sum(row["chunk_tokens"]) == pytest.approx(
            row["loss"], rel=1e-3
        )
        assert all(
            0 <= g <= 1.4143 * t
            for g, t in zip(row["chunk_grad_norm"], row["chunk_tokens"], strict=True)
        )


TWO_RANKS = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_train import RECIPE, trained
from dataclasses import replace
trained(Path(sys.argv[1]), replace(RECIPE, budget=600, batch_size=7, sentence_dropout=0.0))
"""


def test_two_processes_train_as_one(tmp_path):
    from dataclasses import replace

    one, spent = trained(
        tmp_path / "one", replace(RECIPE, budget=600, batch_size=7, sentence_dropout=0.0)
    )
    (tmp_path / "two.py").write_text(TWO_RANKS)
    here = Path(__file__).parent
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        str(tmp_path / "two.py"), str(tmp_path / "two"),
        str(here), str(here.parent), str(here.parent / "python"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(tmp_path / "two/train.json")["loss_tokens"] == spent.loss_tokens
    from transformers import AutoModelForCausalLM

    two = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
