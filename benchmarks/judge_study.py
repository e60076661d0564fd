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

import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cwt.data.example import Example
from cwt.evaluation.statistics import wilson_interval
from cwt.files import read_json, write_json, write_lines, write_text
from cwt.pipeline.methods import round_names
from cwt.pipeline.stages import open_student
from cwt.pipeline.workspace import Workspace, open_workspace, saved_config
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips

FORWARD = SkipCriterion(max_answer_nll_rise=math.inf)  # the answer vetoes nothing
# name: (which student, what is asked)
RULES = {
    "forward": ("CWT", FORWARD),
    "as it comes": ("", FORWARD),
    "floor 0.5": ("CWT", replace(FORWARD, min_probability_after=0.5)),
    "veto 0.5": ("CWT", replace(FORWARD, max_answer_nll_rise=0.5)),
    "veto 0.1": ("CWT", replace(FORWARD, max_answer_nll_rise=0.1)),
}
BOTH = "both students"
COLUMNS = ("skipped", "new_number_of_skipped", "new_number_of_kept", "chains", "underived")


def numbers(text: str) -> set[float]:
    """Returns the numbers of a text, but for those that count the items of a list."""
    text = re.sub(r"^\s*\d+\.\s|(?<=[^\d\s])\d+\.\s*$", "", text)
    return {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def decide(ws: Workspace, examples: Sequence[Example], name: str, out: Path) -> list[Example]:
    """Returns the examples with the units that stay under a rule, decided where that is new."""
    student, criterion = RULES[name]
    path = out / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        begin = time.perf_counter()
        kept, decisions = find_skips(open_student(ws, student), examples, criterion, batch_size=8)
        write_lines(path.with_suffix(".jsonl"), (asdict(d) for d in decisions))
        seconds = time.perf_counter() - begin
        units = [sorted(e.kept) for e in kept]
        write_json(path, {"seconds": seconds, "kept_units": units})
        print(f"{name}: {seconds:.0f} s", flush=True)
    kept_units = read_json(path)["kept_units"]
    return [e.keeping(frozenset(units)) for e, units in zip(examples, kept_units, strict=True)]


def figures(examples: Sequence[Example]) -> dict[str, Any]:
    """Returns shares, each with its 95 % interval: of sentences by bootstrap over rationales."""
    rows = []  # of each: middle, gone, gone with a new number, kept with one, chain, (un)derived
    for example in examples:
        keep = example.kept
        known = numbers(example.question)
        units = example.middle_units
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


def show(example: Example) -> list[str]:
    """Returns one example as lines of Markdown, struck through where something went."""
    lines = [f"**{example.question.strip()}**", ""]
    for u, unit in enumerate(example.units):
        text = " ".join(unit.split()).replace("*", r"\*")
        lines.append(f"- {text}" if u in example.kept else f"- ~~{text}~~")
    return [*lines, ""]


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = saved_config(run)
    if config is None:
        raise SystemExit(f"{run}: no run there.")
    ws = open_workspace(config, run)
    examples = ws.training_examples()
    out.mkdir(parents=True, exist_ok=True)
    rounds = [n for n in round_names("STT", config.skip.rounds) if ws.skips(n).exists()]
    decided = {name: ws.with_skips(examples, name) for name in rounds}
    if not decided:
        decided = {name: decide(ws, examples, name, out) for name in RULES}
        pairs = zip(decided["forward"], decided["as it comes"], strict=True)
        decided[BOTH] = [a.keeping(a.kept | b.kept) for a, b in pairs]
    found = {name: figures(kept) for name, kept in decided.items()}
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
    for i, example in enumerate(decided.get("forward") or list(decided.values())[-1]):
        lines += [f"{i}.", *show(example)]
    write_text(out / "examples.md", "\n".join(lines))
    print("\n".join(lines[: len(found) + 2]))


if __name__ == "__main__":
    main()
