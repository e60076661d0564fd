"""The matrix of a real student: its order, one cell, decoding by graphs, figures and pages."""

import json
import tarfile

import cwt
import page
import page_figure
import page_tables
import pytest
import real
import real_cell
import real_collect
import real_decode
from cwt.config import RunConfig, TrainConfig
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.files import read_json
from cwt.students.causal import CausalStudent
from page_figure import Point
from real_cell import Cell, Settings
from real_numbers import Results, load, stt_ends_with


@pytest.fixture
def data(tmp_path):
    """A folder with one task of Fine-tune-CoT: additions, of which the teacher gets one wrong."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {}
    for i in range(40):
        said = i + 3 + (i == 5)
        rows[str(i)] = [
            {
                "sample_index": i,
                "completion_index": 0,
                "question": f"Ann has {i} nuts and finds 3. How many has she?",
                "answer": str(i + 3),
                "reasoning_completion": f"Ann has {i} nuts.\nShe finds 3.\n{i} + 3 = {said}.",
                "completion": f" {said}.",
            }
        ]
    (folder / "nuts.json").write_text(json.dumps({"metadata": {}, "data": rows}))
    parts = {"train": list(range(30)), "test": list(range(30, 40))}
    (folder / "nuts.split.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def settings(data, tmp_path, monkeypatch):
    # A cell has a process of its own, which it sets up; this one stays as it is.
    monkeypatch.setattr(real_cell, "prepare", lambda settings: None)
    return Settings(
        data=data, student="tiny", work=tmp_path / "work", epochs=0.5, batch=4, max_new_tokens=8,
        sizes=(12, 4, 6), cpu=True,
    )  # fmt: skip


def test_the_matrix_begins_with_two_seeds_of_the_main_rows():
    main, first, second = ("FTT", "CWT"), ("answer-only",), ("literal-skips", "STT")
    cells = real.matrix(["a", "b"], [0, 1, 2], main, [first, second], 1e-4)
    expected = [
        *(("rows", task, seed, main) for seed in (0, 1) for task in "ab"),
        *(("rows", task, 0, first) for task in "ab"),
        *(("long", task, 0, ("FTT",)) for task in "ab"),
        *(("rows", task, 2, main) for task in "ab"),
        *(
            (kind, task, seed, rows)
            for seed in (1, 2)
            for kind, rows in (("rows", first), ("long", ("FTT",)))
            for task in "ab"
        ),
        *(("rows", task, seed, second) for seed in (0, 1, 2) for task in "ab"),
    ]
    assert [(c.kind, c.task, c.seed, c.rows) for c in cells] == expected
    assert len(real.matrix(["a"], [0], ["FTT"], [()], 1e-4)) == 1


def test_rows_come_after_those_that_they_need():
    config = RunConfig(train=TrainConfig(parent="FTT"))
    order = real_cell.in_order(["random-skips", "CWT"], config)
    assert order.index("FTT") < order.index("STT") < order.index("random-skips")
    assert order[-1] == "CWT"


def test_a_cell_trains_its_rows_keeps_the_parent_and_does_nothing_twice(settings, capsys):
    cell = Cell("rows", "nuts", 0, 1e-3, ("FTT", "CWT", "continued"))
    assert not real_cell.is_done(cell, settings)
    real_cell.run_cell(cell, settings)
    assert real_cell.is_done(cell, settings)
    out = settings.work / "nuts-0"
    report = read_json(out / "report.json")
    assert {row["name"] for row in report["methods"]} == {"FTT", "CWT", "continued"}
    assert report["data"]["dropped"]["rationale contradicts the gold answer"] == 1
    assert [p.parent.name for p in out.glob("students/*/*.safetensors")] == ["FTT"]
    # Three units and the answer: four chunks a rationale, so a step of CWT has four times as many.
    assert report["config"]["train"]["chunk_batch_size"] == 4 * settings.batch
    capsys.readouterr()
    real_cell.run_cell(cell, settings)
    assert capsys.readouterr().out == ""


def test_stt_does_not_train_the_rounds_of_stt_at_once_again(settings):
    real_cell.run_cell(Cell("rows", "nuts", 0, 1e-3, ("STT-at-once", "STT")), settings)
    out = settings.work / "nuts-0"
    rounds = sorted(out.glob("students/STT-at-once-round-*/train.json"))
    assert len(rounds) == 4
    for path in rounds:
        name = path.parent.name.replace("-at-once", "")
        assert path.samefile(path.parent.with_name(name) / "train.json")
    (run,) = real_collect.collect([settings.work])["runs"]
    rows = {row["name"]: row for row in run["rows"]}
    ended = stt_ends_with(run)
    assert ended == run["choices"]["STT"]["student"]
    same = rows.get(ended, rows["STT-at-once"])
    assert (rows["STT"]["right"], rows["STT"]["tokens"]) == (same["right"], same["tokens"])
    # What the page computes, for all runs alike, is what a run gives that asks for STT.
    path = settings.work / "results.json"
    path.write_text(json.dumps({"runs": [run]}))
    found = load(path)
    assert found.found["runs"][0]["ended_with"] == ended
    computed = found.rows["nuts", 0, "STT"]
    for key in ("right", "total_loss_tokens", "total_processed_tokens", "skip_seconds"):
        assert computed[key] == pytest.approx(rows["STT"][key]), key


def test_long_training_processes_as_many_tokens_as_cwt(settings):
    real_cell.run_cell(Cell("rows", "nuts", 0, 1e-3, ("FTT", "CWT")), settings)
    real_cell.run_cell(Cell("long", "nuts", 0, 1e-3, ("FTT",)), settings)
    spent = [
        read_json(settings.work / run / "students" / row / "train.json")["processed_tokens"]
        for run, row in (("nuts-0", "CWT"), ("nuts-0-long", "FTT"))
    ]
    assert spent[0] <= spent[1] < spent[0] + 4 * 200  # at most a step more
    results = settings.work.parent / "results"
    real.pack(settings.work, results)
    with tarfile.open(results / "seed-0.tar.gz") as tar:
        names = tar.getnames()
    assert "nuts-0/evals/CWT.jsonl" in names
    assert "nuts-0-long/report.json" in names
    assert not [name for name in names if name.endswith(".safetensors")]
    found = real_collect.collect([settings.work])
    rows = {(run["long"], row["name"]): row for run in found["runs"] for row in run["rows"]}
    assert set(rows) == {(False, "FTT"), (False, "CWT"), (True, "FTT-long")}
    for row in rows.values():
        assert len(row["right"]) == len(row["tokens"]) == 6
        assert row["right"].count("1") / 6 == row["accuracy"]


class Sweep:
    """Gives every run of a sweep the accuracy of its learning rate and adapters."""

    def __init__(self, accuracies, out):
        self.accuracies, self.out = accuracies, out

    def run(self, cells):
        for cell in cells:
            path = self.out / cell.folder / "evals" / "FTT-validation.json"
            path.parent.mkdir(parents=True)
            accuracy = self.accuracies[cell.learning_rate, cell.lora]
            figures = {"accuracy": accuracy, "questions": 50, "generated_tokens": 9.0}
            path.write_text(json.dumps(figures))


def test_the_learning_rate_is_the_best_on_validation_and_its_runs_are_kept(settings):
    out = settings.work
    accuracies = {(1e-4, ""): 0.5, (3e-4, ""): 0.7, (1e-3, ""): 0.7, (1e-3, "r=4"): 0.6}
    sweep = Sweep(accuracies, out)
    chosen = real.choose_training(sweep, ["a", "b"], 0, list(accuracies), out)
    assert chosen == (3e-4, "")  # the first of equals
    assert (out / "a-0" / "evals").is_dir()
    assert not (out / "sweep" / "a-0-0.0003").exists()
    assert (out / "sweep" / "a-0-0.001").is_dir()
    assert (out / "sweep" / "b-0-0.001-lora").is_dir()
    assert real.choose_training(None, [], 0, [(1.0, ""), (2.0, "")], out) == (3e-4, "")  # once


def test_adapters_are_chosen_where_they_answer_better(settings):
    out = settings.work
    accuracies = {(1e-3, ""): 0.2, (1e-3, "r=4"): 0.8, (3e-3, "r=4"): 0.8}
    rate, lora = real.choose_training(Sweep(accuracies, out), ["a"], 0, list(accuracies), out)
    assert (rate, lora) == (1e-3, "r=4")
    (cell,) = real.matrix(["a"], [0], ["FTT"], [()], rate, lora)
    assert real_cell.run_config(cell, settings).lora == "r=4"
    assert (out / cell.folder / "evals").is_dir()


def test_decoding_writes_what_the_library_writes(monkeypatch):
    monkeypatch.setattr(real_decode, "STAGE", 20)  # rows leave and go on in several stages
    student = cwt.load_student("tiny")
    assert isinstance(student, CausalStudent)
    questions = [cwt.generate_examples(task, [3], 0)[0] for task in ("arithmetic", "letters")]
    prompts = [student.prompt(e.question) for some in questions for e in some]
    assert len({len(p) for p in prompts}) > 1
    written = real_decode.generate(student, prompts, 50)
    assert written == student.generate(prompts, 50)
    assert real_decode.agreement(student, prompts, 50) == 1.0


def test_the_sign_is_that_no_earlier_sentence_holds_the_answer():
    units = ("2 nuts and 3.", " That is 5.", " So 15 is wrong.", " The answer is 5")
    example = Example("a", "How many?", units, "5.0")
    assert not real_collect.underived(example)
    assert real_collect.underived(example.keeping(frozenset({0, 2, 3})))
    assert not real_collect.underived(example.keeping(frozenset({0, 1, 3})))


def test_stt_ends_with_what_the_rule_of_today_gives():
    def ends(rounds, max_risk=100, **whole):
        names = [f"STT-at-once-round-{i + 1}" for i in range(len(rounds))]
        right = dict(zip(names, rounds, strict=True)) | whole
        answers = {
            name: {"validation": "1" * n + "0" * (20 - n), "tokens": tokens}
            for name, (n, tokens) in right.items()
        }
        rows = [{"name": name} for name in ("FTT", "continued", "STT-at-once")]
        found = {"rows": rows, "rounds": [{"name": n} for n in names], "answers": answers}
        return stt_ends_with(found, max_risk)

    three = [(10, 80), (12, 70), (12, 60)]
    assert ends(three, continued=(12, 9), FTT=(2, 9)) == "STT-at-once-round-3"
    assert ends(three, continued=(14, 9), FTT=(2, 9)) == "continued"
    assert ends(three, continued=(14, 9), FTT=(16, 9)) == "FTT"
    assert ends(three, continued=(2, 9)) == "STT-at-once-round-3"
    assert ends(three, FTT=(18, 9)) is None
    assert ends(three, 5, continued=(12, 9), FTT=(2, 9)) == "continued"  # 10 points of 20 questions


def results():
    """Two seeds of FTT and CWT on one task, one seed on another; by hand."""

    def row(name, right, tokens):
        return {"name": name, "right": right, "tokens": tokens, "skipped_share": None}

    return Results(
        {
            "runs": [
                {"task": "coin_flip", "seed": 0, "rows": [
                    row("FTT", "1100", [10, 10, 10, 10]), row("CWT", "1111", [5, 5, 5, 5])]},
                {"task": "coin_flip", "seed": 1, "rows": [
                    row("FTT", "0000", [10, 10, 10, 10]), row("CWT", "1010", [10, 10, 10, 10])]},
                {"task": "svamp", "seed": 0, "rows": [
                    row("FTT", "11", [4, 4]), row("CWT", "00", [2, 2])]},
            ]
        }
    )  # fmt: skip


def test_figures_are_means_over_seeds_then_tasks():
    found = results()
    assert found.tasks == ["svamp", "coin_flip"]
    assert found.names == ["FTT", "CWT"]
    assert found.accuracy("coin_flip", "FTT").value == 25
    assert found.accuracy("coin_flip", "answer-only") is None
    assert found.tokens("coin_flip", "CWT") == 7.5
    difference = found.difference(["coin_flip"], "CWT", "FTT")
    assert (difference.value, difference.seeds) == (50, 2)
    low, high = difference.interval
    assert 0 <= low < 50 < high <= 100
    both = found.difference(found.tasks, "CWT", "FTT")
    assert (both.value, both.seeds) == ((50 - 100) / 2, 3)
    assert found.difference(["svamp"], "CWT", "FTT").interval == (-100, -100)
    assert found.shorter(found.tasks, "CWT", "FTT") == pytest.approx(-100 * (0.5 + 0 + 0.5) / 3)


def test_the_figure_has_a_mark_for_every_point_where_it_belongs():
    svg = page_figure.figure([("one <", [Point("FTT", 50, 100), Point("new row", 100, 0)])])
    assert "one &lt;" in svg
    left, right = page_figure.LEFT, page_figure.WIDTH - page_figure.RIGHT
    end = 120  # the least multiple of a round step above 100
    x = left + 50 / end * (right - left)
    assert f'cx="{x:.1f}" cy="{page_figure.TOP:.1f}"' in svg
    assert f'cy="{page_figure.HEIGHT - page_figure.BOTTOM:.1f}"' in svg
    assert svg.count("<circle") == 4  # two points, two of the legend


def test_a_page_gets_its_tables_between_the_marks(monkeypatch):
    monkeypatch.setattr(page, "tables", lambda: {"x": lambda: ["| a |", "|---|"]})
    text = "before\n<!-- table: x -->\nold\n<!-- end -->\nafter\n"
    once = page.filled(text)
    assert once == "before\n<!-- table: x -->\n\n| a |\n|---|\n\n<!-- end -->\nafter\n"
    assert page.filled(once) == once
    with pytest.raises(UserError, match="wanted one of x, got 'y'"):
        page.filled("<!-- table: y -->\n<!-- end -->")


def test_differences_name_the_runs_behind_them():
    lines = page_tables.differences_table(results(), [("CWT", "FTT"), ("STT", "FTT")])
    assert len(lines) == 3  # no row for STT, which was not run
    assert "-25.0" in lines[2]
    assert "+50.0" in lines[2]
    assert "-100.0 (-100.0 to -100.0)" in lines[2]


@pytest.mark.parametrize("path", page.PAGES, ids=lambda p: p.parent.name)
def test_the_pages_say_what_the_results_say(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- table:" in text
    assert page.filled(text) == text
