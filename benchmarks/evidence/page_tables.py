"""The tables of the evidence pages, as Markdown lines, from the files of results."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import readiness
import rivals_tables
import traces
from cwt.files import read_json
from cwt.report.table import markdown_table
from page_figure import Point
from real_cell import AT_ONCE
from real_numbers import REAL, TASKS, Mean, Results, load, validation_accuracy

HERE = REAL.parent
SWEEPS = ("arithmetic", "objects", "coin", "letters")  # equal loss tokens; a task each
PAGES = (*SWEEPS, "coin-100k", "processed", "dropout")
CUT = "rationale was cut off"
WRONG = "rationale contradicts the gold answer"
PAIRS = (
    ("CWT", "FTT"), ("CWT", "FTT-long"), ("CWT-one-pass", "FTT"), ("CWT-one-pass", "CWT"),
    ("FTT", "answer-only"), ("continued", "FTT"), (AT_ONCE, "continued"), ("STT", "continued"),
    (AT_ONCE, "random-skips"), (AT_ONCE, "FTT"), ("STT-in-one-piece", "continued"),
    ("STT-skip-marks", "continued"), ("STT-in-one-piece", AT_ONCE),
    ("STT-skip-marks", "STT-in-one-piece"),
)  # fmt: skip


def sweep(name: str) -> dict[str, Any]:
    """Returns the contents of a sweep's file."""
    found: dict[str, Any] = read_json(HERE / f"{name}.json")
    return found


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _thousands(value: float | None) -> str:
    return "-" if value is None else f"{value / 1000:,.0f}"


def data_table(found: Results) -> list[str]:
    """Returns what each task's files hold, and what was dropped."""
    titles = ["task", "rationales read for training", "teacher wrong, dropped", "cut off, dropped",
              "training", "validation", "test", "tokens a rationale", "chunks"]  # fmt: skip
    rows = []
    for task in found.tasks:
        run = next(r for r in found.found["runs"] if r["task"] == task)
        data, dropped = run["data"], run["data"]["dropped"]
        other = sum(n for reason, n in dropped.items() if "part 'train'" in reason)
        rows.append(
            [
                TASKS[task],
                str(data["rationales_read"] - other),
                str(dropped.get(WRONG, 0)),
                str(dropped.get(CUT, 0)),
                *(str(data[part]) for part in ("train", "validation", "test")),
                f"{run['tokens_per_epoch'] / data['train']:.0f}",
                f"{run['chunks']['ac']['chunks']:.1f}",
            ]
        )
    return markdown_table(titles, rows)


def by_task(
    found: Results, value: Callable[[str, str], str], names: Sequence[str] = ()
) -> list[str]:
    """Returns a table with a row a method and a column a task."""
    rows = []
    for name in names or found.names:
        cells = [value(task, name) for task in found.tasks]
        rows.append([f"`{name}`", *cells])
    return markdown_table(["row", *(TASKS[task] for task in found.tasks)], rows)


def accuracy_table(found: Results) -> list[str]:
    """Returns the accuracy of every row on every task, with the number of seeds."""

    def cell(task: str, name: str) -> str:
        mean = found.accuracy(task, name)
        return f"{mean} [{mean.seeds}]" if mean else "-"

    return by_task(found, cell)


def tokens_table(found: Results) -> list[str]:
    """Returns the tokens that every row writes for a question."""

    def cell(task: str, name: str) -> str:
        tokens = found.tokens(task, name)
        return "-" if tokens is None else f"{tokens:.0f}"

    return by_task(found, cell)


