import copy
import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from app_fixtures import examples, tiny
from cwt.evaluation.generation import evaluate
from cwt.files import read_json, read_lines
from cwt.training.chunking import chunk_costs, search_chunks, unit_nll
from cwt.training.loop import train
from cwt.training.rechunk import Rechunker
from cwt.training.recipe import ChunkOptions, Recipe
from cwt.training.sampler import Sampler
from torch.nn import functional as F
from train_cases import RECIPE, same_weights, stopped, trained
from transformers import AutoModelForCausalLM


def test_overfits_eight_examples(tmp_path):
    student, some = tiny(), examples(8)
    recipe = Recipe(target="rationale", budget=70_000, batch_size=8, learning_rate=3e-3)
    train(student, some, recipe, tmp_path, cpu=True)
    score, rows = evaluate(student, some, 200, 8)
    assert score.accuracy == 1.0
    assert [r.text for r in rows] == [e.rationale for e in some]


def test_stop_and_resume_equals_straight_through(tmp_path):
    straight, spent = trained(tmp_path / "straight")
    stopped(tmp_path / "stopped")
    assert not (tmp_path / "stopped/train.json").exists()
    resumed, again = trained(tmp_path / "stopped")
    assert same_weights(straight, resumed)
    assert again.loss_tokens == spent.loss_tokens
    logs = [read_lines(tmp_path / d / "train_log.jsonl") for d in ("straight", "stopped")]
    assert logs[0] == logs[1]
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_micro_batches_give_the_gradient_of_the_whole_step(tmp_path):
    # Liger-Kernel#802, LLaMA-Factory#7443: a mean of means weighs short micro-batches too much.
    recipe = Recipe(target="rationale", budget=1500, batch_size=6)
    whole, _ = trained(tmp_path / "a", recipe)
    parts, _ = trained(tmp_path / "b", replace(recipe, micro_batch_size=2))
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_one_step_is_adamw_on_the_mean_nll_of_the_chunk(tmp_path):
    """The first update against plain torch: autograd over F.cross_entropy in float64."""
    recipe = Recipe(target="chunk", budget=1, batch_size=3, weight_decay=0.0)
    model, spent = trained(tmp_path, recipe, n=3)
    assert spent.optimizer_steps == 1
    student = tiny()
    reference = copy.deepcopy(student.model).double()
    rows = Sampler([student.tokenize(e) for e in examples(3)], recipe).draw()
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
    start = student.model.state_dict()
    for name, parameter in reference.named_parameters():
        moved = (model.state_dict()[name] - start[name]).double()
        clear = parameter.grad.abs() > 1e-4
        torch.testing.assert_close(
            moved[clear], -rate * parameter.grad[clear].sign(), rtol=5e-2, atol=1e-7
        )


