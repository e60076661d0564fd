"""The tables of a sweep: for every task one row a method, and one row a difference."""

import textwrap
from typing import Any

from cwt.report.table import diagnostics_table, markdown_table

ROLES = ("core", "spare", "restate", "filler")  # of generated units, in the order of the tables


def as_markdown(found: dict[str, Any], command: str) -> str:
    """Returns a sweep as a Markdown page that begins with the command that makes it again.

    Args:
        found: the contents of sweep.json.
        command: the command line that makes the sweep again.
    """
    c, seeds = found["config"], ", ".join(map(str, found["seeds"]))
    train, data, machine = c["train"], c["data"], found["machine"]
    hours = sum(row["total_train_seconds"] for row in found["methods"]) / 3600
    budget = f"{train['budget']} {train['budget_unit'].replace('_', ' ')}"
    if train["epochs"]:
        budget = f"{train['epochs']:g} epochs"
    lines = [
        "# Sweep",
        "",
        *_wrapped(command),
        "",
        f"{machine['platform']}, torch {machine['torch']}, {machine['cores']} cores, one run on "
        f"each; {hours:.1f} hours of training, a parent counted for each row that goes on from it.",
        "",
        f"Student {c['student']}, {data['train_size']} training and {data['test_size']} test "
        f"questions, {budget} a method, seeds {seeds}. FTT is full-thinking training, CWT "
        "chunk-wise training, STT skip-thinking training. STT and its controls go on from "
        f"{train['parent']}. Accuracy is the mean of the seeds, each in "
        "brackets. Differences are on the same questions; their 95 % interval is a bootstrap over "
        f"seeds, then questions; with {len(found['seeds'])} seeds it is rough. Costs count all "
        "that was trained for a row, its parent and rounds that were not chosen included.",
        "",
    ]
    for name, how in found.get("failed", {}).items():
        lines += [f"- No result: {name} {how['error']}", ""]
    for task in dict.fromkeys(row["task"] for row in found["summary"]):
        lines += [f"## {task}", "", *_method_table(found, task), ""]
        diagnosed = [d for d in found["diagnostics"] if d["task"] == task]
        lines += [*_difference_table(found, task), "", *diagnostics_table(diagnosed), ""]
    return "\n".join(lines)


def _wrapped(command: str) -> list[str]:
    return textwrap.wrap(
        command,
        100,
        initial_indent="    ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _method_table(found: dict[str, Any], task: str) -> list[str]:
    titles = (
        "method",
        "accuracy %",
        "tokens written",
        f"{' / '.join(ROLES)} left out %",
        "loss tokens",
        "processed tokens",
    )
    lines = []
    for row in found["summary"]:
        if row["task"] != task:
            continue
        by_seed = ", ".join(f"{100 * a:.1f}" for a in row["accuracies"])
        rates = row["removal_rates"]
        shares = [f"{100 * rates[role]:.1f}" if role in rates else "-" for role in ROLES]
        lines.append(
            [
                row["name"],
                f"{100 * row['accuracy']:.1f} ({by_seed})",
                f"{row['generated_tokens']:.1f}",
                " / ".join(shares) if rates else "-",
                f"{row['total_loss_tokens']:.0f}",
                f"{row['total_processed_tokens']:.0f}",
            ]
        )
    return markdown_table(titles, lines)


def _difference_table(found: dict[str, Any], task: str) -> list[str]:
    lines = []
    for d in found["differences"]:
        if d["task"] == task:
            low, high = d["accuracy_interval"]
            lines.append(
                [
                    f"{d['a']} against {d['b']}",
                    f"{100 * d['accuracy']:+.1f}",
                    f"{100 * low:+.1f} .. {100 * high:+.1f}",
                    f"{100 * d['tokens']:+.0f} %",
                ]
            )
    return markdown_table(("a against b", "accuracy, points", "95 %", "tokens"), lines)