def differences_table(found: Results, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[str]:
    """Returns paired differences in points: of all tasks together, and of each."""
    rows = []
    for a, b in pairs:
        mean = found.difference(found.tasks, a, b)
        if mean is None:
            continue
        tokens = found.shorter(found.tasks, a, b)
        each = [found.difference([task], a, b) for task in found.tasks]
        cells = [d.signed if d else "-" for d in each]
        label = f"`{a}` against `{b}`"
        rows.append([label, mean.signed, f"{tokens:+.0f} %", str(mean.seeds), *cells])
    titles = ["", "points, all tasks", "tokens", "runs", *(TASKS[task] for task in found.tasks)]
    return markdown_table(titles, rows)


def costs_table(found: Results) -> list[str]:
    """Returns what a row costs on the GPU, the mean over tasks and seeds, all training counted."""
    on_gpu = [run for run in found.found["runs"] if not run["config"]["cpu"]]
    found = Results({**found.found, "runs": on_gpu})
    keys = ("total_optimizer_steps", "total_loss_tokens", "total_processed_tokens")
    rows = []
    for name in found.names:
        steps, loss, processed = (_over_tasks(found, name, key) for key in keys)
        train = _over_tasks(found, name, "total_train_seconds")
        skip = _over_tasks(found, name, "skip_seconds")
        cells = [f"{steps:,.0f}", _thousands(loss), _thousands(processed)]
        rows.append([f"`{name}`", *cells, f"{train:.0f}", f"{skip:.0f}"])
    titles = ["row", "steps", "loss tokens, thousands", "processed tokens, thousands",
              "s of training", "s of deciding"]  # fmt: skip
    return markdown_table(titles, rows)


def _over_tasks(found: Results, name: str, key: str) -> float:
    values = [v for task in found.tasks if (v := found.mean(task, name, key)) is not None]
    return float(np.mean(values))


def skips_table(found: Results) -> list[str]:
    """Returns for every run what the parent had learned, what was skipped, and what came of it."""
    rows = []
    for run in found.found["runs"]:
        key = (run["task"], run["seed"])
        if run["long"] or (*key, AT_ONCE) not in found.rows:
            continue
        at_once, parent = found.rows[(*key, AT_ONCE)], validation_accuracy(run, "FTT")
        ended = (run["ended_with"] or "-").replace(AT_ONCE, "STT").removeprefix("STT-")
        rows.append(
            [
                TASKS[run["task"]],
                str(run["seed"]),
                _percent(parent),
                _percent(at_once["skipped_share"]),
                _percent(run["left_out"]["sign"] / run["left_out"]["rationales"]),
                *(_cell(found, key, name) for name in ("FTT", "continued", AT_ONCE, "STT")),
                "the parent" if ended == "FTT" else ended,
            ]
        )
    titles = ["task", "seed", "parent on validation %", "skipped by STT-at-once %",
              "with the sign %", "`FTT` %, tokens", "`continued`", "`STT-at-once`", "`STT`",
              "STT ends with"]  # fmt: skip
    return markdown_table(titles, rows)


def rounds_table(found: Results) -> list[str]:
    """Returns the rounds of STT-at-once on validation questions, of runs that were cut too."""
    rows = []
    for run in found.found["runs"]:
        cells = [_percent(validation_accuracy(run, name)) for name in ("FTT", "continued")]
        for number, r in enumerate(run["rounds"], 1):
            share, tokens = _percent(r["skipped_share"]), f"{r['generated_tokens']:.0f}"
            own = [r["judge"], share, _percent(r["accuracy"]), tokens]
            rows.append([TASKS[run["task"]], str(run["seed"]), str(number), *own, *cells])
    titles = ["task", "seed", "round", "who decides", "skipped %", "validation %", "tokens",
              "`FTT` %", "`continued` %"]  # fmt: skip
    return markdown_table(titles, rows)


def _cell(found: Results, key: tuple[str, int], name: str) -> str:
    row = found.rows.get((*key, name))
    return f"{100 * row['accuracy']:.1f}, {row['generated_tokens']:.0f}" if row else "-"


def rate_table(found: Results) -> list[str]:
    """Returns the validation accuracy of each way to train; the choice is bold."""
    sweep = found.found["learning_rate"]
    if sweep is None:
        return ["One learning rate was given; nothing was chosen."]
    tasks = list(dict.fromkeys(run["task"] for run in sweep["runs"]))
    accuracy: dict[tuple[str, str, float], dict[str, float]] = {}
    for run in sweep["runs"]:
        way = (run["lora"], run["device"], run["rate"])
        accuracy.setdefault(way, {})[run["task"]] = run["accuracy"]
    chosen = (sweep["lora"], sweep["runs"][0]["device"], sweep["chosen"])
    rows = []
    for (lora, device, rate), each in accuracy.items():
        bold = "**" if (lora, device, rate) == chosen else ""
        trained = f"LoRA, {lora.replace(',', ', ')}" if lora else "all weights"
        cells = [_percent(each.get(task)) for task in tasks]
        rows.append([trained, device, f"{bold}{rate:g}{bold}", *cells])
    head = ["trained", "on", "learning rate", *(f"{TASKS[t]} %" for t in tasks)]
    return markdown_table(head, rows)


def cwt_table(found: Results) -> list[str]:
    """Returns CWT against its controls, on generated and real tasks."""
    rows = []
    for name in (*SWEEPS, "processed"):
        page = sweep(name)
        for task in page["tasks"]:
            cells = [_sweep_difference(page, task, "CWT", b) for b in ("FTT", "FTT-small-batch")]
            label = f"{task}, equal processed tokens" if name == "processed" else task
            rows.append([label, str(len(page["seeds"])), *cells, "-"])
    for task in (*found.tasks, ""):
        tasks = [task] if task else found.tasks
        short, long = (found.difference(tasks, "CWT", b) for b in ("FTT", "FTT-long"))
        if short is None:
            continue
        label = TASKS[task] if task else "**real tasks together**"
        rows.append([label, str(short.seeds), short.signed, "-", long.signed if long else "-"])
    titles = ["task", "runs", "against FTT, equal loss tokens", "against FTT-small-batch",
              "against FTT, equal processed tokens"]  # fmt: skip
    return markdown_table(titles, rows)


def _sweep_difference(page: dict[str, Any], task: str, a: str, b: str) -> str:
    for d in page["differences"]:
        if (d["task"], d["a"], d["b"]) == (task, a, b):
            low, high = d["accuracy_interval"]
            interval = (100 * low, 100 * high)
            return Mean(100 * d["accuracy"], interval, len(page["seeds"])).signed
    return "-"


def harm_table(found: Results) -> list[str]:
    """Returns STT against the same training without skips, on every page and real task."""
    rows = []
    for name in PAGES:
        page = sweep(name)
        for task in page["tasks"]:
            summary = {s["name"]: s for s in page["summary"] if s["task"] == task}
            stt, base = summary["STT"], summary["continued"]
            tokens = 100 * (stt["generated_tokens"] / base["generated_tokens"] - 1)
            label = f"{task} ([{name}]({name}.md))"
            cells = [f"{100 * base['accuracy']:.1f}", f"{100 * stt['accuracy']:.1f}"]
            difference = _sweep_difference(page, task, "STT", "continued")
            rows.append([label, str(len(page["seeds"])), *cells, difference, f"{tokens:+.0f} %"])
    for task in found.tasks:
        for name in (AT_ONCE, "STT"):
            d = found.difference([task], name, "continued")
            if d is None:
                continue
            label = f"{TASKS[task]} ([real](real/README.md)), {name}"
            base_mean, own = found.accuracy(task, "continued"), found.accuracy(task, name)
            assert base_mean is not None
            assert own is not None
            shorter = found.shorter([task], name, "continued")
            cells = [f"{base_mean.value:.1f}", f"{own.value:.1f}"]
            rows.append([label, str(d.seeds), *cells, d.signed, f"{shorter:+.0f} %"])
    titles = ["task", "seeds", "`continued` %", "STT %", "points", "tokens"]
    return markdown_table(titles, rows)


def skipped_table() -> list[str]:
    """Returns what the judges skip of generated rationales, whose sentences are labelled."""
    rows = []
    for name, label in (("STT", "STT (`forward`, ratified)"), ("literal-skips", "`literal`")):
        for task in SWEEPS:
            summary = {s["name"]: s for s in sweep(task)["summary"]}
            rates = summary[name]["removal_rates"]
            cells = [_percent(rates.get(r)) for r in ("core", "spare", "restate", "filler")]
            rows.append([label, task, *cells])
    titles = ["judge", "task", "needed steps %", "steps from which nothing follows %",
              "restatements %", "filler %"]  # fmt: skip
    return markdown_table(titles, rows)


def judges_table() -> list[str]:
    """Returns accuracy and tokens of those who decide what goes, on generated tasks."""
    rows = []
    for name in ("continued", "STT", "oracle-skips", "random-skips", "literal-skips"):
        cells = []
        for task in SWEEPS:
            s = {s["name"]: s for s in sweep(task)["summary"]}[name]
            cells.append(f"{100 * s['accuracy']:.1f}, {s['generated_tokens']:.0f}")
        rows.append([f"`{name}`", *cells])
    return markdown_table(["row", *SWEEPS], rows)


def rivals_table(found: Results) -> list[str]:
    """Returns every rival against random skips and against STT-at-once, on real tasks together."""
    names = [n for n in found.names if n.endswith("-skips") or n in RIVALS]
    rows = []
    for name in names:
        random = found.difference(found.tasks, name, "random-skips")
        ours = found.difference(found.tasks, name, AT_ONCE)
        plain = found.difference(found.tasks, name, "continued")
        if plain is None:
            continue
        tokens = found.shorter(found.tasks, name, "continued")
        cells = [d.signed if d and name != b else "-"
                 for d, b in ((plain, ""), (random, "random-skips"), (ours, AT_ONCE))]  # fmt: skip
        rows.append([f"`{name}`", str(plain.seeds), *cells, f"{tokens:+.0f} %"])
    titles = ["row", "runs", "points against `continued`", "against `random-skips`",
              "against `STT-at-once`", "tokens against `continued`"]  # fmt: skip
    return markdown_table(titles, rows)


GENERATED_RIVALS = ("coin", "arithmetic", "objects", "stock")
TRAINED = GENERATED_RIVALS[:3]  # tasks on which the ways to train were run


def generated_rivals(task: str) -> list[dict[str, Any]]:
    """Returns the rows of rivals.py on a generated task."""
    found: list[dict[str, Any]] = read_json(HERE / f"rivals-{task}.json")
    return found


def generated_rivals_table(task: str) -> list[str]:
    """Returns the table of a generated task for every share of skips, a heading above each."""
    rows = generated_rivals(task)
    lines: list[str] = []
    for share in sorted({row["share"] for row in rows}):
        title = rivals_tables.title(share)
        lines += [f"*{task}, {title}*", "", *rivals_tables.table(rows, task, share), ""]
    return lines[:-1]


def generated_training_table(task: str) -> list[str]:
    """Returns the ways to train on a generated task."""
    return rivals_tables.training_table(generated_rivals(task), task)


def encoder_decoder_table() -> list[str]:
    """Returns what rivals.py gave with a T5 of random weights."""
    return rivals_tables.methods_table(read_json(HERE / "encoder-decoder.json"), "coin")


def readiness_table(file: str = "readiness.json") -> list[str]:
    """Returns the cells that readiness.py ran."""
    return readiness.cell_lines(read_json(HERE / file))


def rules_table() -> list[str]:
    """Returns what every rule would have given in these cells."""
    return readiness.rule_lines(read_json(HERE / "readiness.json"))


def questions_table() -> list[str]:
    """Returns how good the choice is by how many questions are asked, in these cells."""
    return readiness.question_lines(read_json(HERE / "readiness.json"))


def traces_table() -> list[str]:
    """Returns the runs of traces.py."""
    return traces.cell_lines(read_json(HERE / "traces.json"))


def traces_kinds_table() -> list[str]:
    """Returns what every round of them left out."""
    return traces.kind_lines(read_json(HERE / "traces.json"))


RIVALS = (AT_ONCE, "surprisal-tokens", "internalised", "shortest-correct")


def panels(found: Results) -> list[tuple[str, list[Point]]]:
    """Returns the panels of the figure: generated tasks, then real ones."""
    result = []
    for name in SWEEPS:
        page = sweep(name)
        shown = [s for s in page["summary"] if not s["name"].startswith(("CWT-", "STT-"))]
        points = [Point(s["name"], s["generated_tokens"], 100 * s["accuracy"]) for s in shown]
        result.append((f"{name} (generated)", points))
    for task in found.tasks:
        points = []
        for name in found.names:
            mean, tokens = found.accuracy(task, name), found.tokens(task, name)
            if mean and tokens is not None:
                points.append(Point(name, tokens, mean.value))
        result.append((f"{TASKS[task]} (real)", points))
    return result


def tables() -> dict[str, Callable[[], list[str]]]:
    """Returns every table by the name that the pages give it."""
    found = load()
    return {
        "real-data": lambda: data_table(found),
        "real-accuracy": lambda: accuracy_table(found),
        "real-tokens": lambda: tokens_table(found),
        "real-differences": lambda: differences_table(found),
        "real-costs": lambda: costs_table(found),
        "real-skips": lambda: skips_table(found),
        "real-rounds": lambda: rounds_table(found),
        "real-rate": lambda: rate_table(found),
        "cwt": lambda: cwt_table(found),
        "harm": lambda: harm_table(found),
        "skipped": skipped_table,
        "judges": judges_table,
        "rivals": lambda: rivals_table(found),
        **{f"rivals-{t}": partial(generated_rivals_table, t) for t in GENERATED_RIVALS},
        "readiness": readiness_table,
        "readiness-fresh": lambda: readiness_table("readiness-fresh.json"),
        "readiness-rules": rules_table,
        "readiness-questions": questions_table,
        "encoder-decoder": encoder_decoder_table,
        "traces": traces_table,
        "traces-kinds": traces_kinds_table,
        **{f"training-{t}": partial(generated_training_table, t) for t in TRAINED},
        "training-together": lambda: rivals_tables.together_table(
            {task: generated_rivals(task) for task in TRAINED}
        ),
    }
