"""What skip-thinking training decides on validation questions, from files written by hand."""

from dataclasses import replace

import numpy as np
import pytest
from app_fixtures import examples
from cwt.config import DataConfig, RunConfig, SkipConfig
from cwt.data.example import write_examples
from cwt.errors import UserError
from cwt.evaluation.statistics import most_behind
from cwt.files import read_json, write_json, write_lines
from cwt.pipeline import stages
from cwt.pipeline.choice import chosen_student, readiness, write_choice
from cwt.pipeline.methods import METHODS, lineage, selected_methods, trained_for
from cwt.pipeline.skips import Decided
from cwt.pipeline.workspace import Workspace

STT, PARENT = METHODS["STT"], "FTT-small-batch"
QUESTIONS = 40
TRAINED = 24


@pytest.fixture
def ws(tmp_path):
    """A run with data and a trained parent; half of the training answers are 7."""
    skip = SkipConfig(choice_questions=0, max_risk=100)
    config = RunConfig(data=DataConfig(task="arithmetic"), methods="STT", skip=skip)
    run = Workspace(config, tmp_path / "r")
    some = examples(QUESTIONS + TRAINED)
    train = [replace(e, answer="7") if i % 2 else e for i, e in enumerate(some[QUESTIONS:])]
    validation = [
        replace(e, answer="7.0" if i < 10 else "1000") for i, e in enumerate(some[:QUESTIONS])
    ]
    write_examples(run.data("train"), train)
    write_examples(run.data("validation"), validation)
    write_lines(run.chunks("ac"), ({"boundaries": e.boundaries} for e in train))
    write_json(run.student(PARENT) / "train.json", {})
    return run


def with_options(ws, **options):
    """Returns the run with other options of skipping."""
    return replace(ws, config=replace(ws.config, skip=replace(ws.config.skip, **options)))


def answers(ws, name, right, tokens=50.0, part="validation"):
    """Writes how a student answered the questions of a part: which of them right."""
    asked = ws.examples(part)
    marks = [i in set(right) for i in range(len(asked))]
    write_json(ws.evaluation(name, part), {"accuracy": sum(marks) / len(marks)})
    rows = ({"correct": mark, "tokens": tokens} for mark in marks)
    write_lines(ws.generations(name, part), rows)


def skipped(ws, name, judge="forward"):
    whole = [sorted(e.kept) for e in ws.training_examples()]
    write_json(ws.skips(name), {"judge": judge, "kept_units": whole})


@pytest.mark.parametrize(
    ("right", "limit", "ready"),
    [(19, 0.3, True), (18, 0.3, False), (9, 0.01, False), (9, 0.0, True), (40, 1.0, True)],
)
def test_readiness_is_skill_above_the_most_frequent_answer(ws, right, limit, ready):
    answers(ws, PARENT, range(right))
    ws = with_options(ws, ready_skill=limit)
    found = readiness(ws, PARENT)
    assert found.chance == 10 / 40  # "7" is right where "7.0" is wanted
    assert found.accuracy == right / 40
    assert found.skill == pytest.approx((right - 10) / 30)
    assert found.ready == ready == (limit == 0 or right >= 10 + limit * 30)  # 0: at once


def rounds_and_continued(ws, *marks, continued=(), tokens=100.0, parent=range(20)):
    """Writes the rounds' answers, each shorter than the one before, and those of `continued`."""
    answers(ws, PARENT, parent)
    for r, right in enumerate(marks, 1):
        skipped(ws, f"STT-round-{r}")
        answers(ws, f"STT-round-{r}", right, 60.0 - r)
    answers(ws, "continued", continued, tokens)
    return write_choice(ws, STT)


def test_the_best_validation_accuracy_wins(ws):
    chosen = rounds_and_continued(ws, range(20), range(36), range(24), continued=range(22))
    assert chosen == chosen_student(ws, STT) == "STT-round-2"
    record = read_json(ws.choice("STT"))
    assert [c["student"] for c in record["candidates"]] == [
        "STT-round-1", "STT-round-2", "STT-round-3", "continued", PARENT,
    ]  # fmt: skip
    assert [c["admitted"] for c in record["candidates"]] == [False, True, False, False, False]
    begin = "STT skips (validation accuracy and tokens): STT-round-2 90.0 % in 58; "
    assert record["why"].startswith(begin)


