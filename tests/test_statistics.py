"""Intervals against closed formulas and against a bootstrap in plain Python."""

import math
import random
from statistics import NormalDist

import numpy as np
import pytest
from cwt.evaluation.statistics import most_behind, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (300, 300, 0.9873571, 1.0)],
)
def test_wilson_interval_against_published_values(right, n, low, high):
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    ("right", "n"), [(0, 1), (1, 1), (1, 3), (7, 20), (150, 300), (299, 300), (812, 1319)]
)
def test_wilson_interval_against_its_formula(right, n):
    z = NormalDist().inv_cdf(0.975)
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(right, n) == pytest.approx((middle - half, middle + half), abs=1e-7)


def test_without_questions_any_share_is_possible():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def study(rng, seeds, questions, a=0.8, b=0.7, seed_effect=0.0):
    """Marks of two students of some seeds, on the same questions."""
    first, second = [], []
    for _ in range(seeds):
        shift = rng.normal(0, seed_effect)
        first.append((rng.random(questions) < a + shift) * 1.0)
        second.append((rng.random(questions) < b) * 1.0)
    return first, second


def plain_bootstrap(a, b, draws):
    """Seeds are drawn first, then the questions of each, one at a time."""
    rng = random.Random(7)
    pairs = list(zip(a, b, strict=True))
    marks = [[float(x) - float(y) for x, y in zip(*pair, strict=True)] for pair in pairs]
    means = []
    for _ in range(draws):
        total = 0.0
        for _ in marks:
            row = rng.choice(marks)
            total += sum(rng.choices(row, k=len(row))) / len(row)
        means.append(total / len(marks))
    means.sort()
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


@pytest.mark.parametrize(
    ("seeds", "questions", "seed_effect"), [(1, 60, 0.0), (3, 100, 0.0), (4, 80, 0.15)]
)
def test_a_difference_against_a_bootstrap_in_plain_python(seeds, questions, seed_effect):
    a, b = study(np.random.default_rng(3), seeds, questions, seed_effect=seed_effect)
    found = paired_difference(a, b)
    assert found.by_seed == pytest.approx([x.mean() - y.mean() for x, y in zip(a, b, strict=True)])
    assert found.mean == pytest.approx(np.mean(found.by_seed))
    low, high = plain_bootstrap(a, b, 4000)
    width = high - low
    # Two bootstraps of 4000 draws differ by about 3 % of the width at the end of a tail.
    assert found.interval == pytest.approx((low, high), abs=0.08 * width)
    assert found.interval[0] < found.mean < found.interval[1]


def test_intervals_cover_at_their_rate_and_are_no_wider_than_that_takes():
    """Studies of 3 seeds x 200 questions, no seed effect, whose true difference is 0.1.

    Of a mean over 600 questions the standard error is s / sqrt(600). Drawing seeds adds what the
    means of three seeds vary by chance: two thirds of it again, so 1.29 times the width.
    """
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(60):
        a, b = study(rng, 3, 200)
        low, high = paired_difference(a, b, draws=1000).interval
        covered += low <= 0.1 <= high
        widths.append(high - low)
    assert covered >= 52
    normal = 2 * 1.96 * math.sqrt((0.8 * 0.2 + 0.7 * 0.3) / 600)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(normal * math.sqrt(5 / 3), rel=0.1)


def test_equal_students_differ_by_nothing_and_the_same_draws_come_twice():
    a, b = study(np.random.default_rng(1), 2, 50)
    assert paired_difference(a, a).interval == (0.0, 0.0)
    assert paired_difference(a, b) == paired_difference(a, b)
    mirrored = paired_difference(b, a)
    assert mirrored.mean == pytest.approx(-paired_difference(a, b).mean)


def test_seeds_in_pairs():
    a, b = study(np.random.default_rng(1), 3, 50)
    with pytest.raises(ValueError, match="shorter"):
        paired_difference(a, b[:2])


def test_most_behind_is_the_interval_of_bonett_and_price():
    ours, theirs = (
        np.array([1.0] * 41 + [0] * 6 + [1] * 3),
        np.array([1.0] * 41 + [1] * 6 + [0] * 3),
    )
    p, q = 7 / 52, 4 / 52  # (6 + 1) and (3 + 1) of 50 + 2
    upper = p - q + 1.645 * ((p + q - (p - q) ** 2) / 52) ** 0.5
    assert most_behind(ours, theirs) == pytest.approx(upper)
    level = np.ones(50)
    assert most_behind(level, level) == pytest.approx(1.645 * 2**0.5 / 52)  # not 0


@pytest.mark.parametrize(("questions", "behind", "ahead"), [(50, 0.1, 0.05), (100, 0.04, 0.02)])
def test_most_behind_is_exceeded_in_about_one_case_of_twenty(questions, behind, ahead):
    rng = np.random.default_rng(3)
    exceeded = 0
    for _ in range(4000):
        drawn = rng.random(questions)
        others = (drawn < behind).astype(float)  # right where the student is wrong
        marks = (drawn > 1 - ahead).astype(float)
        exceeded += most_behind(marks, others) < behind - ahead
    assert 0.01 < exceeded / 4000 < 0.065
