"""Rival judges against the same rule taken one unit and one unbatched pass at a time."""

import math
from dataclasses import replace

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.config import DataConfig, EvalConfig, RunConfig, SkipConfig, TrainConfig
from cwt.data.answers import extract_answer, same_answer
from cwt.data.marks import SKIP_MARK, with_skip_marks, with_stage_marks
from cwt.errors import UserError
from cwt.files import read_json, read_lines
from cwt.pipeline.methods import METHODS, selected_methods
from cwt.pipeline.run import run
from cwt.pipeline.workspace import Workspace
from cwt.skipping.controls import random_skips, skipped_share
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.rewriting import shortest_correct
from cwt.skipping.rivals import (
    first_units,
    last_units,
    least_perplexity_units,
    least_surprising_tokens,
    least_upset_units,
    lowest_entropy_units,
    matched_counts,
    matched_token_counts,
)
from cwt.students.tokenized import build_sequence

RIVALS = [m.name for m in METHODS.values() if m.matches or not m.in_default]
COUNTS = [3, 1, 0, 4, 2, 5]
NEAR = 1e-3  # nats; float32 in batches against float64 alone


def predictions(student, item, keep):
    """Returns {(unit, position): log-probabilities of all tokens}, float64, one unbatched pass."""
    row = build_sequence(item.keeping(frozenset(keep)))
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([row.ids])).logits[0].double()
    found, t = {}, len(item.prompt)
    for u in sorted(keep):
        for p in range(len(item.units[u])):
            found[u, p] = logits[t - 1].log_softmax(0)
            t += 1
    return found


def nll_of(student, item, keep, places):
    found = predictions(student, item, keep)
    return -sum(float(found[u, p][item.units[u][p]]) for u, p in places if (u, p) in found)


def value_places(student, item):
    last, marker = len(item.units) - 1, len(student.ids(" The answer is"))
    return [(last, p) for p in range(marker, len(item.units[last]) - 1)]


def follows_the_cheapest(student, some, found, decisions, cost):
    """Whether each unit that went was then the cheapest, and as many went as were to go."""
    for example, after, n in zip(some, found, COUNTS, strict=True):
        item, everything = student.tokenize(example), set(range(len(example.units)))
        order = [d for d in decisions if d.id == example.id and d.skipped]
        assert len(order) == n == len(everything - after.kept)
        assert {d.unit for d in order} == everything - after.kept
        keep = set(everything)
        for d in order:
            costs = {u: cost(item, keep - {u}) for u in keep & set(example.middle_units)}
            assert costs[d.unit] <= min(costs.values()) + NEAR
            assert d.score == pytest.approx(costs[d.unit], abs=NEAR)
            keep.remove(d.unit)
        stay = {d.unit for d in decisions if d.id == example.id and not d.skipped}
        assert stay == keep & set(example.middle_units)


def test_perplexity_leaves_out_what_raises_the_answers_perplexity_least():
    student, some = tiny(), examples(6)
    found, decisions = least_perplexity_units(student, some, COUNTS, batch_size=4)

    def cost(item, keep):
        return nll_of(student, item, keep, value_places(student, item))

    follows_the_cheapest(student, some, found, decisions, cost)


def test_forward_leaves_out_what_the_tokens_that_were_sure_miss_least():
    student, some = tiny(), examples(6)
    criterion = SkipCriterion(min_probability=0.6)
    found, decisions = least_upset_units(student, some, COUNTS, criterion, batch_size=4)
    sure = {}
    for example in some:
        item = student.tokenize(example)
        reference = predictions(student, item, range(len(example.units)))
        sure[example.id] = {
            (u, p): -float(row[item.units[u][p]])
            for (u, p), row in reference.items()
            if p and int(row.argmax()) == item.units[u][p] and row.max() >= math.log(0.6)
        }

    def cost(item, keep):
        left = {k: v for k, v in sure[item.example.id].items() if k[0] in keep}
        return nll_of(student, item, keep, left) - sum(left.values())

    follows_the_cheapest(student, some, found, decisions, cost)


def test_entropy_leaves_out_the_units_of_the_lowest_summed_entropy():
    student, some = tiny(), examples(6)
    found, decisions = lowest_entropy_units(student, some, COUNTS, batch_size=4)
    for example, after, n in zip(some, found, COUNTS, strict=True):
        item = student.tokenize(example)
        rows = predictions(student, item, range(len(example.units)))
        entropy = {
            u: sum(-float((row.exp() * row).sum()) for (v, _), row in rows.items() if v == u)
            for u in example.middle_units
        }
        gone = set(sorted(entropy, key=entropy.get)[:n])
        assert after.kept == set(range(len(example.units))) - gone
        for d in (d for d in decisions if d.id == example.id):
            assert d.skipped == (d.unit in gone)
            assert d.score == pytest.approx(entropy[d.unit], abs=NEAR)


