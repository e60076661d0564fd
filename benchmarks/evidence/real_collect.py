"""Gathers what real.py packed into real/results.json and real/examples.md.

    python benchmarks/evidence/real_collect.py FOLDER ...   # of *.tar.gz, or of the runs themselves

results.json has every row with its costs, and for every question whether it was answered right and
in how many tokens; page.py needs nothing else. Of several folders the first that has learning rates
tells which was chosen.
"""

import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cwt.data.example import Example
from cwt.files import read_json, read_lines, write_json, write_text
from cwt.pipeline.methods import CONTINUED, round_names
from cwt.pipeline.results import write_report
from cwt.pipeline.workspace import Workspace, saved_config
from real_cell import AT_ONCE, PARENT, prepare_methods

REAL = Path(__file__).parent / "real"
SHOWN = 10  # examples of a task
KEYS = (
    "accuracy", "generated_tokens", "well_formed", "truncated", "skipped_share", "optimizer_steps",
    "loss_tokens", "processed_tokens", "train_seconds", "skip_seconds", "total_optimizer_steps",
    "total_loss_tokens", "total_processed_tokens", "total_train_seconds", "choice",
)  # fmt: skip


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns the contents of results.json, from the runs in some folders."""
    runs = [_run(ws, task, seed, long) for ws, task, seed, long in _workspaces(folders)]
    found: dict[str, Any] = {"runs": [run for run in runs if run["rows"]]}
    checks = [read_json(path) for folder in folders if (path := folder / "check.json").exists()]
    found["check"] = checks[0] if checks else None
    found["learning_rate"] = _sweeps(folders)
    return found


def _sweeps(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Returns the first choice of a way to train, with the runs of all sweeps and their devices.

    Runs that say nothing of adapters trained all weights.
    """
    chosen, runs = None, []
    for folder in folders:
        if (path := folder / "learning_rate.json").exists():
            device = read_json(folder / "check.json").get("gpu", "CPU")
            sweep = {"lora": ""} | read_json(path)
            chosen = chosen or sweep
            runs += [{"lora": ""} | run | {"device": device} for run in sweep["runs"]]
    return chosen | {"runs": runs} if chosen else None


def _workspaces(folders: Sequence[Path]) -> Iterator[tuple[Workspace, str, int, bool]]:
    """Yields every run with its task, its seed and whether it is one of long training."""
    paths = [path for folder in folders for path in folder.glob("*-[0-9]*")]
    for path in sorted(paths, key=lambda path: path.name):
        config = saved_config(path)
        if config is not None and any(path.glob("methods/*.json")):
            ws = Workspace(config, path)
            yield ws, Path(config.data.file).stem, config.seed, path.name.endswith("-long")


def _run(ws: Workspace, task: str, seed: int, long: bool) -> dict[str, Any]:
    report = write_report(ws)
    rows = []
    for row in report["methods"]:
        written = read_lines(ws.generations(Path(row["student"]).name))
        by_id = sorted(written, key=lambda g: g["id"])  # the same order under every seed
        rows.append(
            {
                "name": row["name"] + ("-long" if long else ""),
                **{key: row.get(key) for key in KEYS},
                "right": "".join("01"[g["correct"]] for g in by_id),
                "tokens": [g["tokens"] for g in by_id],
            }
        )
    choices = {path.stem: read_json(path) for path in sorted(ws.out.glob("choices/*.json"))}
    config, data = report["config"], report["data"]
    data["files"] = {Path(path).name: digest for path, digest in data["files"].items()}
    seconds = ws.out / "seconds.json"
    return {
        "task": task,
        "seed": seed,
        "long": long,
        "config": {k: config[k] for k in ("dtype", "cpu", "train", "skip", "eval", "chunk")},
        "data": data,
        "tokens_per_epoch": read_json(ws.chunks_record)["tokens_per_epoch"],
        "chunks": report["chunking"],
        "answers": _answers(ws),
        "choices": choices,
        "seconds": read_json(seconds) if seconds.exists() else {},
        "left_out": _left_out(ws),
        "rounds": _rounds(ws),
        "rows": rows,
    }


def _shortened(ws: Workspace) -> list[Example] | None:
    """Returns the training examples without what STT-at-once left out.

    They are those of the chosen round, or of the last one where the run was cut before the choice.
    """
    rounds = [r["name"] for r in _rounds(ws)]
    if ws.method(AT_ONCE).exists():
        rounds = [ws.student_of(AT_ONCE)]
    return ws.with_skips(ws.examples("train"), rounds[-1]) if rounds else None


