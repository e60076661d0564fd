"""Shared by the tests of training: one recipe, a run of it, and a run that stops half way."""

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.progress import quiet
from cwt.training.loop import train
from cwt.training.recipe import Recipe

RECIPE = Recipe(
    target="chunk", budget=3000, batch_size=8, seed=5, sentence_dropout=0.2, checkpoint_seconds=0.0
)


def trained(out, recipe=RECIPE, n=16, progress=quiet):
    """Trains the embedded student on n examples; returns (model, what was spent)."""
    student = tiny()
    spent = train(student, examples(n), recipe, out, progress, cpu=True)
    return student.model, spent


class Stop(Exception):
    pass


def stop_half_way(share, text):
    if share > 0.5:
        raise Stop


def stopped(out, recipe=RECIPE):
    """A run that stops half way and leaves a checkpoint; returns the checkpoint's folder."""
    with pytest.raises(Stop):
        trained(out, recipe, progress=stop_half_way)
    (checkpoint,) = out.glob("checkpoint-*")
    return checkpoint


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    return all(torch.equal(left[name], right[name]) for name in left)