def test_it_chooses_not_to_skip_where_skipping_harms(ws):
    assert rounds_and_continued(ws, range(10), range(12), continued=range(30)) == "continued"
    assert read_json(ws.choice("STT"))["why"].startswith("STT chose not to skip")
    assert lineage(STT, ws.config, "continued") == [PARENT, "continued"]
    rounds = [f"STT-round-{r}" for r in range(1, 5)]
    assert trained_for(STT, ws.config, "continued") == [PARENT, *rounds, "continued"]


def test_it_ends_with_its_parent_where_training_on_harms_as_well(ws):
    chosen = rounds_and_continued(ws, range(10), continued=range(12), parent=range(30))
    assert chosen == PARENT
    assert lineage(STT, ws.config, PARENT) == [PARENT]
    random_skips = METHODS["random-skips"]  # takes over that nothing is skipped
    assert stages._matched_student(ws, random_skips) is None
    stages.skip_units(ws, "random-skips", random_skips, PARENT, None)
    assert ws.with_skips(ws.training_examples(), "random-skips") == [
        e.keeping(e.kept) for e in ws.training_examples()
    ]
    assert stages.shortened_examples(ws, PARENT, STT) == ws.training_examples()
    # Of the two that skip nothing the more accurate one, whichever is longer.
    assert rounds_and_continued(ws, range(9), continued=range(31), parent=range(30)) == "continued"


def test_among_equals_a_round_wins(ws):
    assert rounds_and_continued(ws, range(40), continued=range(40)) == "STT-round-1"
    assert rounds_and_continued(ws, range(8, 40), continued=range(32)) == "STT-round-1"
    assert rounds_and_continued(ws, range(39), continued=range(40)) == "continued"


def test_training_questions_make_up_for_few_validation_questions(ws):
    assert stages.training_questions(ws) == []  # of this run 0 questions are asked for
    for wanted, found in ((QUESTIONS, 0), (QUESTIONS + 9, 9), (300, TRAINED)):
        assert len(stages.training_questions(with_options(ws, choice_questions=wanted))) == found
    ws = with_options(ws, choice_questions=QUESTIONS + 9)
    asked, train = stages.training_questions(ws), ws.examples("train")
    assert asked == [e for e in train if e in asked] != train[:9]  # drawn, in their order
    assert asked == stages.training_questions(ws)
    other = replace(ws, config=replace(ws.config, seed=1))
    assert asked != stages.training_questions(other)


def chosen_by_both(ws, *, round_1, continued, parent):
    """Returns what STT ends with, given (validation, training) questions answered right."""
    ws = with_options(ws, choice_questions=QUESTIONS + TRAINED)
    skipped(ws, "STT-round-1")
    right = {"STT-round-1": round_1, "continued": continued, PARENT: parent}
    for name, (held_out, trained) in right.items():
        answers(ws, name, range(held_out), 40.0)
        answers(ws, name, range(trained), 64.0, "train")
    return write_choice(ws, STT)


def test_a_round_that_is_level_on_validation_must_be_level_on_training_questions_too(ws):
    level = {"continued": (30, 20), "parent": (30, 20)}
    assert chosen_by_both(ws, round_1=(30, 20), **level) == "STT-round-1"
    assert chosen_by_both(ws, round_1=(30, 19), **level) == "continued"
    assert chosen_by_both(ws, round_1=(31, 19), **level) == "STT-round-1"  # together level
    found = read_json(ws.choice("STT"))
    assert found["candidates"][0] == {
        "student": "STT-round-1", "skips": True, "admitted": True, "accuracy": 50 / 64,
        "validation_accuracy": 31 / 40, "generated_tokens": 49.0,
        "risk": most_behind(marks(range(31)), marks(range(30))),
    }  # fmt: skip
    asked = "accuracy on 40 validation and 24 training questions, in brackets on the validation"
    assert f"STT skips ({asked} questions alone, and tokens): " in found["why"]
    assert "STT-round-1 78.1 % (77.5 %) in 49; continued 78.1 % (75.0 %) in 49, " in found["why"]


