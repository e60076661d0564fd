"""What the forward judge leaves out of real rationales, under several rules.

Takes a run whose CWT is trained (`cwt data`, `cwt chunk`, `cwt train --method CWT`), judges its
training examples under every rule, and writes what went and what stayed; of a run with rounds of
STT it takes their decisions, as they are. No label says which sentences of a real rationale are
core, so numbers stand in: a sentence that holds a number which the question does not. A chain is
two or more such sentences that went one after another. The answer is underived where it stood in
some sentence before the last, and every such sentence went.

    python benchmarks/judge_study.py RUN OUT

Decisions lie in OUT, one file a rule; rules that are there already are not run again.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cwt.data import Example
from cwt.evaluate import wilson_interval
from cwt.files import read_json, write_json, write_lines, write_text
from cwt.skip import Keep, Rule, judge_units
from cwt.stages import load_training, open_student
from cwt.workspace import Workspace, open_workspace, saved_config

FORWARD = Rule()  # without a veto
# name: (which student, what is asked)
RULES = {
    "forward": ("CWT", FORWARD),
    "as it comes": ("", FORWARD),
    "floor 0.5": ("CWT", replace(FORWARD, floor=0.5)),
    "veto 0.5": ("CWT", replace(FORWARD, veto=0.5)),
    "veto 0.1": ("CWT", replace(FORWARD, veto=0.1)),
}
BOTH = "both students"
COLUMNS = ("skipped", "new_number_of_skipped", "new_number_of_kept", "chains", "underived")


def numbers(text: str) -> set[float]:
    """Returns the numbers of a text, but for those that count the items of a list."""
    text = re.sub(r"^\s*\d+\.\s|(?<=[^\d\s])\d+\.\s*$", "", text)
    return {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def decide(ws: Workspace, name: str, out: Path) -> list[Keep]:
    """Returns which units stay under a rule, deciding it where that was not done yet."""
    student, rule = RULES[name]
    path = out / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        model, encoder = open_student(
            ws, str(ws.student(student)) if student else ws.config.student
        )
        begin = time.perf_counter()
        keeps, decisions = judge_units(rule, model, encoder, load_training(ws, encoder), None, 8)
        write_lines(path.with_suffix(".jsonl"), (asdict(d) for d in decisions))
        seconds = time.perf_counter() - begin
        write_json(path, {"seconds": seconds, "keeps": [sorted(keep) for keep in keeps]})
        print(f"{name}: {seconds:.0f} s", flush=True)
    return [frozenset(keep) for keep in read_json(path)["keeps"]]


def figures(examples: Sequence[Example], keeps: Sequence[Keep]) -> dict[str, Any]:
    """Returns shares, each with its 95 % interval: of sentences by bootstrap over rationales."""
    rows = []  # of each: middle, gone, gone with a new number, kept with one, chain, (un)derived
    for example, keep in zip(examples, keeps, strict=True):
        known = numbers(example.question)
        units = range(1, len(example.units) - 1)
        new = {u for u in units if numbers(example.units[u]) - known}
        gone = {u for u in units if u not in keep}
        chain = any({u, u + 1} <= gone & new for u in units)
        answer = numbers(example.answer)
        at = {u for u in range(len(example.units) - 1) if answer & numbers(example.units[u])}
        derived = bool(at) and not answer <= known
        underived = derived and not at - gone
        rows.append(
            (len(units), len(gone), len(gone & new), len(new - gone), chain, derived, underived)
        )
    table = np.array(rows, float)
    draws = table[np.random.default_rng(0).integers(0, len(table), (4000, len(table)))].sum(1)
    total = table.sum(0).tolist()
    found: dict[str, Any] = {}
    for key, above, below in (("skipped", 1, 0), ("new_number_of_skipped", 2, 1)):
        found[key] = total[above] / total[below]
        spread = draws[:, above] / draws[:, below]
        found[f"{key}_interval"] = np.percentile(spread, [2.5, 97.5]).tolist()
    found["new_number_of_kept"] = total[3] / (total[0] - total[1])
    spread = draws[:, 3] / (draws[:, 0] - draws[:, 1])
    found["new_number_of_kept_interval"] = np.percentile(spread, [2.5, 97.5]).tolist()
    for key, hits, n in (("chains", total[4], len(table)), ("underived", total[6], total[5])):
        found[key] = hits / n
        found[f"{key}_interval"] = wilson_interval(int(hits), int(n))
    return found


def show(example: Example, keep: Keep) -> list[str]:
    """Returns one example as lines of Markdown, struck through where something went."""
    lines = [f"**{example.question.strip()}**", ""]
    for u, unit in enumerate(example.units):
        text = " ".join(unit.split()).replace("*", r"\*")
        lines.append(f"- {text}" if u in keep else f"- ~~{text}~~")
    return [*lines, ""]


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = saved_config(run)
    if config is None:
        raise SystemExit(f"{run}: no run there.")
    ws = open_workspace(config, run)
    examples = ws.examples("train")
    out.mkdir(parents=True, exist_ok=True)
    keeps = {name: ws.keeps(name) for name in ws.rounds() if ws.skips(name).exists()}
    if not keeps:
        keeps = {name: decide(ws, name, out) for name in RULES}
        keeps[BOTH] = [a | b for a, b in zip(keeps["forward"], keeps["as it comes"], strict=True)]
    found = {name: figures(examples, kept) for name, kept in keeps.items()}
    write_json(out / "figures.json", {"rationales": len(examples), "rules": found})
    lines = [
        "| rule | middle sentences left out % | of them with a new number % | of the kept ones % | "
        "rationales with a chain left out % | with the answer underived % |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        cells = []
        for key in COLUMNS:
            low, high = row[f"{key}_interval"]
            cells.append(f"{100 * row[key]:.0f} ({100 * low:.0f}-{100 * high:.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    shown = keeps.get("forward") or list(keeps.values())[-1]
    for i, example in enumerate(examples):
        lines += [f"{i}.", *show(example, shown[i])]
    write_text(out / "examples.md", "\n".join(lines))
    print("\n".join(lines[: len(found) + 2]))


if __name__ == "__main__":
    main()
