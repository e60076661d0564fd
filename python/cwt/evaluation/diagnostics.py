"""Gradient share of each part of a rationale, and the sharpness of the loss around a student.

The gradient of a token is that of its own loss with respect to its logits, softmax(z) - onehot(y).
Nothing is trained here: all figures describe the student as it is.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import cwt_ext
from cwt.processes import Shares
from cwt.students.student import Student, iterate_logits
from cwt.students.tokenized import TokenizedExample, whole_sequence


@dataclass(frozen=True)
class UnitFigures:
    """The figures of one unit of one rationale.

    Attributes:
        grad_share: its part of the rationale's summed gradient norms, in [0, 1].
        token_share: its part of the rationale's tokens, in [0, 1].
        smoothing: ||mean g|| / mean ||g||, in [0, 1]; it is 1 if all tokens pull the same way.
        smoothing_control: the same for as many tokens of the rationale, drawn at random. Fewer
            tokens alone raise the ratio, so only the difference says something about the unit.
    """

    id: str
    unit: int
    chunk: int
    role: str | None
    tokens: int
    nll: float
    grad_share: float
    token_share: float
    smoothing: float
    smoothing_control: float


def unit_figures(
    student: Student,
    examples: Sequence[TokenizedExample],
    batch_size: int = 16,
    seed: int = 0,
) -> list[UnitFigures]:
    """Returns the figures of every unit of some examples, in order.

    Args:
        student: the student whose gradients are measured.
        examples: with their chunks and, where they are labelled, the roles of their units.
        batch_size: rows of one forward pass.
        seed: decides the random tokens of the control.
    """
    rng = random.Random(f"control-{seed}")
    found: dict[int, list[UnitFigures]] = {}
    rows = [whole_sequence(x.unit_is_chunk()) for x in examples]
    for part, batch, logits in iterate_logits(student, rows, batch_size):
        width = max(len(examples[i].units) for i in part)
        real = _statistics(logits, batch.labels, batch.chunk_ids, width)
        shuffled = _shuffled(batch.chunk_ids.cpu(), rng).to(batch.chunk_ids.device)
        control = _statistics(logits, batch.labels, shuffled, width)
        for b, i in enumerate(part):
            found[i] = _of_example(examples[i], real[b], control[b])
    return [figures for i in range(len(examples)) for figures in found[i]]


def _shuffled(chunk_ids: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Returns (B, T) chunk ids, those of each row that bear loss in random order."""
    shuffled = chunk_ids.clone()
    for row in shuffled:
        bears = row >= 0
        ids = row[bears].tolist()
        rng.shuffle(ids)
        row[bears] = torch.tensor(ids)
    return shuffled


def _statistics(
    logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, width: int
) -> list[list[tuple[float, float, float, float]]]:
    """Returns (tokens, NLL, sum of norms, norm of the mean) for every row and unit."""
    count, bears = len(ids), ids >= 0
    row = torch.arange(count, device=ids.device)[:, None]
    stats = cwt_ext.chunk_loss(
        logits, labels[bears], (ids + row * width)[bears],
        reduction="sum", num_chunks=count * width, mean_grad_norm=True,
    ).stats  # fmt: skip
    assert stats is not None
    assert stats.mean_grad_norm is not None
    columns = (stats.tokens, stats.nll_sum, stats.grad_norm_sum, stats.mean_grad_norm)
    table = torch.stack([c.double().cpu() for c in columns], -1).reshape(count, width, 4)
    return table.tolist()


def _of_example(tokenized: TokenizedExample, real: Any, control: Any) -> list[UnitFigures]:
    example, units = tokenized.example, len(tokenized.units)
    tokens = sum(r[0] for r in real[:units])
    norms = sum(r[2] for r in real[:units])
    of_unit = example.chunk_of_units()
    return [
        UnitFigures(
            id=example.id,
            unit=u,
            chunk=of_unit[u],
            role=example.roles[u] if example.roles else None,
            tokens=int(real[u][0]),
            nll=real[u][1],
            grad_share=real[u][2] / norms,
            token_share=real[u][0] / tokens,
            smoothing=_ratio(real[u]),
            smoothing_control=_ratio(control[u]),
        )
        for u in range(units)
    ]


def _ratio(figures: tuple[float, float, float, float]) -> float:
    tokens, _, norms, mean = figures
    return mean * tokens / norms if norms else 0.0


