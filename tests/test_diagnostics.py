"""Diagnostics against their definitions, one token at a time in float64."""

import math

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.evaluation.diagnostics import (
    diagnose,
    mean_loss,
    rise_under_noise,
    summarise,
    top_eigenvalue,
    unit_figures,
)
from cwt.students.tokenized import build_sequence
from torch.nn import functional as F


def gradients(model, item):
    """Returns for each unit (tokens, V): softmax - onehot of every token."""
    row = build_sequence(item)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    found, t = [], len(item.prompt)
    for unit in item.units:
        labels = torch.tensor(unit)
        rows = logits[t - 1 : t - 1 + len(unit)]
        found.append(rows.softmax(-1) - F.one_hot(labels, rows.shape[1]))
        t += len(unit)
    return found


def test_unit_figures_against_the_definitions():
    student = tiny()
    some = examples(4)
    items = [student.tokenize(e) for e in some]
    figures = unit_figures(student, items, batch_size=3)
    at = 0
    for example, item in zip(some, items, strict=True):
        units = gradients(student.model, item)
        total = sum(float(g.norm(dim=1).sum()) for g in units)
        own = figures[at : at + len(units)]
        at += len(units)
        assert sum(f.grad_share for f in own) == pytest.approx(1)
        assert sum(f.token_share for f in own) == pytest.approx(1)
        for u, (f, g) in enumerate(zip(own, units, strict=True)):
            assert (f.id, f.unit, f.role, f.tokens) == (example.id, u, example.roles[u], len(g))
            assert f.grad_share == pytest.approx(float(g.norm(dim=1).sum()) / total, rel=1e-4)
            ratio = float(g.mean(0).norm() / g.norm(dim=1).mean())
            assert f.smoothing == pytest.approx(ratio, rel=1e-4)
            assert 0 < f.smoothing_control <= 1 + 1e-6
    assert at == len(figures)
    summary = summarise(figures, "role")
    assert sum(s["grad_share"] for s in summary.values()) == pytest.approx(1)
    core = [f for f in figures if f.role == "core"]
    assert summary["core"]["units"] == len(core)
    mean = sum(f.smoothing for f in core) / len(core)
    assert summary["core"]["smoothing"] == pytest.approx(mean)


def test_top_eigenvalue_of_a_known_hessian():
    class Bowl(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
            self.b = torch.nn.Parameter(torch.tensor([[0.5]]))

    bowl = Bowl()
    curve = torch.tensor([1.0, 7.0, 2.0])
    loss = lambda: 0.5 * (curve * bowl.a**2).sum() - 2 * (bowl.b**2).sum()  # noqa: E731
    assert top_eigenvalue(bowl, loss) == pytest.approx(7, rel=1e-2)
    deeper = lambda: loss() - 8 * (bowl.b**2).sum()  # noqa: E731
    found = top_eigenvalue(bowl, deeper)  # -20 is the strongest
    assert found == pytest.approx(7, rel=1e-2)


def test_top_eigenvalue_of_the_student_against_the_full_hessian():
    """Of the last layer norm alone, whose 64 x 64 Hessian can be written down."""
    student = tiny()
    model = student.model.requires_grad_(False)
    weight = model.model.norm.weight.requires_grad_()
    loss = mean_loss(student, [student.tokenize(e) for e in examples(2)])
    full = torch.empty(len(weight), len(weight))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(loss(), weight, create_graph=True)
        for i in range(len(weight)):
            (full[i],) = torch.autograd.grad(gradient[i], weight, retain_graph=True)
    values = torch.linalg.eigvalsh(full.double())
    found = top_eigenvalue(model, loss)
    assert found == pytest.approx(float(values[-1]), rel=1e-2)


def test_noise_raises_a_quadratic_by_its_curvature_and_leaves_the_weights():
    layer = torch.nn.Linear(200, 1, bias=False)
    start = layer.weight.detach().clone()
    loss = lambda: (layer.weight - start).square().sum()  # noqa: E731
    rise = rise_under_noise(layer, loss, scale=0.1, draws=3)
    assert rise == pytest.approx(0.01 * float(start.square().sum()), rel=1e-4)
    assert torch.equal(layer.weight, start)


def test_diagnose_is_whole():
    student = tiny()
    items = [student.tokenize(e) for e in examples(6)]
    found = diagnose(student, items[:3], items[3:])
    assert set(found["by_role"]) == {"core", "filler", "restate", "answer"}
    assert sum(c["grad_share"] for c in found["by_chunk"].values()) == pytest.approx(1)
    for part in ("train", "test"):
        assert found[part]["top_eigenvalue"] > 0
        assert math.isfinite(found[part]["rise_under_noise"])
