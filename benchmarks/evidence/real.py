"""Runs tasks x seeds x rows of a real student on real rationales, many side by side on one GPU.

    python benchmarks/evidence/real.py --data FOLDER --student FOLDER --work FOLDER --results FOLDER

A cell is a task, a seed and some rows of the table; it is a run of `cwt` in --work, in a process of
its own. Cells start in the order in which they tell most. Every row is on the disk as soon as it
ends; the same command goes on where the last one stopped or was killed. --results holds all but
weights, packed anew every half minute.

All weights are trained, at one of --learning-rates, or adapters (LoRA), at one of
--lora-learning-rates: whichever has the best mean accuracy of full-thinking training (FTT) on the
validation questions of --sweep-tasks, first seed. All rows are trained that way.
"""

import argparse
import json
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import yaml
from cwt.errors import UserError
from cwt.files import read_json, replacing, write_json
from cwt.pipeline.methods import METHODS
from real_cell import LONG_AS, PARENT, Cell, Settings, check_student, is_done, run_cell

TASKS = (
    "last_letter_concatenation,date_understanding,multiarith,svamp,coin_flip,"
    "tracking_shuffled_objects,addsub,single_eq,strategy_qa"
)
ROWS = "FTT,CWT,continued,STT-at-once,random-skips,STT"
MORE = (
    "answer-only,CWT-one-pass,STT-in-one-piece,STT-skip-marks,truncation-skips,perplexity-skips/"
    "entropy-skips,literal-skips,internalised,surprisal-tokens,shortest-correct"
)
PACK_SECONDS = 30.0
LORA = "r=16,alpha=32"  # on all linear layers
AGREES = 0.8  # graphs are used where this share of the tokens is the library's


def matrix(
    tasks: Sequence[str],
    seeds: Sequence[int],
    rows: Sequence[str],
    more: Sequence[Sequence[str]],
    rate: float,
    lora: str = "",
) -> list[Cell]:
    """Returns the cells, the most telling first: the main rows under two seeds, then controls.

    Args:
        tasks: names of files.
        seeds: of the runs.
        rows: the main rows.
        more: groups of rows that come later; those of the first group before the third seed.
        rate: the learning rate.
        lora: the adapters that are trained, or nothing.
    """

    def cells(seed: int, rows: Sequence[str]) -> list[Cell]:
        return [Cell("rows", task, seed, rate, tuple(rows), lora) for task in tasks if rows]

    def controls(seed: int) -> list[Cell]:
        found = cells(seed, more[0] if more else ())
        if LONG_AS in rows:
            found += [Cell("long", task, seed, rate, (PARENT,), lora) for task in tasks]
        return found

    found = [cell for seed in seeds[:2] for cell in cells(seed, rows)] + controls(seeds[0])
    found += [cell for seed in seeds[2:] for cell in cells(seed, rows)]
    found += [cell for seed in seeds[1:] for cell in controls(seed)]
    return found + [cell for group in more[1:] for seed in seeds for cell in cells(seed, group)]


class Workers:
    """Runs cells in processes of their own, some side by side.

    Args:
        settings: what all cells share.
        number: how many cells run side by side.
        until: the time, as time.monotonic() gives it, at which running cells are killed.
    """

    def __init__(self, settings: Settings, number: int, until: float) -> None:
        self.settings, self.number, self.until = settings, number, until
        # Imports take seconds, so one process does them and every cell is forked from it.
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["real_cell", "real_decode"])
        self.running: dict[Cell, ForkServerProcess] = {}
        self.failed: dict[Cell, int] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        """Runs some cells; one that fails runs once more after all others."""
        waiting = [cell for cell in cells if not is_done(cell, self.settings)]
        while (waiting or self.running) and time.monotonic() < self.until:
            while len(self.running) < self.number and (cell := self._next(waiting)):
                waiting.remove(cell)
                self._start(cell)
            if not self.running:
                say(f"left out, what they need is not there: {len(waiting)} cells")
                return
            sentinels = [process.sentinel for process in self.running.values()]
            wait(sentinels, timeout=min(1.0, max(0.0, self.until - time.monotonic())))
            waiting += self._ended()
        self.stop()

    def stop(self) -> None:
        """Kills what runs."""
        for cell, process in self.running.items():
            say(f"cut: {cell.folder} {cell.kind}")
            process.kill()
        for process in self.running.values():
            process.join()
        self.running.clear()

    def _next(self, waiting: Sequence[Cell]) -> Cell | None:
        busy = {cell.folder for cell in self.running}
        for cell in waiting:
            base = self.settings.work / f"{cell.task}-{cell.seed}" / "students" / LONG_AS
            ready = cell.kind != "long" or (base / "train.json").exists()
            if cell.folder not in busy and ready:
                return cell
        return None

    def _start(self, cell: Cell) -> None:
        say(f"starts: {cell.folder} {cell.kind}, {len(self.running) + 1} side by side")
        process = self.context.Process(target=_work, args=(cell, self.settings))
        process.start()
        self.running[cell] = process

    def _ended(self) -> list[Cell]:
        """Forgets the cells that ended; returns those to try again."""
        again = []
        for cell, process in list(self.running.items()):
            if process.exitcode is None:
                continue
            del self.running[cell]
            if process.exitcode == 0:
                say(f"done: {cell.folder} {cell.kind}")
                continue
            self.failed[cell] = self.failed.get(cell, 0) + 1
            say(f"FAILED with {process.exitcode}, try {self.failed[cell]}: {cell.folder}")
            if self.failed[cell] < 2:
                again.append(cell)
        return again