def test_surprisal_takes_the_likeliest_tokens_of_the_middle_units():
    student, some = tiny(), examples(6)
    counts = matched_token_counts(student, last_units(some, COUNTS))
    found = least_surprising_tokens(student, some, counts, batch_size=4)
    for example, after, n in zip(some, found, counts, strict=True):
        item = student.tokenize(example)
        rows = predictions(student, item, range(len(example.units)))
        nll = {
            (u, p): -float(row[item.units[u][p]])
            for (u, p), row in rows.items()
            if u in example.middle_units
        }
        gone = set(sorted(nll, key=nll.get)[:n])
        texts = [
            student.text([t for p, t in enumerate(unit) if (u, p) not in gone])
            for u, unit in enumerate(item.units)
        ]
        assert list(after.units) == texts
        assert after.kept == {u for u, text in enumerate(texts) if text}
        assert (after.units[0], after.units[-1]) == (example.units[0], example.units[-1])


def test_the_first_and_the_last_units():
    (example,) = examples(1)
    last = len(example.units) - 1
    assert first_units([example], [3])[0].kept == {0} | set(range(4, last + 1))
    assert last_units([example], [3])[0].kept == set(range(last - 3)) | {last}
    assert last_units([example], [0])[0].kept == set(range(last + 1))


def test_counts_are_those_of_the_matched_row_or_add_up_to_a_share():
    some = examples(40)
    counts = [i % 4 for i in range(40)]
    shortened = random_skips(some, 0, counts)
    assert matched_counts(shortened) == counts
    middle = [len(e.middle_units) for e in some]
    for share in (0.2, 0.4, 0.6, 1.0):
        shared = matched_counts(shortened, share)
        assert sum(shared) == round(share * sum(middle))
        assert all(abs(n - share * m) <= 1 for n, m in zip(shared, middle, strict=True))
        assert skipped_share(last_units(some, shared)) == pytest.approx(
            share, abs=0.5 / sum(middle)
        )


def test_counts_in_tokens():
    student, some = tiny(), examples(5)
    shortened = last_units(some, [2, 0, 1, 3, 1])
    by_hand = [
        sum(len(student.ids(t)) for u, t in enumerate(e.units) if u not in e.kept)
        for e in shortened
    ]
    assert matched_token_counts(student, shortened) == by_hand
    middle = sum(len(student.ids(e.units[u])) for e in some for u in e.middle_units)
    assert sum(matched_token_counts(student, shortened, 0.4)) == round(0.4 * middle)


class Parrot:
    """A student that samples what it is told to: a list of texts for each question."""

    def __init__(self, texts):
        self.texts = {question: list(found) for question, found in texts.items()}

    def prompt(self, question):
        return (question,)

    def sample(self, prompts, max_new_tokens, temperature, seed):
        return [[*self.texts[p[0]].pop(0)] for p in prompts]

    def text(self, ids):
        return "".join(ids).removesuffix("$")

    def ended(self, ids):
        return ids[-1] == "$"


def test_the_shortest_right_sample_takes_the_place_of_the_rationale():
    a, b = (replace(e, answer="7") for e in examples(2))
    student = Parrot({
        a.question: [
            "One is here. Two are there. The answer is 7$", "One. The answer is 8$",
            "3 + 4 = 7. The answer is 7$", "The answer is 7",  # the last one is cut off
        ],
        b.question: ["The answer is 6$", "7$", "It is 7, I think. No. The answer is 1$", "So$"],
    })  # fmt: skip
    found, written = shortest_correct(student, [a, b], 4, 50, batch_size=3)
    assert written == 1
    assert found[0].units == ("3 + 4 = 7.", " The answer is 7")
    assert (found[0].question, found[0].kept_units, found[0].roles) == (a.question, None, None)
    assert found[1] == b


def test_sampling_follows_the_students_distribution_and_its_seed():
    student = tiny()
    prompts = [student.prompt(examples(1)[0].question)] * 200
    rows = student.sample(prompts, 1, 1.0, seed=3)
    assert rows == student.sample(prompts, 1, 1.0, seed=3) != student.sample(prompts, 1, 1.0, 4)
    with torch.no_grad():
        wanted = student.model(input_ids=torch.tensor([prompts[0]])).logits[0, -1].softmax(0)
    found = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=len(wanted)) / 200
    assert (found - wanted).abs().max() < 4 * math.sqrt(0.25 / 200)
    assert student.sample(prompts[:3], 4, 1e-4, 0) == student.generate(prompts[:3], 4)


