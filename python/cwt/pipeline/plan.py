"""What a run is about to do, and what it will take: printed before the work, kept in run.json."""

import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cwt.files import read_json, write_json
from cwt.pipeline.fit import device_of, is_linear, saved_shape, written_tokens
from cwt.pipeline.methods import METHODS, Method, parent_of
from cwt.pipeline.stages import continued_recipe, recipe_of
from cwt.pipeline.workspace import Workspace
from cwt.students.memory import (
    activation_bytes,
    average_bytes,
    block_bytes,
    device_bytes,
    logit_bytes,
    scoring_tokens,
    state_bytes,
)
from cwt.students.supervision import supervision_lines
from cwt.training.recipe import Recipe

_PACKAGES = ("cwt-ext", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class RowPlan:
    """What one row of the table trains, about.

    Attributes:
        name: of the row.
        steps: optimizer steps.
        loss_tokens: tokens that bear loss.
        processed_tokens: tokens that the student reads, context included.
        passes: how often each training rationale is seen.
        recipe: of its training; of all its rounds together where it has rounds.
    """

    name: str
    steps: int
    loss_tokens: int
    processed_tokens: int
    passes: float
    recipe: dict[str, Any]


def make_plan(ws: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """Writes run.json, the plan of a run with the versions that it runs under; returns it.

    Args:
        ws: the run; its data and chunks are there.
        names: the rows that it will train.
    """
    record = read_json(ws.chunks_record)
    rows = [_row(ws, METHODS[name], record["lengths"]) for name in names]
    plan = {
        "versions": versions(),
        "device": _device(ws),
        "data": read_json(ws.data_record),
        "lengths": record["lengths"],
        "supervision": record.get("supervision"),  # runs of earlier versions have none
        "student": {"name": ws.config.student, **record["student"]},
        "max_new_tokens": ws.config.eval.max_new_tokens or written_tokens(record["lengths"]),
        "memory": memory_plan(ws, rows[0].recipe, record),
        "search": planned_search(ws, names),
        "rows": [asdict(row) for row in rows],
    }
    write_json(ws.out / "run.json", plan)
    return plan


def versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages, and the git commit of this software."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    from cwt_ext import __version__

    found["cwt-ext"] = __version__
    asked = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found["commit"] = asked.stdout.strip() or "not a git checkout"
    return found


def _device(ws: Workspace) -> dict[str, Any]:
    device = device_of(ws)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {"type": device.type, "name": name or platform.machine(), "bytes": device_bytes(device)}


def _row(ws: Workspace, method: Method, lengths: dict[str, int]) -> RowPlan:
    """Returns what a row trains, from the mean lengths of its samples."""
    recipe = recipe_of(ws, method)
    if parent_of(method, ws.config):
        recipe = continued_recipe(ws, method, ws.config.skip.rounds)
    loss, processed = lengths["rationale_tokens"], _processed(ws, method, lengths)
    samples = read_json(ws.data_record)["train"]
    if recipe.target == "chunk":
        chunkings = read_json(ws.chunks_record)["chunkings"]
        samples = round(samples * chunkings[method.chunking or ws.config.chunk.method]["chunks"])
    if recipe.target == "answer":
        loss = lengths["answer_tokens"]
        processed = lengths["prompt_tokens"] + loss
    passes = _passes(recipe, loss, processed, samples)
    return RowPlan(
        name=method.name,
        steps=max(1, round(passes * samples / recipe.batch_size)),
        loss_tokens=round(passes * loss),
        processed_tokens=round(passes * processed),
        passes=round(passes, 2),
        recipe=asdict(recipe),
    )


def _passes(recipe: Recipe, loss: int, processed: int, samples: int) -> float:
    """Returns how often each rationale is seen within the budget."""
    one = {
        "loss_tokens": loss,
        "processed_tokens": processed,
        "optimizer_steps": samples / recipe.batch_size,
        "epochs": 1,
    }[recipe.budget_unit]
    return recipe.budget / one


def _processed(ws: Workspace, method: Method, lengths: dict[str, int]) -> int:
    """Returns the tokens read in one pass; a chunk is read with everything before it.

    Units are taken to be of one length in each example.
    """
    total = lengths["prompt_tokens"] + lengths["rationale_tokens"]
    if method.target != "chunk":
        return total
    examples = ws.training_examples(method.chunking)
    prompt = lengths["prompt_tokens"] / len(examples)
    unit = lengths["rationale_tokens"] / sum(len(e.units) for e in examples)
    c = ws.config.train
    meets = c.share_prefixes and not method.dropout  # with dropout the prefixes differ
    meets &= (method.schedule or c.schedule) == "shuffled"
    ends = [(e.boundaries or (0, len(e.units)))[1:] for e in examples]
    found = [rows_read(of_example, c.chunks_together if meets else 1) for of_example in ends]
    return round(sum(rows * prompt + unit * read for rows, read in found))


def rows_read(ends: Sequence[int], together: int) -> tuple[int, float]:
    """Returns in how many rows the chunks of an example are read, and the units read, on average.

    Of chunks that are read together, in one row, the last one decides how many units it has.

    Args:
        ends: the unit at which each chunk ends.
        together: how many chunks, drawn at random, share a row, at most.
    """
    n = len(ends)
    rows = -(-n // together)
    read = 0.0
    for g in range(rows):
        size = len(range(g, n, rows))
        ways = math.comb(n, size)
        read += sum(end * math.comb(j, size - 1) / ways for j, end in enumerate(ends))
    return rows, read


def memory_plan(ws: Workspace, recipe: dict[str, Any], record: dict[str, Any]) -> dict[str, int]:
    """Returns what training is expected to hold, in bytes, and the tokens of a pass."""
    shape, element = saved_shape(record)
    checkpointing = recipe["gradient_checkpointing"]
    longest = record["lengths"]["longest_row"]
    tokens = recipe["micro_batch_tokens"] or longest * (
        recipe["micro_batch_size"] or recipe["batch_size"]
    )
    tokens = max(tokens, longest)
    frozen = 4 if shape.trained == shape.parameters else element
    device, linear = device_of(ws), is_linear(record)
    logits = logit_bytes(shape, element, True) * tokens
    return {
        "states": state_bytes(shape, frozen, average_bytes(recipe["optimizer"])),
        "activations": activation_bytes(shape, element, checkpointing) * tokens,
        "logits": block_bytes(shape, device, True) if linear else logits,
        "training_tokens": tokens,
        "scoring_tokens": scoring_tokens(shape, device, element, linear),
    }


def planned_search(ws: Workspace, names: Sequence[str]) -> dict[str, int] | None:
    """Returns what judging takes in each round, at most, as `search_cost` counts it.

    None where no row judges, or where an earlier version made the chunks.
    """
    judged = any(METHODS[name].skips in ("judge", "literal") for name in names)
    cost = read_json(ws.chunks_record).get("search") if ws.chunks_record.exists() else None
    if not judged or cost is None:
        return None
    passes = ws.config.skip.search_passes
    limit = round(passes * cost["row_tokens"]) if passes else cost["tokens"]
    return {**cost, "tokens": min(cost["tokens"], limit)}


def search_line(search: dict[str, int]) -> str:
    """Returns what judging takes as a line for people."""
    tokens, row, whole = (search[name] for name in ("tokens", "row_tokens", "whole_tokens"))
    return (
        f"judging   {search['trials']:,} units, in every round anew: at most {tokens:,} tokens, as "
        f"{tokens / row:.1f} passes over the data ({whole / row:.1f} if every trial read all)"
    )


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Returns a plan as lines for people."""
    data, lengths, memory, student = (plan[k] for k in ("data", "lengths", "memory", "student"))
    left_out = ", ".join(f"{n:,} {why}" for why, n in data["dropped"].items()) or "none"
    needed = memory["states"] + memory["activations"] + memory["logits"]
    gib = 2.0**30
    lines = [
        f"data      {data['train']:,} training rationales, {data['validation']:,} validation and "
        f"{data['test']:,} test questions; rows left out: {left_out}",
        f"tokens    {lengths['rationale_tokens']:,} in rationales (median "
        f"{lengths['median_rationale']}, longest {lengths['longest_rationale']}), longest row "
        f"{lengths['longest_row']}; an answer may have {plan['max_new_tokens']}",
        f"student   {student['name']}: {student['parameters']:,} weights, {student['trained']:,} "
        f"trained; products in {student['dtype']} on {plan['device']['name']}; loss by "
        f"{student.get('head', 'logits')}",
        f"memory    about {needed / gib:.1f} of {plan['device']['bytes'] / gib:.1f} GiB: states "
        f"{memory['states'] / gib:.1f}, a pass of at most {memory['training_tokens']:,} tokens "
        f"{(needed - memory['states']) / gib:.1f}",
    ]
    if plan["search"]:
        lines.append(search_line(plan["search"]))
    for row in plan["rows"]:
        rate = row["recipe"]["learning_rate"]
        lines.append(
            f"  {row['name']:20} about {row['steps']:,} steps of {row['recipe']['batch_size']}, "
            f"{row['loss_tokens']:,} loss tokens ({row['passes']:g} passes), "
            f"{row['processed_tokens']:,} processed, learning rate {rate:g}"
        )
    return lines + (supervision_lines(plan["supervision"]) if plan["supervision"] else [])
