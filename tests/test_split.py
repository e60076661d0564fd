import random

import pytest
from app_fixtures import DATA
from cwt.data.example import Example
from cwt.data.readers import question_key, read_examples
from cwt.data.split import draw_splits
from cwt.errors import UserError

CASES = DATA.parent / "cases" / "inputs"


def some(n, samples=1, first=0):
    return [
        Example(f"{i}-{k}", f"Question  {i}?" if k % 2 else f"question {i}?", (f"{k}.", " A."), "1")
        for i in range(first, first + n)
        for k in range(samples)
    ]


def keys(examples):
    return {question_key(e.question) for e in examples}


@pytest.mark.parametrize("samples", [1, 3])
def test_no_question_stands_in_two_parts(samples):
    given = some(40, samples)
    parts = draw_splits(given, None, (1000, 5, 7), seed=3)
    groups = [keys(parts.train), keys(parts.validation), keys(parts.test)]
    assert [len(group) for group in groups] == [28, 5, 7]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (28 * samples, 5, 7)
    everything = [*parts.train, *parts.validation, *parts.test, *(e for e, _ in parts.dropped)]
    assert sorted(e.id for e in everything) == sorted(e.id for e in given)
    if samples > 1:
        assert parts.reasons == {
            "another sample of a test question": 7 * 2,
            "another sample of a validation question": 5 * 2,
        }


def test_the_draw_depends_on_the_seed_alone():
    given = some(40)
    first = draw_splits(given, None, (20, 5, 7), seed=3)
    assert draw_splits(list(given), None, (20, 5, 7), seed=3) == first
    assert draw_splits(given, None, (20, 5, 7), seed=4).test != first.test
    assert first.reasons == {"beyond the wanted training samples": 8}
    random.seed(5)  # nor on the global generator
    assert draw_splits(given, None, (20, 5, 7), seed=3) == first


def test_at_most_a_quarter_of_the_questions_each():
    parts = draw_splits(some(8), None, (100, 100, 100), seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (4, 2, 2)


def test_questions_of_a_test_file_leave_training():
    asked = [Example("t", " QUESTION \n 4? ", (), "1"), Example("u", "other?", (), "1")]
    parts = draw_splits(some(20, 2), asked, (1000, 3, 10), seed=0)
    assert {e.id for e in parts.test} == {"t", "u"}
    assert "question 4?" not in keys(parts.train) | keys(parts.validation)
    assert parts.reasons["question of the test"] == 2
    assert (len(parts.train), len(parts.validation)) == (32, 3)


def test_a_sorted_test_file_is_drawn_from_everywhere():
    asked = [Example(f"{i}", f"is {i} even?", (), "yes" if i < 100 else "no") for i in range(200)]
    parts = draw_splits(some(20), [*asked, asked[0]], (100, 3, 40), seed=0)
    answers = [e.answer for e in parts.test]
    assert len(answers) == 40
    assert 10 <= answers.count("yes") <= 30
    assert parts.dropped == []
    assert len(parts.test) + len(parts.not_asked) == 201


@pytest.mark.realdata(CASES)
def test_the_sorted_case():
    asked = read_examples(CASES / "D12_sorted_test.json", rationales=False).examples
    train = read_examples(CASES / "good.json").examples
    parts = draw_splits(train, asked, (100, 10, 40), seed=0)
    assert {e.answer for e in parts.test} == {"yes", "no"}
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (50, 10, 40)


@pytest.mark.parametrize(
    ("given", "asked", "sizes"),
    [(3, None, (9, 1, 1)), (8, [], (9, 1, 1)), (8, None, (0, 1, 1)), (8, None, (9, 0, 1))],
)
def test_too_few(given, asked, sizes):
    with pytest.raises(UserError, match=f"{given} usable rationales of {given} questions are too"):
        draw_splits(some(given), asked, sizes, seed=0)