def _rounds(ws: Workspace) -> list[dict[str, Any]]:
    """Returns the rounds of STT-at-once that answered the validation questions."""
    found = []
    for name in round_names(AT_ONCE, ws.config.skip.rounds):
        score = ws.evaluation(name, "validation")
        if score.exists():
            decided, figures = read_json(ws.skips(name)), read_json(score)
            found.append(
                {"name": name}
                | {key: decided[key] for key in ("judge", "skipped_share", "seconds")}
                | {key: figures[key] for key in ("accuracy", "generated_tokens")}
            )
    return found


def _answers(ws: Workspace) -> dict[str, dict[str, Any]]:
    """Returns which questions each student that STT may end with has right, and in what tokens."""
    found: dict[str, dict[str, Any]] = {}
    for name in [*round_names(AT_ONCE, ws.config.skip.rounds), CONTINUED, PARENT]:
        asked = {part: ws.generations(name, part) for part in ("validation", "train")}
        rows = {part: list(read_lines(path)) for part, path in asked.items() if path.exists()}
        if "validation" not in rows:
            continue
        found[name] = {
            part: "".join(str(int(row["correct"])) for row in part_rows)
            for part, part_rows in rows.items()
        } | {"tokens": float(np.mean([r["tokens"] for part in rows.values() for r in part]))}
    return found


def _left_out(ws: Workspace) -> dict[str, int] | None:
    """Returns how many rationales were shortened, and how many of them have the sign."""
    examples = _shortened(ws)
    if examples is None:
        return None
    short = [e for e in examples if len(e.kept) < len(e.units)]
    return {
        "rationales": len(examples),
        "shortened": len(short),
        "sign": sum(map(underived, short)),
    }


def examples_page(folders: Sequence[Path]) -> str:
    """Returns ten examples a task of what a student left out, those with a warning sign last."""
    lines = [
        "# What was left out of real rationales",
        "",
        f"Up to {SHOWN} training examples a task, first seed. What is ~~struck through~~ is gone "
        "from the rationales that the chosen round of skip-thinking training (STT, the row "
        f"`{AT_ONCE}`) was trained on, or the last round of a run that was cut. Up to half of "
        "them have a sign that too much may be missing: no sentence before the last one holds the "
        "answer any more. The teacher is text-davinci-002, with its mistakes of wording.",
    ]
    seen: set[str] = set()
    for ws, task, _, long in _workspaces(folders):
        shorter = _shortened(ws)
        if task in seen or long or shorter is None:
            continue
        seen.add(task)
        lines += ["", f"## {task}", "", *_examples(shorter)]
    return "\n".join(lines) + "\n"


def _examples(examples: Sequence[Example]) -> list[str]:
    short = [e for e in examples if len(e.kept) < len(e.units)]
    bad = [e for e in short if underived(e)]
    good = [e for e in short if not underived(e)]
    some = bad[: SHOWN // 2]
    shown = good[: SHOWN - len(some)] + some
    lines = [
        f"{len(short)} of {len(examples)} rationales were shortened, {len(bad)} of them with the "
        "sign.",
        "",
    ]
    for number, e in enumerate(shown, 1):
        sign = "**Sign.** " if underived(e) else ""
        units = [
            text if u in e.kept else f"~~{text}~~"
            for u, unit in enumerate(e.units)
            if (text := " ".join(unit.split()).replace("|", "\\|"))
        ]
        question = " ".join(e.question.split())
        lines.append(f"{number}. {sign}*{question}* {' '.join(units)} (Answer: {e.answer})")
    return lines


def underived(example: Example) -> bool:
    """Returns whether every unit before the last one that holds the answer was left out."""
    answer = re.sub(r"\.0$", "", example.answer.strip())
    pattern = re.compile(rf"(?<![\w.]){re.escape(answer)}(?![\w])", re.IGNORECASE)
    holds = [u for u, unit in enumerate(example.units[:-1]) if pattern.search(unit)]
    return bool(holds) and not any(u in example.kept for u in holds)


def main() -> None:
    """Writes the files of the folders on the command line."""
    prepare_methods()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [_unpacked(Path(name), Path(temporary)) for name in sys.argv[1:]]
        write_json(REAL / "results.json", collect(folders))
        write_text(REAL / "examples.md", examples_page(folders))


def _unpacked(folder: Path, temporary: Path) -> Path:
    """Returns a folder of runs: the folder itself, or where its packed runs now are."""
    packed = sorted(folder.glob("*.tar.gz"))
    if not packed:
        return folder
    target = Path(tempfile.mkdtemp(dir=temporary))
    for path in packed:
        with tarfile.open(path) as tar:
            tar.extractall(target, filter="data")
    return target


if __name__ == "__main__":
    main()
