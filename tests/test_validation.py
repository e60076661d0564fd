"""Loss on validation while training: early stopping, the best weights, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.files import read_json, read_lines
from cwt.students.load import load_student
from cwt.students.tokenized import whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler
from cwt.training.validation import held_out_loss
from torch.nn import functional as F
from train_cases import Stop, same_weights

RECIPE = Recipe(
    target="rationale", budget=2, budget_unit="epochs", batch_size=4, validations=4, seed=3
)


def run(out, recipe=RECIPE, validation=None, **options):
    student = tiny()
    held_out = examples(20)[16:] if validation is None else validation
    spent = train(student, examples(16), recipe, out, cpu=True, validation=held_out, **options)
    return student, spent


def plain_loss(student, held_out):
    """Mean cross-entropy and accuracy over whole rationales, one by one."""
    total, right, count = 0.0, 0, 0
    for example in held_out:
        row = whole_sequence(student.tokenize(example))
        with torch.no_grad():
            logits = student.model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        bears = torch.tensor(row.chunks[1:]) >= 0
        labels = torch.tensor(row.ids[1:])[bears]
        total += float(F.cross_entropy(logits[bears], labels, reduction="sum"))
        right += int((logits[bears].argmax(-1) == labels).sum())
        count += len(labels)
    return total / count, right / count


def test_the_loss_on_validation_is_the_mean_over_its_tokens():
    student, held_out = tiny(), examples(5)
    rows = [whole_sequence(student.tokenize(e)) for e in held_out]
    assert held_out_loss(student, rows) == pytest.approx(plain_loss(student, held_out), rel=1e-5)


def test_measurements_are_spread_over_the_budget_and_logged(tmp_path):
    student, spent = run(tmp_path, replace(RECIPE, patience=9))
    record, log = read_json(tmp_path / "train.json"), read_lines(tmp_path / "train_log.jsonl")
    assert len(record["validation"]) == 5  # before training, and after each quarter
    assert spent.optimizer_steps == len(log) == 8  # 16 examples, 4 a step, twice
    assert [m["step"] for m in record["validation"]] == [0, 2, 4, 6, 8]
    logged = {row["step"]: row["validation_loss"] for row in log if "validation_loss" in row}
    assert logged == {m["step"]: m["loss"] for m in record["validation"][1:]}
    losses = [m["loss"] for m in record["validation"]]
    assert losses[0] == pytest.approx(plain_loss(tiny(), examples(20)[16:])[0], rel=1e-5)
    # What is saved has the best loss.
    assert plain_loss(student, examples(20)[16:])[0] == pytest.approx(min(losses), rel=1e-5)
    assert record["best_step"] == record["validation"][losses.index(min(losses))]["step"]
    assert same_weights(student.model, load_student(str(tmp_path)).model)
    assert not list(tmp_path.glob(".best*"))


def test_training_that_no_longer_helps_stops_and_keeps_the_best(tmp_path):
    recipe = replace(RECIPE, budget=400, validations=40, learning_rate=3e-3)
    student, spent = run(tmp_path, recipe)
    record = read_json(tmp_path / "train.json")
    losses = [m["loss"] for m in record["validation"]]
    assert spent.loss_tokens < 400 * 16 * 100
    assert len(losses) < 41
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 1 - recipe.patience
    assert plain_loss(student, examples(20)[16:])[0] == pytest.approx(min(losses), rel=1e-5)


def test_a_student_that_gets_worse_stops_with_advice(tmp_path):
    recipe = replace(RECIPE, learning_rate=0.5)
    with pytest.raises(UserError, match=r"worse on validation: its loss is 1\.\d+ before") as error:
        run(tmp_path, recipe)
    assert "The learning rate is 0.5; try a third of it (--train.learning-rate)" in str(error.value)
    assert not (tmp_path / "train.json").exists()
    assert len(read_lines(tmp_path / "train_log.jsonl")) == 4  # two measurements, then no patience


def test_a_loss_that_is_no_number_stops_at_once(tmp_path):
    student = tiny()
    student.model.get_input_embeddings().weight.data[:] = math.nan
    with pytest.raises(UserError, match="diverged: the loss on validation is nan after 0 steps"):
        train(student, examples(4), RECIPE, tmp_path, cpu=True, validation=examples(2))


def test_stop_and_resume_equals_straight_through_with_validation(tmp_path):
    recipe = replace(RECIPE, checkpoint_seconds=0.0)
    straight, _ = run(tmp_path / "a", recipe)

    def stop(share, text):
        if share > 0.6:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "b", recipe, progress=stop)
    again, _ = run(tmp_path / "b", recipe)
    assert same_weights(straight.model, again.model)
    there, here = (read_json(tmp_path / d / "train.json")["validation"] for d in "ab")
    assert there == here


def test_without_validation_nothing_is_measured(tmp_path):
    run(tmp_path, validation=[])
    assert "validation" not in read_json(tmp_path / "train.json")


@pytest.mark.parametrize("target", ["rationale", "chunk", "answer"])
def test_an_epoch_is_every_loss_token_once(tmp_path, target):
    recipe = replace(RECIPE, target=target, budget=1, batch_size=1, validations=0)
    _, spent = run(tmp_path, recipe, [])
    items = [tiny().tokenize(e) for e in examples(16)]
    per_example = [
        len(x.units[-1]) if target == "answer" else sum(map(len, x.units)) for x in items
    ]
    assert spent.loss_tokens == sum(per_example)


def test_micro_batches_by_tokens_give_the_gradient_of_the_whole_step(tmp_path):
    recipe = replace(RECIPE, budget=3, budget_unit="optimizer_steps", batch_size=6, validations=0)
    whole, _ = run(tmp_path / "a", recipe, [])
    parts, _ = run(tmp_path / "b", replace(recipe, micro_batch_tokens=350), [])
    again, _ = run(tmp_path / "c", replace(recipe, gradient_checkpointing=True), [])
    for name, a in whole.model.named_parameters():
        for other in (parts, again):
            b = dict(other.model.named_parameters())[name]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def padded(steps):
    return sum(max(len(r.ids) for r in step) * len(step) for step in steps)


@pytest.mark.parametrize("target", ["rationale", "chunk"])
def test_grouped_lengths_pad_less_and_draw_every_sample_once(target):
    items = [tiny().tokenize(e) for e in [*examples(30), *examples(31, "letters")]]
    found = {}
    for grouped in (False, True):
        recipe = Recipe(target=target, budget=1, batch_size=8, group_lengths=grouped)
        sampler = Sampler(items, recipe)
        drawn = []
        while sampler.epoch < 2:
            drawn.append(sampler.draw())
        found[grouped] = drawn
    rows = {g: [r for step in steps for r in step] for g, steps in found.items()}
    count = 61 if target == "rationale" else sum(x.example.chunks for x in items)
    first = {g: sorted(map(tuple, (r.ids for r in rows[g][:count]))) for g in rows}
    assert first[True] == first[False]
    tokens = {g: sum(len(r.ids) for r in rows[g]) for g in rows}
    waste = {g: 1 - tokens[g] / padded(found[g]) for g in rows}
    assert waste[True] < waste[False] / 2