@pytest.mark.parametrize("micro_batch_size", [0, 1])
def test_where_chunks_weigh_the_same_a_step_is_the_mean_over_chunks_of_their_mean(
    tmp_path, micro_batch_size
):
    recipe = Recipe(
        target="rationale", weigh="chunk", budget=1, batch_size=3, weight_decay=0.0,
        micro_batch_size=micro_batch_size,
    )  # fmt: skip
    model, spent = trained(tmp_path, recipe, n=3)
    student = tiny()
    reference = copy.deepcopy(student.model).double()
    means, tokens = [], 0
    for row in Sampler([student.tokenize(e) for e in examples(3)], recipe).draw():
        logits = reference(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        nll = F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
        of_token = torch.tensor(row.chunks[1:])
        means += [nll[of_token == m].mean() for m in sorted(set(row.chunks) - {-1})]
        tokens += sum(chunk >= 0 for chunk in row.chunks)
    (sum(means) / len(means)).backward()
    loss = float(sum(means).detach()) / len(means)
    assert len(means) == sum(e.chunks for e in examples(3)) > 9
    assert (spent.optimizer_steps, spent.loss_tokens) == (1, tokens)
    (line,) = read_lines(tmp_path / "train_log.jsonl")
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    assert sum(line["chunk_tokens"]) == tokens
    assert len(line["chunk_tokens"]) == max(e.chunks for e in examples(3))
    rate, start = recipe.learning_rate * 0.02, student.model.state_dict()
    for name, parameter in reference.named_parameters():
        moved = (model.state_dict()[name] - start[name]).double()
        clear = parameter.grad.abs() > 1e-4
        torch.testing.assert_close(
            moved[clear], -rate * parameter.grad[clear].sign(), rtol=5e-2, atol=1e-7
        )


def test_chunks_are_searched_anew_every_epoch_with_the_student_as_it_is(tmp_path, monkeypatch):
    """Each search against one by hand on the weights of that moment; a resumed run has the same."""
    recipe = Recipe(
        target="chunk", budget=4000, batch_size=8, checkpoint_seconds=0.0,
        rechunk=ChunkOptions("sbc", count=4, min_gain=0.02),
    )  # fmt: skip
    seen = []

    def watched(self):
        weights = copy.deepcopy(self.student.model.state_dict())
        before = [e.boundaries for e in self.examples]
        found = search(self)
        assert self.student.model.training
        seen.append((weights, before, [x.example.boundaries for x in found]))
        return found

    search = Rechunker.search
    monkeypatch.setattr(Rechunker, "search", watched)
    trained(tmp_path / "straight", recipe, n=6)
    assert len(seen) > 2
    assert [before for _, before, _ in seen[1:]] == [found for *_, found in seen[:-1]]
    assert seen[0][2] != seen[-1][2]
    student = tiny()
    for weights, before, found in seen:
        student.model.load_state_dict(weights)
        whole = [student.tokenize(e) for e in examples(6)]
        for x, nll, start, cuts in zip(
            whole, unit_nll(student, whole, 6), before, found, strict=True
        ):
            n = len(x.units) - 1
            lengths = np.array([len(unit) for unit in x.units[:n]])
            costs = chunk_costs(nll[:n], lengths, "mean")
            assert cuts == (*search_chunks(costs, start[:-1], min_gain=0.02), n + 1)
    stopped(tmp_path / "stopped", recipe)
    resumed, _ = trained(tmp_path / "stopped", recipe, n=16)
    again, _ = trained(tmp_path / "again", recipe, n=16)
    assert same_weights(again, resumed)


def test_log_holds_the_statistics_of_every_chunk(tmp_path):
    _, spent = trained(tmp_path, Recipe(target="rationale", budget=1000, batch_size=4))
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


def test_a_train_json_holds_the_recipe_and_what_was_spent(tmp_path):
    recipe = Recipe(target="answer", budget=40, batch_size=4, max_length=60)
    _, spent = trained(tmp_path, recipe)
    record = read_json(tmp_path / "train.json")
    assert Recipe(**record["recipe"]) == recipe
    assert {name: record[name] for name in vars(spent)} == vars(spent)
    assert record["dropped"] == 0


TWO_RANKS = """
import sys
sys.path[:0] = sys.argv[2:]
import types
from dataclasses import replace
from pathlib import Path
import torch
from accelerate import PartialState
from cwt.training import loop
from train_cases import RECIPE, same_weights, stopped, trained

state = PartialState(cpu=True)
rank = state.process_index
assert state.num_processes == 2
if rank == 1:  # its clock stands still: by itself it would never save
    loop.time = types.SimpleNamespace(perf_counter=lambda: 0.0)
out = Path(sys.argv[1])
recipe = replace(RECIPE, budget=600, batch_size=7, sentence_dropout=0.0)
straight, _ = trained(out / "two", recipe)
checkpoint = stopped(out / "stopped", recipe)
assert {p.name for p in checkpoint.glob("random_states_*")} == {
    "random_states_0.pkl", "random_states_1.pkl"
}
resumed, spent = trained(out / "stopped", recipe)
assert same_weights(straight, resumed), "the resumed run differs"
(out / f"rank-{rank}.txt").write_text(f"{spent.optimizer_steps} {spent.loss_tokens}")
"""


@pytest.mark.ci
def test_two_processes_train_as_one_and_resume_exactly(tmp_path):
    one, spent = trained(
        tmp_path / "one", replace(RECIPE, budget=600, batch_size=7, sentence_dropout=0.0)
    )
    (tmp_path / "two.py").write_text(TWO_RANKS)
    here = Path(__file__).parent
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(tmp_path / "two.py"), str(tmp_path),
        str(here), str(here.parent), str(here.parent / "python"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(tmp_path / "two/train.json")["loss_tokens"] == spent.loss_tokens
    two = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
    for rank in (0, 1):
        steps = f"{spent.optimizer_steps} {spent.loss_tokens}"
        assert (tmp_path / f"rank-{rank}.txt").read_text() == steps
    logs = [read_lines(tmp_path / d / "train_log.jsonl") for d in ("two", "stopped")]
    assert logs[0] == logs[1]
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_training_leaves_nothing_in_memory(tmp_path):
    gc.disable()  # what goes without it was in no cycle
    try:
        student = tiny()
        model = weakref.ref(student.model)
        train(student, examples(4), replace(RECIPE, budget=200), tmp_path, cpu=True)
        del student
        assert model() is None
    finally:
        gc.enable()