def summarise(figures: Sequence[UnitFigures], by: str) -> dict[str, dict[str, float]]:
    """Returns the figures of all units of each `role`, or of each `chunk` index.

    `per_token` is the gradient share over the token share: above 1 the group pulls harder than its
    length explains. Smoothing ratios are means over units.
    """
    groups: dict[str, list[UnitFigures]] = defaultdict(list)
    for f in figures:
        groups[str(getattr(f, by))].append(f)
    rationales = len({f.id for f in figures})
    result = {}
    for name, group in sorted(groups.items()):
        n = len(group)
        grad, length = sum(f.grad_share for f in group), sum(f.token_share for f in group)
        result[name] = {
            "units": n,
            "grad_share": grad / rationales,
            "token_share": length / rationales,
            "per_token": grad / length,
            "nll_per_token": sum(f.nll for f in group) / sum(f.tokens for f in group),
            "smoothing": sum(f.smoothing for f in group) / n,
            "smoothing_control": sum(f.smoothing_control for f in group) / n,
        }
    return result


Loss = Callable[[], torch.Tensor]


def mean_loss(student: Student, examples: Sequence[TokenizedExample]) -> Loss:
    """Returns a function that computes the mean NLL per token over whole rationales.

    It uses plain cross-entropy, because the Hessian needs second derivatives and chunk_loss has
    none.
    """
    batch = student.collate([whole_sequence(x) for x in examples])
    labels, _ = batch.targets

    def loss() -> torch.Tensor:
        return F.cross_entropy(student.logits_at(batch), labels)

    return loss


def top_eigenvalue(
    model: torch.nn.Module, loss: Loss, tolerance: float = 1e-2, seed: int = 0
) -> float:
    """Returns the greatest eigenvalue of the Hessian, by Lanczos iteration (scipy's eigsh).

    A Hessian-vector product is the gradient of (gradient . v).

    Args:
        model: the Hessian is with respect to its trainable parameters.
        loss: computes a scalar from them.
        tolerance: relative error of the eigenvalue.
        seed: decides the first vector.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)

        def product(vector: np.ndarray) -> np.ndarray:
            flat = torch.from_numpy(vector.ravel()).to(parameters[0])
            parts = [v.view_as(p) for v, p in zip(flat.split(sizes), parameters, strict=True)]
            out = torch.autograd.grad(gradients, parameters, parts, retain_graph=True)
            return torch.cat([h.flatten() for h in out]).double().cpu().numpy()

        n = sum(sizes)
        hessian = LinearOperator((n, n), matvec=product, dtype=np.float64)
        first = np.random.default_rng(seed).standard_normal(n)
        (value,) = eigsh(
            hessian, k=1, which="LA", v0=first, tol=tolerance, return_eigenvectors=False
        )
    return float(value)


@torch.no_grad()
def rise_under_noise(
    model: torch.nn.Module, loss: Loss, scale: float = 0.05, draws: int = 5, seed: int = 0
) -> float:
    """Returns the mean rise of the loss when every weight tensor is disturbed.

    Each tensor gets Gaussian noise of `scale` times its own norm, so that students whose weights
    differ in size can be compared.

    Args:
        model: its parameters are restored afterwards.
        loss: computes a scalar from them.
        scale: norm of the noise over the norm of the tensor.
        draws: number of random directions to average over.
        seed: decides the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    at_rest = float(loss())
    saved = [p.detach().clone() for p in model.parameters()]
    total = 0.0
    for _ in range(draws):
        for p, original in zip(model.parameters(), saved, strict=True):
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.copy_(original + noise * (scale * original.norm() / noise.norm()))
        total += float(loss()) - at_rest
    for p, original in zip(model.parameters(), saved, strict=True):
        p.copy_(original)
    return total / draws


def diagnose(
    student: Student,
    train: Sequence[TokenizedExample],
    test: Sequence[TokenizedExample],
    sharpness_examples: int = 32,
) -> dict[str, Any]:
    """Returns all figures of this module for a student, on training and held-out examples.

    Several processes divide the kinds of figures among them; those that cost most come first.
    """
    student.model.eval()
    of_train = mean_loss(student, train[:sharpness_examples])
    of_test = mean_loss(student, test[:sharpness_examples])
    works: list[Callable[[], Any]] = [
        lambda: top_eigenvalue(student.model, of_train),
        lambda: top_eigenvalue(student.model, of_test),
        lambda: rise_under_noise(student.model, of_train),
        lambda: rise_under_noise(student.model, of_test),
        lambda: unit_figures(student, test),
        lambda: [float(loss().detach()) for loss in (of_train, of_test)],
    ]
    found = Shares(works).map(lambda mine: [work() for work in mine])
    figures, losses = found[4], found[5]
    parts: dict[str, Any] = {"by_chunk": summarise(figures, "chunk")}
    if any(f.role for f in figures):
        parts["by_role"] = summarise(figures, "role")
    for i, name in enumerate(("train", "test")):
        parts[name] = {
            "loss": losses[i],
            "top_eigenvalue": found[i],
            "rise_under_noise": found[2 + i],
        }
    parts["units"] = [asdict(f) for f in itertools.islice(figures, 200)]
    return parts
