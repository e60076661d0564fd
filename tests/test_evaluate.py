"""Evaluation: what was written is graded and counted; the latency of one answer."""

import time

import pytest
from app_fixtures import examples, tiny
from cwt.evaluation.generation import evaluate, latency


def test_scores_count_what_was_written():
    student = tiny()
    some = examples(7, "letters")
    score, rows = evaluate(student, some, max_new_tokens=12, batch_size=3)
    assert [r.id for r in rows] == [e.id for e in some]
    assert score.questions == 7
    assert score.generated_tokens == pytest.approx(sum(r.tokens for r in rows) / 7)
    assert score.accuracy == sum(r.answer == r.wanted for r in rows) / 7
    assert score.truncated == sum(r.tokens == 12 and r.truncated for r in rows) / 7 > 0
    assert not any(r.well_formed and r.truncated for r in rows)
    low, high = score.accuracy_interval
    assert low <= score.accuracy <= high


class Scripted:
    """A student that writes what it is told, and notes every call."""

    def __init__(self, written=None, pauses=()):
        self.written, self.pauses, self.calls = written or {}, list(pauses), []

    def prompt(self, question):
        return (question,)

    def generate(self, prompts, max_new_tokens):
        if self.pauses:
            time.sleep(self.pauses.pop(0))
        self.calls.append((list(prompts), max_new_tokens))
        return [self.written.get(question, []) for (question,) in prompts]

    def text(self, ids):
        return "".join(t for t in ids if t != "<eos>")

    def ended(self, ids):
        return ids[-1:] == ["<eos>"]


def test_grades_of_what_can_be_written():
    some = examples(5, "letters")
    wanted = some[0].answer
    writings = [
        [f"The answer is {wanted}", "<eos>"],
        [f"The answer is {wanted}"],  # never ends
        ["The answer is q q q q", "<eos>"],
        ["I do not know", "<eos>"],
        [],
    ]
    student = Scripted({e.question: w for e, w in zip(some, writings, strict=True)})
    some = [type(e)(e.id, e.question, e.units, wanted) for e in some]
    score, rows = evaluate(student, some, max_new_tokens=9, batch_size=2)
    assert [(r.correct, r.well_formed, r.truncated, r.tokens) for r in rows] == [
        (True, True, False, 2),
        (True, False, True, 1),
        (False, True, False, 2),
        (False, False, False, 2),
        (False, False, True, 0),
    ]
    assert (score.accuracy, score.well_formed, score.truncated) == (2 / 5, 2 / 5, 2 / 5)
    assert score.generated_tokens == 7 / 5
    assert [len(prompts) for prompts, _ in student.calls] == [2, 2, 1]
    assert {n for _, n in student.calls} == {9}


def test_latency_is_the_median_of_single_answers_after_a_warm_up():
    some = examples(6)
    # The warm-up and one outlier are far slower than the others.
    student = Scripted(pauses=[0.4, 0.05, 0.05, 0.4, 0.05])
    found = latency(student, some, max_new_tokens=7, questions=4)
    asked = [(e.question,) for e in some]
    assert student.calls == [([asked[0]], 7), *(([question], 7) for question in asked[:4])]
    assert 0.05 <= found < 0.2


def test_latency_asks_no_more_questions_than_there_are():
    student = Scripted()
    assert latency(student, examples(3), max_new_tokens=1) >= 0
    assert len(student.calls) == 1 + 3
