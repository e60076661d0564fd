"""Intervals of a share, and of a difference between two students on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927); (0, 1) without questions."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """The difference between two students on the same questions.

    Attributes:
        mean: over seeds and questions.
        interval: its 95 % interval, by bootstrap over seeds, then questions.
        by_seed: the mean of each seed.
    """

    mean: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]


def most_behind(marks: np.ndarray, others: np.ndarray) -> float:
    """Returns by how much a student may be behind another, as far as some questions exclude it.

    It is the upper end of a one-sided 95 % interval of the difference, a share: the adjusted Wald
    interval of Bonett and Price (2012), which counts one more question each way, because a few
    questions without any difference prove little.

    Args:
        marks: (questions,), 1 where the student is right.
        others: the same for the other student, on the same questions.
    """
    d = np.append(others - marks, [1.0, -1.0])
    mean, questions = d.mean(), len(d)
    return float(mean + 1.645 * np.sqrt(((d - mean) ** 2).sum()) / questions)


def paired_difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], draws: int = 4000
) -> Difference:
    """Returns a - b with its interval.

    Args:
        a: for each seed (questions,), the marks of one student.
        b: the same for the other student, on the same questions.
        draws: number of bootstrap samples; their seed is fixed.
    """
    marks = np.stack([x - y for x, y in zip(a, b, strict=True)])
    seeds, n = marks.shape
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, seeds, (draws, seeds, 1))
    means = marks[chosen, rng.integers(0, n, (draws, seeds, n))].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    by_seed = tuple(float(row.mean()) for row in marks)
    return Difference(float(np.mean(by_seed)), (float(low), float(high)), by_seed)
