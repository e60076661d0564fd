"""Trackers are told the figures of every step."""

import pytest
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.files import read_lines
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from cwt.training.trackers import figures, tracker_names

RECIPE = Recipe(
    target="rationale", budget=4, budget_unit="optimizer_steps", batch_size=4, validations=2
)


def test_figures_are_means_shares_and_ratios():
    row = {
        "step": 3, "loss": 1.5, "validation_loss": 2.0, "chunk_tokens": [4, 0, 6],
        "chunk_nll": [8.0, 0.0, 3.0], "chunk_grad_norm": [3.0, 0.0, 1.0],
        "chunk_mean_grad_norm": [0.25, 0.0, 0.1],
    }  # fmt: skip
    assert figures(row) == pytest.approx({
        "loss": 1.5, "validation_loss": 2.0, "nll/0": 2.0, "nll/2": 0.5, "grad_share/0": 0.75,
        "grad_share/2": 0.25, "smoothing/0": 1 / 3, "smoothing/2": 0.6,
    })  # fmt: skip


def test_tensorboard_holds_the_log(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    some = examples(6)
    train(tiny(), some[:4], RECIPE, tmp_path, cpu=True, validation=some[4:], trackers="auto")
    events = reader.EventAccumulator(str(tmp_path / "cwt"))
    events.Reload()
    rows = read_lines(tmp_path / "train_log.jsonl")
    for name in ("loss", "validation_loss"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        wanted = [(row["step"], row[name]) for row in rows if name in row]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]
    assert len(events.Scalars("loss")) == 4
    assert len(events.Scalars("validation_loss")) == 2


def test_a_tracker_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--trackers: 'clipboard' is not known or not installed"):
        train(tiny(), examples(2), RECIPE, tmp_path, cpu=True, trackers="clipboard")
    assert tracker_names("") == []
