"""What do rival judges and recipes do, under one budget and at the same share of skips?

Every (task, seed) is a run with all rivals matched to STT, and one run for each share of skips,
which takes over its parent. Rows are trained side by side; a row that is done is not done again.

    python benchmarks/evidence/rivals.py --out runs/rivals --jobs 14 --cpu

Writes rivals.json and rivals.md into --out from what is done so far. The page rivals.md beside this
file is made from such files (rivals-coin.json) by page.py.
"""

import argparse
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from cwt.config import DataConfig, EvalConfig, RunConfig, SkipConfig, TrainConfig, save_config
from cwt.files import read_lines, write_json, write_text
from cwt.pipeline.data import make_data
from cwt.pipeline.methods import METHODS, needs, selected_methods
from cwt.pipeline.parallel import run_all
from cwt.pipeline.run import run_method, write_reports
from cwt.pipeline.stages import make_chunks
from cwt.pipeline.workspace import Workspace, saved_config
from cwt.progress import Bars, Progress
from cwt.students.load import quiet_libraries
from rivals_tables import CHUNKS, PARENT, RECIPES, table, title

JUDGES = (
    "random-skips", "truncation-skips", "perplexity-skips", "entropy-skips", "forward-skips",
    "surprisal-tokens", "internalised",
)  # fmt: skip
GROUPS = {
    "skips": ("STT", "STT-in-one-piece", *JUDGES, "literal-skips", "oracle-skips"),
    "training": ("STT", *RECIPES, "CWT-one-pass"),
    "chunks": CHUNKS,
    "methods": ("CWT", "STT", "random-skips"),
}
PREPARE = "prepare"  # data and chunks, or the parent taken over
KEPT = (  # of a row of a report
    "name", "seed", "accuracy", "generated_tokens", "skipped_share", "total_loss_tokens",
    "total_processed_tokens", "total_train_seconds", "skip_seconds",
)  # fmt: skip


def cell_name(task: str, seed: int, share: float) -> str:
    """Returns the folder of a run; share 0 is that matched to STT."""
    return f"{task}-{seed}-{share:g}"


def config_of(
    arguments: argparse.Namespace, task: str, seed: int, share: float, methods: str
) -> RunConfig:
    """Returns the configuration of a run."""
    train = TrainConfig(budget=arguments.budget, learning_rate=arguments.learning_rate)
    return RunConfig(
        student=arguments.student, methods=methods, seed=seed, cpu=arguments.cpu,
        data=DataConfig(task=task), train=train,
        skip=SkipConfig(matched_share=share), eval=EvalConfig(latency_questions=0),
    )  # fmt: skip


def do(out: Path, piece: str, progress: Progress) -> None:
    """Does one piece of work: <cell>/prepare or <cell>/<row>."""
    quiet_libraries()
    cell, row = piece.split("/")
    config = saved_config(out / cell)
    assert config is not None
    ws = Workspace(config, out / cell)
    if row != PREPARE:
        if not ws.method(row).exists():
            run_method(ws, row, progress)
        return
    if config.skip.matched_share:
        take_over(ws, Workspace(config, out / cell_name(config.data.task, config.seed, 0)))
    make_data(ws)
    make_chunks(ws, progress)


def take_over(ws: Workspace, base: Workspace) -> None:
    """Copies data, chunks and the parent of a run into another."""
    if ws.method(PARENT).exists():
        return
    for folder in ("data", "chunks", f"students/{PARENT}"):
        shutil.copytree(base.out / folder, ws.out / folder, dirs_exist_ok=True)
    for path in (base.evaluation(PARENT), base.generations(PARENT), base.method(PARENT)):
        (ws.out / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, ws.out / path.parent.name / path.name)


def pieces(out: Path, configs: dict[str, RunConfig]) -> dict[str, list[str]]:
    """Returns every piece of work with those that it needs; begins the folder of every run."""
    todo: dict[str, list[str]] = {}
    for cell, config in configs.items():
        if saved_config(out / cell) is None:
            save_config(out / cell / "config.yaml", config)
        base = cell_name(config.data.task, config.seed, 0)
        parent = [f"{base}/{PARENT}"] if config.skip.matched_share else []
        todo[f"{cell}/{PREPARE}"] = parent
        for row in selected_methods(config):
            wanted = [f"{cell}/{other}" for other in needs(METHODS[row], config)]
            todo[f"{cell}/{row}"] = [f"{cell}/{PREPARE}", *wanted]
    return todo


def collect(out: Path, configs: dict[str, RunConfig]) -> list[dict[str, Any]]:
    """Returns every row that is done, with a mark (1: right) for every question, in order."""
    rows = []
    for cell, config in configs.items():
        ws = Workspace(config, out / cell)
        if not any(ws.method(name).exists() for name in METHODS):
            continue
        for row in write_reports(ws)["methods"]:
            written = read_lines(ws.generations(Path(row["student"]).name))
            rows.append({
                "task": config.data.task, "share": config.skip.matched_share,
                **{key: row.get(key) for key in KEPT},
                "marks": "".join(str(int(g["correct"])) for g in written),
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--jobs", type=int, default=2, help="rows trained side by side")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--tasks", default="arithmetic,objects,stock")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--shares", default="0,0.2,0.4,0.6", help="0: matched to STT")
    parser.add_argument("--groups", default="skips", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--budget", type=int, default=400_000)
    parser.add_argument("--student", default="tiny", help="or the folder of one")
    parser.add_argument("--learning-rate", type=float, default=TrainConfig().learning_rate)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    matched = [name for group in arguments.groups.split(",") for name in GROUPS[group]]
    configs = {}
    for task in arguments.tasks.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            for share in sorted({0.0, *map(float, arguments.shares.split(","))}):
                names = (PARENT, *(JUDGES if share else matched))
                config = config_of(arguments, task, seed, share, ",".join(names))
                configs[cell_name(task, seed, share)] = config
    todo = pieces(arguments.out, configs)
    try:
        with Bars() as bars:
            run_all(todo, partial(do, arguments.out), arguments.jobs, bars.watch)
    finally:
        rows = collect(arguments.out, configs)
        write_json(arguments.out / "rivals.json", rows)
        lines = ["Means over seeds; 95 % intervals in brackets. Test questions.", ""]
        for task, share in dict.fromkeys((r["task"], r["share"]) for r in rows):
            lines += [f"## {task}, {title(share)}", "", *table(rows, task, share), ""]
        write_text(arguments.out / "rivals.md", "\n".join(lines))
        print("\n".join(lines))


if __name__ == "__main__":
    main()