def test_training_questions_do_not_count_against_the_parent_which_saw_them_less(ws):
    behind = {"continued": (20, 10), "round_1": (29, 24)}
    assert chosen_by_both(ws, parent=(30, 10), **behind) == PARENT
    assert chosen_by_both(ws, parent=(29, 10), **behind) == "STT-round-1"
    assert chosen_by_both(ws, parent=(29, 24), **behind) == "STT-round-1"
    # Of the two that skip nothing, validation questions decide.
    neither = {"round_1": (10, 10), "continued": (29, 24)}
    assert chosen_by_both(ws, parent=(30, 0), **neither) == PARENT


def test_a_schedule_asks_validation_questions_alone(ws):
    ws = with_options(ws, choice_questions=300)
    assert stages.asked_parts(ws, METHODS["internalised"]) == ["validation"]
    assert stages.asked_parts(ws, METHODS["STT-at-once"]) == ["validation", "train"]


def test_a_round_must_not_be_far_behind_as_far_as_validation_questions_exclude_it(ws):
    # Level with `continued`, but the two differ in four questions of forty each way.
    def chosen(limit):
        limited = with_options(ws, max_risk=limit)
        return rounds_and_continued(limited, range(4, 40), continued=range(36))

    def said():
        return read_json(ws.choice("STT"))["why"]

    risk = 100 * 1.645 * 10**0.5 / 42  # the mean is 0; five questions of 42 each way
    assert chosen(risk + 0.01) == "STT-round-1"
    assert read_json(ws.choice("STT"))["candidates"][0]["risk"] == pytest.approx(risk / 100)
    excluded = f"40 validation questions exclude that it is more than {risk:.1f} points behind"
    assert f"{excluded} those that skip nothing (one-sided, 95 %)." in said()
    assert chosen(risk - 0.01) == "continued"
    assert f"cannot exclude that STT-round-1 is {risk:.1f} points behind" in said()
    assert f"--skip.max-risk allows {risk - 0.01:g}." in said()


def test_the_limit_of_the_risk_lets_pass_what_is_clearly_ahead(ws):
    ws = with_options(ws, max_risk=SkipConfig().max_risk)
    assert rounds_and_continued(ws, range(30), continued=range(20)) == "STT-round-1"
    assert rounds_and_continued(ws, range(40), continued=range(40)) == "continued"  # 5.5 points
    # Where a round is behind anyway, the reason does not speak of risks.
    assert rounds_and_continued(ws, range(10), continued=range(30)) == "continued"
    assert "exclude" not in read_json(ws.choice("STT"))["why"]


def test_stt_at_once_has_no_limit_of_the_risk(ws):
    ws = with_options(ws, max_risk=0)
    skipped(ws, "STT-at-once-round-1")
    answers(ws, "STT-at-once-round-1", range(3))
    assert write_choice(ws, METHODS["STT-at-once"]) == "STT-at-once-round-1"
    assert read_json(ws.choice("STT-at-once"))["candidates"][0]["risk"] is None


def marks(right):
    return np.array([i in set(right) for i in range(QUESTIONS)], dtype=float)


def test_among_rounds_the_most_accurate_wins_even_where_it_writes_more(ws):
    assert rounds_and_continued(ws, range(38), range(37), range(36)) == "STT-round-1"
    assert rounds_and_continued(ws, range(38), range(37), range(38)) == "STT-round-3"


def test_a_tolerance_admits_what_is_behind_by_less(ws):
    tolerant = with_options(ws, accuracy_tolerance=25.0)
    assert rounds_and_continued(tolerant, range(32), continued=range(40)) == "STT-round-1"
    assert rounds_and_continued(tolerant, range(15), continued=range(40)) == "continued"
    assert rounds_and_continued(tolerant, range(38), range(30), range(27)) == "STT-round-2"