def test_marks_stand_where_units_were_left_out():
    (example,) = examples(1)
    shorter = example.keeping(frozenset({0, 3, 4, 6, *range(8, len(example.units))}))
    (marked,) = with_skip_marks([shorter])
    assert marked.kept == shorter.kept
    for u in marked.kept:
        mark = SKIP_MARK if u in (3, 6, 8) else ""
        assert marked.units[u] == mark + example.units[u]


def test_every_stage_begins_with_its_number():
    (example,) = examples(1, chunks=3)
    (marked,) = with_stage_marks([example])
    assert example.chunks == 4
    for u, (text, plain) in enumerate(zip(marked.units, example.units, strict=True)):
        if u in example.boundaries:
            stage = example.boundaries.index(u) + 1
            assert text == (f"[{stage}] {plain}" if u == 0 else f" [{stage}]{plain}")
        else:
            assert text == plain


# Every row of the table that is no default, trained for a few steps


@pytest.fixture(scope="module")
def trained_rows(tmp_path_factory):
    config = RunConfig(
        methods=",".join(RIVALS), cpu=True,
        data=DataConfig(train_size=16, validation_size=4, test_size=4),
        train=TrainConfig(budget=300),
        skip=SkipConfig(rounds=2, ready_skill=0.0, matched_share=0.4, samples=2),
        eval=EvalConfig(max_new_tokens=12, latency_questions=0),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("rivals") / "r"
    return Workspace(config, out), run(config, out, jobs=1)


def test_every_rival_trains_and_stands_in_the_table(trained_rows):
    ws, report = trained_rows
    rows = {row["name"]: row for row in report["methods"]}
    assert set(RIVALS) <= set(rows) == set(selected_methods(ws.config))
    for row in rows.values():
        log = read_lines(ws.log(row["student"].removeprefix("students/")))
        assert log
        assert all(math.isfinite(line["loss"]) for line in log)
    for row in (rows[name] for name in rows if METHODS[name].skips not in (None, "none")):
        assert row["total_loss_tokens"] > rows["FTT-small-batch"]["total_loss_tokens"]
    # A sample of CWT reads all chunks before its own; one pass does not.
    read, bear = "total_processed_tokens", "total_loss_tokens"
    assert rows["CWT-one-pass"][read] < 1.5 * rows["CWT-one-pass"][bear]
    assert rows["CWT-stage-marks"][read] > 2.5 * rows["CWT-stage-marks"][bear]


def test_matched_rows_leave_out_the_configured_share(trained_rows):
    ws, report = trained_rows
    middle = sum(len(e.middle_units) for e in ws.examples("train"))
    rows = {row["name"]: row for row in report["methods"]}
    for method in METHODS.values():
        if method.is_matched and method.skips != "surprisal":
            assert rows[method.name]["skipped_share"] == round(0.4 * middle) / middle
    one, two = (ws.with_skips(ws.examples("train"), f"internalised-round-{r}") for r in (1, 2))
    for half, all_ in zip(one, two, strict=True):
        assert half.kept >= all_.kept
        gone = len(all_.units) - len(all_.kept)
        assert len(half.units) - len(half.kept) == round(0.5 * gone)


def test_rows_like_stt_train_on_what_it_was_trained_on(trained_rows):
    ws, _ = trained_rows
    kept = read_json(ws.skips(ws.student_of("STT")))["kept_units"]
    for name in ("STT-in-one-piece", "STT-mixed", "STT-skip-marks"):
        assert read_json(ws.skips(name))["kept_units"] == kept
    whole = ws.training_examples()
    marked = ws.with_skips(whole, "STT-skip-marks")
    assert marked == with_skip_marks(ws.with_skips(whole, "STT-in-one-piece"))


def test_sampled_rationales_are_right_or_the_teachers(trained_rows):
    ws, _ = trained_rows
    written = ws.with_skips(ws.training_examples(), "shortest-correct")
    for own, teacher in zip(written, ws.training_examples(), strict=True):
        assert own == teacher or same_answer(extract_answer(own.rationale), own.answer)


def test_a_configured_share_needs_no_stt(trained_rows):
    ws, _ = trained_rows
    config = replace(ws.config, methods="random-skips,truncation-skips")
    assert selected_methods(config) == ["FTT-small-batch", "random-skips", "truncation-skips"]
    matched = replace(config, skip=SkipConfig())
    assert "STT" in selected_methods(matched)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"matched_share": 1.5}, "matched_share must be between 0 and 1, got 1.5"),
     ({"samples": 0}, "samples must be at least 1, got 0"),
     ({"sample_temperature": 0.0}, "sample_temperature must be greater than 0, got 0.0")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SkipConfig(**options)