def _work(cell: Cell, settings: Settings) -> None:
    _end_with_parent()
    run_cell(cell, settings)


def _check(settings: Settings, source: str, out: Path) -> None:
    _end_with_parent()
    write_json(out, check_student(settings, source))


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def choose_training(
    workers: Workers,
    tasks: Sequence[str],
    seed: int,
    tried: Sequence[tuple[float, str]],
    out: Path,
) -> tuple[float, str]:
    """Returns the learning rate and the adapters with the best mean validation accuracy of FTT.

    Of equals the first wins. The runs of that choice become the cells of the matrix.
    out/learning_rate.json has all figures.

    Args:
        workers: that train.
        tasks: whose validation questions are asked.
        seed: of the runs.
        tried: pairs of a learning rate and the adapters that are trained ("" for all weights).
        out: folder of all runs.
    """
    path = out / "learning_rate.json"
    if path.exists():
        before = read_json(path)
        return float(before["chosen"]), before.get("lora", "")
    if len(tried) == 1:
        return tried[0]
    cells = [Cell("sweep", task, seed, rate, lora=lora) for rate, lora in tried for task in tasks]
    workers.run(cells)
    found = []
    for cell in cells:
        score = out / cell.folder / "evals" / f"{PARENT}-validation.json"
        if score.exists():
            figures = read_json(score)
            keys = ("accuracy", "questions", "generated_tokens")
            found.append(
                {"task": cell.task, "rate": cell.learning_rate, "lora": cell.lora}
                | {k: figures[k] for k in keys}
            )
    means = []
    for rate, lora in tried:
        each = [f["accuracy"] for f in found if (f["rate"], f["lora"]) == (rate, lora)]
        if len(each) == len(tasks):
            means.append((sum(each) / len(each), rate, lora))
    if not means:
        raise UserError("the sweep of learning rates has no result; see the errors above.")
    _, rate, lora = max(means, key=lambda mean: mean[0])
    for cell in cells:
        target = out / Cell("rows", cell.task, cell.seed, rate).folder
        if (cell.learning_rate, cell.lora) == (rate, lora) and not target.exists():
            (out / cell.folder).rename(target)
    write_json(path, {"chosen": rate, "lora": lora, "runs": found})
    return rate, lora


