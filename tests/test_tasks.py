import random
import re

import pytest
from cwt.data.tasks import (
    ANSWER,
    CORE,
    NAMES,
    SPARE,
    TASKS,
    Problem,
    generate_examples,
    unique_problems,
)


def solve(problem: Problem) -> str:
    """Solves a question from its text alone; shares nothing with the generators."""
    q = problem.question
    if problem.task == "arithmetic":
        value = int(re.search(r"has (\d+)", q).group(1))
        for verb, amount in re.findall(r"(gives|takes) (\d+)", q):
            value += int(amount) if verb == "gives" else -int(amount)
        return str(value)
    if problem.task == "objects":
        holds = dict(re.findall(r"(\w+) has the (\w+) ball", q))
        for a, b in re.findall(r"(\w+) and (\w+) swap", q):
            holds[a], holds[b] = holds[b], holds[a]
        return holds[re.search(r"does (\w+) have", q).group(1)]
    if problem.task == "letters":
        words = q.split("words ")[1].rstrip(".").split(", ")
        return " ".join(word[-1] for word in words)
    if problem.task == "stock":
        value = int(re.search(r"has (\d+)", q).group(1))
        gained = sum(map(int, re.findall(r"gets (\d+)", q)))
        return str(value + gained - sum(map(int, re.findall(r"sells (\d+)", q))))
    flips = len(re.findall(r"\w+ flips", q))
    heads = ("heads" in q.split(".")[0]) == (flips % 2 == 0)
    return "yes" if heads else "no"


@pytest.mark.parametrize("task", TASKS)
def test_answers_agree_with_an_independent_solver(task):
    for problem in unique_problems(task, 500, seed=3):
        assert solve(problem) == problem.answer
        assert problem.sentences[-1] == f"The answer is {problem.answer}"
        assert problem.roles[-1] == ANSWER
        assert problem.roles.count(ANSWER) == 1


def test_core_steps_are_true_equations_and_chain():
    for problem in unique_problems("arithmetic", 200, seed=0):
        value = int(re.search(r"has (\d+)", problem.question).group(1))
        for sentence, kind in zip(problem.sentences, problem.roles, strict=True):
            if kind == CORE:
                a, op, b, c = re.search(r"(\d+) ([+-]) (\d+) = (\d+)", sentence).groups()
                assert int(a) == value
                value = value + int(b) if op == "+" else value - int(b)
                assert value == int(c)
        assert str(value) == problem.answer


def test_a_shop_checks_its_sums_and_nothing_follows_from_that():
    spare = 0
    for problem in unique_problems("stock", 200, seed=0):
        value = int(re.search(r"has (\d+)", problem.question).group(1))
        events = re.findall(r"(gets|sells) (\d+)", problem.question)
        assert 2 <= len(events) <= 4
        signs = iter([(int(n) if verb == "gets" else -int(n)) for verb, n in events])
        for sentence, kind in zip(problem.sentences, problem.roles, strict=True):
            sum_ = re.search(r"(\d+) ([+-]) (\d+) = (\d+)", sentence)
            assert (sum_ is not None) == (kind in (CORE, SPARE))
            if sum_:
                a, sign, b, c = (int(x) if x.isdigit() else x for x in sum_.groups())
                assert a + b * {"+": 1, "-": -1}[sign] == c
            if kind == CORE:
                assert a == value
                value += next(signs)
                assert 1 <= value == c <= 60
            elif kind == SPARE:
                assert a == value
                spare += 1
        assert str(value) == problem.answer
    assert spare > 100


def told(problem, left_out=None):
    """Returns what each swap finds and what the answer is, with one swap left out."""
    holds = dict(re.findall(r"(\w+) has the (\w+) ball", problem.question))
    found = []
    for i, (a, b) in enumerate(re.findall(r"(\w+) and (\w+) swap", problem.question)):
        found.append((holds[a], holds[b]))
        if i != left_out:
            holds[a], holds[b] = holds[b], holds[a]
    return found, holds[re.search(r"does (\w+) have", problem.question).group(1)]


def test_a_step_is_spare_where_nothing_later_changes_without_it():
    spare = 0
    for problem in unique_problems("objects", 300, seed=0, steps=4, people=4):
        kinds = [k for k, s in zip(problem.roles, problem.sentences, strict=True) if "become" in s]
        found, answer = told(problem)
        assert answer == problem.answer
        for i, kind in enumerate(kinds):
            others, other_answer = told(problem, left_out=i)
            same = all(found[j] == others[j] for j in range(i + 1, len(kinds)) if kinds[j] == CORE)
            assert (kind == SPARE) == (same and answer == other_answer)
            spare += kind == SPARE
    assert spare > 100
    for problem in unique_problems("coin", 100, seed=0):
        for kind, sentence in zip(problem.roles, problem.sentences, strict=True):
            assert (kind == SPARE) == ("leaves it at" in sentence)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_ten_thousand_questions(task):
    questions = {p.question for p in unique_problems(task, 10_000, seed=0)}
    assert len(questions) == 10_000


def test_more_questions_than_exist_raises_instead_of_running_on():
    everything = 2 * len(NAMES) * 2  # side, person, flips or not
    assert len(unique_problems("coin", everything, seed=0, steps=1)) == everything
    with pytest.raises(ValueError, match=r"has about 40 different questions, 41 were asked for"):
        unique_problems("coin", everything + 1, seed=0, steps=1)


def test_same_seed_same_problems_and_a_longer_list_adds_to_them():
    assert unique_problems("objects", 5, seed=7) == unique_problems("objects", 9, seed=7)[:5]
    assert unique_problems("objects", 5, seed=7) != unique_problems("objects", 5, seed=8)


def test_parts_share_no_question():
    parts = generate_examples("coin", [300, 100, 200], seed=0)
    assert [len(part) for part in parts] == [300, 100, 200]
    assert len({e.question for part in parts for e in part}) == 600


@pytest.mark.parametrize("task", TASKS)
def test_without_filler_only_the_frame_and_the_core_are_left(task):
    problem = TASKS[task](random.Random(0), filler=0.0)
    assert CORE in problem.roles
    assert set(problem.roles[2:-1]) <= {CORE, SPARE}
