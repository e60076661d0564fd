"""What real/results.json says: means, intervals, paired differences over seeds and tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cwt.config import SkipConfig
from cwt.files import read_json
from cwt.pipeline.choice import Answers, admitted, best_candidate
from cwt.pipeline.methods import CONTINUED
from real_cell import AT_ONCE, PARENT

REAL = Path(__file__).parent / "real"
DRAWS = 4000
TASKS = {  # file: name on the pages
    "last_letter_concatenation": "last letters",
    "date_understanding": "date",
    "multiarith": "MultiArith",
    "svamp": "SVAMP",
    "coin_flip": "coin flip",
    "tracking_shuffled_objects": "tracking",
    "addsub": "AddSub",
    "single_eq": "SingleEq",
    "strategy_qa": "StrategyQA",
}
ROWS = (  # in the order of the pages
    "answer-only", "FTT", "FTT-long", "CWT", "CWT-one-pass", "continued", "STT", "STT-at-once",
    "STT-in-one-piece", "STT-skip-marks", "random-skips", "truncation-skips", "perplexity-skips",
    "entropy-skips", "forward-skips", "literal-skips", "surprisal-tokens", "internalised",
    "shortest-correct",
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval, by bootstrap over seeds, then questions.

    Attributes:
        value: the mean over tasks, seeds and questions, in points.
        interval: in points.
        seeds: how many runs stand behind it.
    """

    value: float
    interval: tuple[float, float]
    seeds: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1f} ({low:.1f} to {high:.1f})"

    @property
    def signed(self) -> str:
        """The mean with its sign, for differences."""
        low, high = self.interval
        return f"{self.value:+.1f} ({low:+.1f} to {high:+.1f})"


class Results:
    """What results.json holds, by task, seed and row.

    Args:
        found: the contents of the file.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.rows: dict[tuple[str, int, str], dict[str, Any]] = {
            (run["task"], run["seed"], row["name"]): row
            for run in found["runs"]
            for row in run["rows"]
        }
        present = {task for task, _, _ in self.rows}
        self.tasks = [task for task in TASKS if task in present]
        self.seeds = sorted({seed for _, seed, _ in self.rows})
        self.names = [name for name in ROWS if any(name == row for _, _, row in self.rows)]

    def of(self, task: str, name: str) -> list[dict[str, Any]]:
        """Returns a row of a task under every seed that has it."""
        keys = [(task, seed, name) for seed in self.seeds]
        return [self.rows[key] for key in keys if key in self.rows]

    def accuracy(self, task: str, name: str) -> Mean | None:
        """Returns the accuracy of a row on a task."""
        rows = self.of(task, name)
        return _mean([[_right(row) for row in rows]]) if rows else None

    def tokens(self, task: str, name: str) -> float | None:
        """Returns the mean number of tokens that a row writes for a question."""
        rows = self.of(task, name)
        return float(np.mean([np.mean(row["tokens"]) for row in rows])) if rows else None

    def mean(self, task: str, name: str, key: str) -> float | None:
        """Returns the mean over the seeds of a figure of a row."""
        found = [row[key] for row in self.of(task, name) if row[key] is not None]
        return float(np.mean(found)) if found else None

    def difference(self, tasks: Sequence[str], a: str, b: str) -> Mean | None:
        """Returns a - b in accuracy, on the same questions and seeds, the mean of some tasks."""
        pairs = [
            [_right(x) - _right(y) for x, y in self._pairs(task, a, b)]
            for task in tasks
            if self._pairs(task, a, b)
        ]
        return _mean(pairs) if pairs else None

    def shorter(self, tasks: Sequence[str], a: str, b: str) -> float | None:
        """Returns by which share a writes fewer tokens than b (negative: fewer), in percent."""
        found = [
            np.mean(x["tokens"]) / np.mean(y["tokens"]) - 1
            for task in tasks
            for x, y in self._pairs(task, a, b)
        ]
        return 100 * float(np.mean(found)) if found else None

    def _pairs(self, task: str, a: str, b: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        keys = [((task, seed, a), (task, seed, b)) for seed in self.seeds]
        return [(self.rows[x], self.rows[y]) for x, y in keys if x in self.rows and y in self.rows]


def _right(row: dict[str, Any]) -> np.ndarray:
    return np.array([mark == "1" for mark in row["right"]], dtype=float)


def _mean(tasks: Sequence[Sequence[np.ndarray]]) -> Mean:
    """Returns the mean over tasks of the mean over seeds; seeds and questions are drawn anew."""
    rng = np.random.default_rng(0)
    values, drawn = [], []
    for runs in tasks:
        marks = np.stack(runs)
        seeds, n = marks.shape
        chosen = rng.integers(0, seeds, (DRAWS, seeds, 1))
        drawn.append(marks[chosen, rng.integers(0, n, (DRAWS, seeds, n))].mean((1, 2)))
        values.append(marks.mean())
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    runs_behind = sum(len(runs) for runs in tasks)
    return Mean(100 * float(np.mean(values)), (100 * float(low), 100 * float(high)), runs_behind)


def load(path: Path = REAL / "results.json") -> Results:
    """Returns the figures of a file, with the row STT by the rule of today."""
    found = read_json(path)
    for run in found["runs"]:
        run["ended_with"] = ended = stt_ends_with(run)
        run["rows"] = [row for row in run["rows"] if row["name"] != "STT"]
        rows = {row["name"]: row for row in run["rows"]}
        if ended is None or ended not in (*rows, run["choices"][AT_ONCE]["student"]):
            continue
        row = rows.get(ended, rows[AT_ONCE])
        # Its rounds come from the parent, and so does `continued`, which it compares itself with.
        own = {
            key: rows[AT_ONCE][key] + rows[CONTINUED][key] - rows[PARENT][key]
            for key in row
            if key.startswith("total_")
        }
        own["skip_seconds"] = rows[AT_ONCE]["skip_seconds"]
        run["rows"].append({**row, **own, "name": "STT"})
    return Results(found)


def validation_accuracy(run: dict[str, Any], name: str) -> float | None:
    """Returns the share of validation questions that a student of a run answers right, if known."""
    marks = run["answers"].get(name, {}).get("validation")
    return marks.count("1") / len(marks) if marks else None


def stt_ends_with(run: dict[str, Any], max_risk: float = SkipConfig().max_risk) -> str | None:
    """Returns what skip-thinking training (STT) ends with in a run; None where that is not known.

    STT trains the rounds of STT-at-once. The rule has changed since the first runs, so what STT
    ends with is computed from the answers, for all runs alike. A parent whose answers are not known
    cannot win.

    Args:
        run: of results.json.
        max_risk: as skip.max_risk, in points.
    """
    answers, names = run["answers"], {row["name"] for row in run["rows"]}
    if not {AT_ONCE, CONTINUED} <= names or CONTINUED not in answers:
        return None
    whole = [name for name in (CONTINUED, PARENT) if name in answers]
    asked = {
        name: Answers(
            *(np.array([*answers[name].get(part, "")], float) for part in ("validation", "train")),
            answers[name]["tokens"],
        )
        for name in [*(r["name"] for r in run["rounds"]), *whole]
    }
    return best_candidate(admitted(asked, whole, 0.0, max_risk / 100)).student