def test_stt_at_once_must_take_its_most_accurate_round(ws):
    method = METHODS["STT-at-once"]
    for r, right in enumerate((32, 33, 31, 33), 1):
        skipped(ws, f"STT-at-once-round-{r}")
        answers(ws, f"STT-at-once-round-{r}", range(right), 60.0 - r)
    assert write_choice(ws, method) == "STT-at-once-round-4"
    assert read_json(ws.choice(method.name))["readiness"] == []
    assert trained_for(method, ws.config, "STT-at-once-round-4") == [
        PARENT, *(f"STT-at-once-round-{r}" for r in range(1, 5)),
    ]  # fmt: skip


def decide(ws, monkeypatch, method=STT, rounds=4):
    """Returns who decides in each round, given how every student answers; trains nothing."""

    def judged(ws, method, open_student, examples, ratify, part, progress):
        return Decided(examples)

    monkeypatch.setattr(stages, "decide_skips", judged)
    found = []
    for r in range(rounds):
        name = stages.skip_round(ws, method, r)
        if name is None:
            break
        write_json(ws.student(name) / "train.json", {})
        found.append(read_json(ws.skips(name))["judge"])
    return found


READY, NOT = range(30), range(12)


@pytest.mark.parametrize(
    ("learns", "wanted"),
    [
        ((READY,), ["forward", "ratify", "forward", "ratify"]),
        ((NOT, READY), ["none", "forward", "ratify", "forward"]),
        ((NOT, NOT, READY), ["none", "none", "forward", "ratify"]),
        ((NOT, NOT, NOT), ["none", "none"]),
    ],
    ids=["at once", "after one round", "after two rounds", "never"],
)
def test_stt_waits_until_the_student_is_ready(ws, monkeypatch, learns, wanted):
    ws = with_options(ws, ready_skill=0.1)
    for name, right in zip([PARENT, "STT-round-1", "STT-round-2"], learns, strict=False):
        answers(ws, name, right)
    assert decide(ws, monkeypatch) == wanted
    for r, judge in enumerate(wanted, 1):
        if judge != "none":
            answers(ws, f"STT-round-{r}", READY, 60.0 - r)
    answers(ws, "continued", NOT)
    assert write_choice(ws, STT) == ("STT-round-4" if len(wanted) == 4 else "continued")
    record = read_json(ws.choice("STT"))
    assert [c["ready"] for c in record["readiness"]] == [right == READY for right in learns]
    if wanted == ["none", "none"]:
        assert "STT-round-2 answers 30.0 % of the validation questions right" in record["why"]
        assert "the 32.5 % at which skipping begins" in record["why"]


@pytest.mark.parametrize("name", ["STT", "STT-at-once"])
def test_without_a_limit_it_does_not_wait(ws, monkeypatch, name):
    answers(ws, PARENT, NOT)
    found = decide(ws, monkeypatch, METHODS[name])
    assert found == ["forward", "ratify", "forward", "ratify"]


def test_continued_comes_along_with_stt_and_before_it(ws):
    assert selected_methods(ws.config) == [PARENT, "continued", "STT"]


def test_a_row_that_is_not_trained_says_so(ws):
    with pytest.raises(UserError, match="holds no STT yet; run `cwt train --method STT"):
        chosen_student(ws, STT)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"choice_questions": -1}, "choice_questions must be at least 0, got -1"),
     ({"max_risk": -1.0}, "max_risk must be at least 0, got -1.0"),
     ({"ready_skill": 1.5}, "ready_skill must be between 0 and 1, got 1.5"),
     ({"accuracy_tolerance": -1.0}, "accuracy_tolerance must be at least 0, got -1.0")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SkipConfig(**options)


def test_the_report_says_what_was_chosen_and_why():
    import page_fixtures
    from cwt.report.table import as_markdown, notes

    report = page_fixtures.report()
    assert [line for line in notes(report) if "STT-round-2" in line] == ["STT skips: STT-round-2."]
    assert "\nSTT skips: STT-round-2.\n" in as_markdown(report)