def pack(work: Path, results: Path) -> None:
    """Writes everything but weights: results/seed-<n>.tar.gz for every seed, and common.tar.gz."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(_files(work)):
        run = path.relative_to(work).parts[0]
        seed = run.removesuffix("-long").rpartition("-")[2]
        parts.setdefault(f"seed-{seed}" if seed.isdigit() else "common", []).append(path)
    for name, paths in parts.items():
        with replacing(results / f"{name}.tar.gz") as part, tarfile.open(part, "w:gz") as tar:
            for path in paths:
                tar.add(path, path.relative_to(work))


def _files(work: Path) -> Iterator[Path]:
    """Yields the files that tell something of a run."""
    patterns = ("*.json", "*.yaml", "evals/*.jsonl", "data/train.jsonl", "students/*/train.json")
    rooms = ("data", "chunks", "skips", "choices", "evals", "methods")
    patterns += ("report.md", *(f"{room}/*.json" for room in rooms))
    for folder in (work, *work.glob("*-[0-9]*"), *work.glob("sweep/*")):
        for pattern in patterns:
            yield from (path for path in folder.glob(pattern) if path.is_file())


def _pack_often(work: Path, results: Path, stop: threading.Event) -> None:
    while not stop.wait(PACK_SECONDS):
        try:
            pack(work, results)
        except OSError as error:  # a file that moved meanwhile: the next time has it
            say(f"not packed: {error}")


_BEGIN = time.monotonic()


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"{time.monotonic() - _BEGIN:6.1f} s  {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.json")
    parser.add_argument("--student", required=True, help="Hugging Face or GGUF folder, or tiny")
    parser.add_argument("--work", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--results", type=Path, required=True, help="folder of what is packed")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=ROWS, help="of the table, in the order wanted")
    parser.add_argument("--more", default=MORE, help="rows that come later, in groups: a,b/c")
    parser.add_argument("--learning-rates", default="1e-4,3e-4,1e-3", help="of all weights")
    parser.add_argument("--lora-learning-rates", default="1e-3,3e-3", help="of adapters")
    parser.add_argument("--sweep-tasks", default="last_letter_concatenation,coin_flip")
    parser.add_argument("--workers", type=int, default=3, help="cells side by side")
    parser.add_argument("--seconds", type=float, default=1e9, help="then running cells are killed")
    parser.add_argument("--epochs", type=float, default=4.0, help="in loss tokens, every row")
    parser.add_argument("--batch", type=int, default=8, help="rationales of a step")
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--sizes", default="300,50,1000", help="train, validation, test, at most")
    parser.add_argument("--set", default="{}", help="options of the runs, YAML, nested")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _rows(text: str) -> list[str]:
    """Returns the rows that this version has, and says which it has not."""
    rows = _names(text)
    for name in rows:
        if name not in METHODS:
            say(f"this version has no row {name}")
    return [name for name in rows if name in METHODS]


def _settings(options: argparse.Namespace) -> Settings:
    train, validation, test = map(int, _names(options.sizes))
    return Settings(
        data=options.data,
        student=str(options.work.resolve() / "student"),
        work=options.work,
        epochs=options.epochs,
        batch=options.batch,
        max_new_tokens=options.max_new_tokens,
        sizes=(train, validation, test),
        cpu=options.cpu,
        overrides=yaml.safe_load(options.set),
    )


def checked(workers: Workers, source: str) -> dict[str, Any]:
    """Makes the folder of the student, and returns how generation by graphs does here.

    Raises:
        UserError: the student cannot be loaded, or there is no GPU and --cpu was not given.
    """
    path = workers.settings.work / "check.json"
    if not path.exists():
        process = workers.context.Process(target=_check, args=(workers.settings, source, path))
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f"the student {source} cannot be used; see the error above.")
    found: dict[str, Any] = read_json(path)
    say(json.dumps(found))
    return found


def main() -> None:
    """Runs the matrix of the command line."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit("terminated")))
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    settings = _settings(options)
    workers = Workers(settings, options.workers, _BEGIN + options.seconds)
    stop = threading.Event()
    packer = threading.Thread(target=_pack_often, args=(settings.work, options.results, stop))
    packer.start()
    try:
        found = checked(workers, options.student)
        graphs = found["agreement"] >= AGREES and found["device"] != "cpu"
        workers.settings = replace(settings, graphs=graphs)
        seeds = [int(seed) for seed in _names(options.seeds)]
        tried = [(float(rate), "") for rate in _names(options.learning_rates)]
        tried += [(float(rate), LORA) for rate in _names(options.lora_learning_rates)]
        sweep = _names(options.sweep_tasks)
        rate, lora = choose_training(workers, sweep, seeds[0], tried, settings.work)
        say(f"learning rate {rate:g}{', adapters ' * bool(lora)}{lora}")
        rows, more = _rows(options.rows), [_rows(group) for group in options.more.split("/")]
        workers.run(matrix(_names(options.tasks), seeds, rows, more, rate, lora))
    finally:
        workers.stop()
        stop.set()
        packer.join()
        pack(settings.work, options.results)
        say("packed")


if __name__ == "__main__":
    main()
