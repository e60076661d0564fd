from collections import Counter

import pytest
from app_fixtures import examples, tiny
from cwt.errors import UserError
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler


@pytest.fixture(scope="module")
def items():
    student = tiny()
    return [student.tokenize(e) for e in examples(12)]


def sampler(items, **options):
    return Sampler(items, Recipe(**{"target": "chunk", "budget": 1, "batch_size": 4, **options}))


def chunk_of(row):
    (found,) = {c for c in row.chunks if c >= 0}
    return found


def test_shuffled_visits_every_pair_once_an_epoch(items):
    draws = sampler(items)
    pairs = sum(item.example.chunks for item in items)
    seen = Counter()
    for _ in range(pairs // 4):
        seen.update(chunk_of(row) for row in draws.draw())
    assert seen == dict.fromkeys(range(5), 12)
    assert draws.epoch == 1


def test_by_index_shares_one_chunk_a_step(items):
    draws = sampler(items, schedule="by-index")
    steps = [{chunk_of(row) for row in draws.draw()} for _ in range(60)]
    assert all(len(chunks) == 1 for chunks in steps)
    assert set.union(*steps) == set(range(5))


def test_curriculum_takes_the_next_chunk_each_epoch(items):
    draws = sampler(items, schedule="curriculum")
    for epoch in range(7):
        chunks = {chunk_of(row) for _ in range(3) for row in draws.draw()}
        assert chunks == {epoch % 5}


def test_adaptive_draws_by_the_gradient_that_an_index_shows(items):
    draws = sampler(items, schedule="adaptive", batch_size=1)
    for _ in range(50):
        draws.observe([10] * 5, [60, 30, 10, 0.01, 20])
    seen = Counter(chunk_of(draws.draw()[0]) for _ in range(5000))
    weights = [6, 3, 1, 0.6, 2]  # the fourth is held at a tenth of the strongest
    for index, weight in enumerate(weights):
        assert seen[index] / 5000 == pytest.approx(weight / sum(weights), abs=0.025)
    draws.observe([10, 0, 0, 0, 0], [0, 0, 0, 0, 0])
    assert draws.pull[0] == pytest.approx(0.95 * 6)
    assert draws.pull[1] == pytest.approx(3)  # not drawn, nothing learnt


def test_dropout_spares_the_first_unit_and_the_answer_and_is_fresh(items):
    draws = sampler(items[:1], target="rationale", sentence_dropout=0.5, batch_size=1)
    item = items[0]
    rows = [draws.draw()[0] for _ in range(200)]
    first, last = list(item.units[0]), list(item.units[-1])
    at = len(item.prompt)
    lengths = Counter()
    for row in rows:
        assert row.ids[at : at + len(first)] == first
        assert row.ids[-len(last) :] == last
        lengths[len(row.ids)] += 1
    assert len(lengths) > 10
    full = sum(map(len, item.units))
    fixed = len(first) + len(last)
    mean = sum((n - at) * c for n, c in lengths.items()) / 200
    assert mean == pytest.approx(fixed + 0.5 * (full - fixed), rel=0.1)


def test_a_chunk_whose_units_are_gone_passes_to_the_next(items):
    last = len(items[0].units) - 1
    draws = sampler([items[0].keeping(frozenset({0, last}))], batch_size=1)
    chunks = Counter(chunk_of(draws.draw()[0]) for _ in range(5))
    assert chunks == {0: 1, 4: 4}


@pytest.mark.parametrize("schedule", ["shuffled", "adaptive"])
def test_a_restored_sampler_goes_on_as_the_first(items, schedule):
    one = sampler(items, sentence_dropout=0.3, schedule=schedule)
    for _ in range(7):
        one.draw()
    one.observe([1] * 5, [5, 4, 3, 2, 1])
    state = one.state_dict()
    two = sampler(items, sentence_dropout=0.3, schedule=schedule)
    two.load_state_dict(state)
    assert [one.draw() for _ in range(30)] == [two.draw() for _ in range(30)]


def test_targets_that_do_not_fit_are_counted_and_all_of_them_raises(items):
    limit = max(len(x.prompt) for x in items) + 8
    draws = sampler(items, max_length=limit, batch_size=1)
    drawn = [draws.draw()[0] for _ in range(20)]
    assert all(len(row.ids) <= limit for row in drawn)
    assert draws.dropped > 0
    assert draws.shortened == sum(row.shortened > 0 for row in drawn) > 0
    with pytest.raises(UserError, match="question and target within max_length 2 tokens"):
        sampler(items, max_length=2).draw()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget": 0}, "budget must be at least 1, got 0"),
     ({"sentence_dropout": 1.0}, r"sentence_dropout must be in \[0, 1\), got 1.0"),
     ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
     ({"max_length": -1}, "max_length must not be negative, got -1")],
)  # fmt: skip
def test_bad_recipes(options, message):
    with pytest.raises(UserError, match=message):
        Recipe(**{"target": "rationale", "budget": 1, "batch_size": 16, **options})


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="at least one example, got none"):
        sampler([])
