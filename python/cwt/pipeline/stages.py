"""The stages of a run. Each reads what the one before it wrote, and writes files that stay."""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from . import data as data_module
from .chunking import Segmenter, average_chunks
from .config import RunConfig, save_config
from .data import Example, read_examples, write_examples
from .diagnostics import diagnose
from .encode import Encoded, Encoder
from .errors import UserError
from .evaluate import as_rows, evaluate
from .files import read_json, write_json, write_lines
from .recipe import ChunkMethod, Recipe, Schedule
from .skip import (
    Keep,
    Rule,
    judge_units,
    oracle_units,
    random_units,
    ratify_units,
    removal_rates,
    skipped_share,
)
from .students import load_student
from .train import Progress, train
from .workspace import Workspace, saved_config

CHUNKINGS: tuple[ChunkMethod, ...] = ("ac", "dp", "sbc", "sbc-exact")


def quiet(share: float, text: str) -> None:
    """A progress that nobody watches."""


def make_data(ws: Workspace) -> dict[str, Any]:
    """Writes data/: disjoint train, validation and test examples, generated or imported."""
    c = ws.config
    record_path = ws.out / "data" / "data.json"
    if record_path.exists():
        if saved_config(ws.out) != c:  # other methods were asked for
            save_config(ws.out / "config.yaml", c)
        return dict(read_json(record_path))
    dropped: dict[str, int] = {}
    read = 0
    if not c.data:
        sizes = (c.train_size, c.validation_size, c.test_size)
        train_part, validation, test = data_module.generate(c.task, sizes, c.seed, c.steps)
    else:
        imported = read_examples(Path(c.data), c.unit)
        dropped.update(imported.dropped)
        read = len(imported.examples)
        usable = [e for e in imported.examples if len(e.units) >= 2]
        if short := len(imported.examples) - len(usable):
            dropped["rationale of one unit"] = short
        test = []
        if c.eval_data:
            asked_of = read_examples(Path(c.eval_data), c.unit, rationales=False)
            test = asked_of.examples[: c.test_size]
            asked = {e.question for e in test}
            usable, known = [e for e in usable if e.question not in asked], len(usable)
            if known > len(usable):
                dropped["question of the test"] = known - len(usable)
        train_part, validation, test = _split(usable, test, ws)
    save_config(ws.out / "config.yaml", c)  # from here on the folder is this run's
    for part, examples in (("train", train_part), ("validation", validation), ("test", test)):
        write_examples(ws.data(part), examples)
    record = {
        "rationales_read": read,
        "dropped": dropped,
        "train": len(train_part),
        "validation": len(validation),
        "test": len(test),
    }
    write_json(record_path, record)
    return record


def _split(
    usable: list[Example], test: list[Example], ws: Workspace
) -> tuple[list[Example], list[Example], list[Example]]:
    c = ws.config
    random.Random(f"split-{c.seed}").shuffle(usable)
    want_test = 0 if test else min(c.test_size, len(usable) // 4)
    want_validation = min(c.validation_size, len(usable) // 4)
    test = test or usable[:want_test]
    rest = usable[want_test:]
    validation, rest = (
        rest[:want_validation],
        rest[want_validation : want_validation + c.train_size],
    )
    if not (rest and validation and test):
        raise UserError(
            f"{c.data}: {len(usable)} usable rationales are too few to train, choose and test on."
        )
    return rest, validation, test


def make_chunks(ws: Workspace, progress: Progress = quiet) -> dict[str, Any]:
    """Writes chunks/: the boundaries under every chunking method, for comparison and training."""
    record_path = ws.out / "chunks" / "chunks.json"
    if record_path.exists():
        return dict(read_json(record_path))
    examples = ws.examples("train")
    model, encoder = open_student(ws, ws.config.student)
    items = [encoder.encode(e, (0, len(e.units))) for e in examples]
    c = ws.config
    segmenter = Segmenter(model, encoder, items, c.chunks, c.objective, c.embeddings)
    record: dict[str, Any] = {}
    for i, method in enumerate(CHUNKINGS):
        progress(i / len(CHUNKINGS), method)
        cuts = segmenter.boundaries(method)
        write_lines(
            ws.chunks(method),
            [{"id": e.id, "boundaries": b} for e, b in zip(examples, cuts, strict=True)],
        )
        record[method] = {
            "chunks": sum(len(b) - 1 for b in cuts) / len(cuts),
            "cost": segmenter.total_cost(cuts),
        }
    write_json(record_path, record)
    return record


def open_student(ws: Workspace, name: str) -> tuple[PreTrainedModel, Encoder]:
    """Returns a student, on the device it will work on, and its encoder."""
    model, tokenizer = load_student(name)
    device = "cuda" if torch.cuda.is_available() and not ws.config.cpu else "cpu"
    return model.to(device), Encoder(tokenizer, ws.config.prompt)


def load_training(ws: Workspace, encoder: Encoder, chunking: str = "") -> list[Encoded]:
    """Returns the training examples in tokens, chunked as configured or as asked for."""
    pairs = zip(ws.examples("train"), ws.boundaries(chunking), strict=True)
    return [encoder.encode(example, boundaries) for example, boundaries in pairs]


def base_recipe(ws: Workspace, method: str) -> Recipe:
    """Returns the recipe of a method that starts from the student as given."""
    c = ws.config
    recipe = Recipe(
        method="ftt",
        budget=c.budget,
        budget_unit=c.budget_unit,
        schedule=c.schedule,
        batch_size=c.batch_size,
        micro_batch_size=c.micro_batch_size,
        learning_rate=c.learning_rate,
        weight_decay=c.weight_decay,
        max_length=c.max_length,
        seed=c.seed,
    )
    if method == "FTT":
        return recipe
    if method.startswith("CWT"):
        recipe = replace(recipe, method="cwt", batch_size=c.cwt_batch_size)
        what = method.removeprefix("CWT").removeprefix("-")
        if what == "sentence-dropout":
            return replace(recipe, sentence_dropout=c.sentence_dropout)
        return replace(recipe, schedule=what) if what in get_args(Schedule) else recipe
    if method == "FTT-small-batch":
        return replace(recipe, batch_size=c.small_batch_size)
    if method == "FTT-sentence-dropout":
        return replace(recipe, batch_size=c.small_batch_size, sentence_dropout=c.sentence_dropout)
    # An answer is a few tokens: the whole budget in them would be tens of times the passes over
    # the questions. It gets as many processed tokens as the others have loss tokens.
    return replace(recipe, method="answer-only", budget_unit="processed_tokens")


def continued_recipe(ws: Workspace, rounds: int) -> Recipe:
    """Returns the recipe of training on from the parent, for some rounds' worth of budget.

    Its rate is half: the student has converged once.
    """
    c = ws.config
    return replace(
        base_recipe(ws, "FTT"),
        budget=max(1, round(c.budget * c.stt_share * rounds)),
        learning_rate=c.learning_rate / 2,
    )


def train_base(ws: Workspace, method: str, progress: Progress = quiet) -> None:
    """Trains a method that starts from the student as given."""
    if ws.trained(method):
        return
    model, encoder = open_student(ws, ws.config.student)
    own = method.removeprefix("CWT-")
    items = load_training(ws, encoder, own if own in CHUNKINGS else "")
    recipe = base_recipe(ws, method)
    train(
        model, encoder, items, [None] * len(items), recipe, ws.student(method), progress,
        ws.config.cpu,
    )  # fmt: skip


def train_on_skips(
    ws: Workspace, name: str, start: str, keeps: Sequence[Keep], rounds: int,
    progress: Progress = quiet,
) -> None:  # fmt: skip
    """Trains on from a student of this run on what is left of the rationales."""
    if ws.trained(name):
        return
    if not ws.trained(start):
        raise UserError(f"{name} continues {start}; run `cwt train --method {start}` first.")
    model, encoder = open_student(ws, str(ws.student(start)))
    items = load_training(ws, encoder)
    rng = random.Random(f"mix-{ws.config.seed}")
    whole = [item for item in items if rng.random() < ws.config.mix_full]
    all_items: list[Encoded] = [*items, *whole]
    all_keeps: list[Keep | None] = [*keeps, *[None] * len(whole)]
    train(
        model, encoder, all_items, all_keeps, continued_recipe(ws, rounds), ws.student(name),
        progress, ws.config.cpu,
    )  # fmt: skip


def judge_rule(c: RunConfig, judge: str) -> Rule:
    """Returns what the forward or literal judge of a run asks."""
    return Rule(
        judge="literal" if judge == "literal" else "forward",
        threshold=c.threshold,
        onsets=c.judge_onsets,
        floor=c.judge_floor,
        veto=c.judge_veto,
        cumulative=c.judge_cumulative,
        part=c.judge_part,
    )


def find_skips(
    ws: Workspace, name: str, judge: str, start: str, before: str | None = None,
    progress: Progress = quiet,
) -> list[Keep]:  # fmt: skip
    """Writes skips/<name>: which units stay, decided by a judge; returns them.

    Args:
        ws: the run.
        name: of this decision.
        judge: forward, literal, ratify (what `before` decided), oracle, random (as many as `before`
            left out) or none.
        start: the student that judges.
        before: the decision that this one continues.
        progress: is told the share done.
    """
    if ws.skips(name).exists():
        return ws.keeps(name)
    examples = ws.examples("train")
    begin, decisions = time.perf_counter(), []
    if judge in ("forward", "literal", "ratify"):
        if not ws.trained(start):
            raise UserError(f"{name} needs the student {start}; run `cwt train` for it first.")
        model, encoder = open_student(ws, str(ws.student(start)))
        items = load_training(ws, encoder)
        earlier = ws.keeps(before) if before else None
        rule = judge_rule(ws.config, judge)
        if judge == "ratify":
            assert earlier is not None
            keeps, decisions = ratify_units(rule, model, encoder, items, earlier, progress=progress)
        else:
            keeps, decisions = judge_units(rule, model, encoder, items, earlier, progress=progress)
    else:
        items = [Encoded(e.id, (), tuple(() for _ in e.units), (0, len(e.units))) for e in examples]
        if judge == "oracle":
            keeps = oracle_units(examples)
        elif judge == "random" and before:
            keeps = random_units(items, ws.keeps(before), ws.config.seed)
        else:
            keeps = [frozenset(range(len(e.units))) for e in examples]
    write_lines(ws.skips(name).with_suffix(".jsonl"), (asdict(d) for d in decisions))
    record = {
        "judge": judge,
        "student": start if decisions else None,
        "seconds": round(time.perf_counter() - begin, 2),
        "skipped_share": skipped_share(items, keeps),
        "removal_rates": removal_rates(examples, keeps),
        "keeps": [sorted(keep) for keep in keeps],
    }
    write_json(ws.skips(name), record)
    return keeps


def round_judge(ws: Workspace, index: int, row: str = "STT") -> str:
    """Returns who decides in a round, the first being 0; `STT-as-judged` never ratifies."""
    ratify = ws.config.ratify and row == "STT" and index % 2
    return "ratify" if ratify else ws.config.judge


def run_stt(ws: Workspace, row: str = "STT", progress: Progress = quiet) -> None:
    """Alternates deciding and training on what is left, from the parent on."""
    student, before = ws.config.parent, None
    rounds = ws.rounds(row)
    for r, name in enumerate(rounds):

        def part(share: float, text: str, r: int = r) -> None:
            progress((r + share) / len(rounds), f"round {r + 1}, {text}")

        keeps = find_skips(ws, name, round_judge(ws, r, row), student, before, part)
        train_on_skips(ws, name, student, keeps, 1, part)
        evaluate_student(ws, name, "validation", part)
        student = before = name


def best_round(ws: Workspace, row: str = "STT") -> str:
    """Returns the round with the best accuracy on validation, then the fewest tokens."""

    def rank(name: str) -> tuple[float, float]:
        found = read_json(ws.evaluation(f"{name}-validation"))
        return -found["accuracy"], found["generated_tokens"]

    return min(ws.rounds(row), key=rank)


def evaluate_student(
    ws: Workspace, name: str, part: str = "test", progress: Progress = quiet
) -> None:
    """Writes evals/<name>: the score on the test questions and what the student wrote."""
    path = ws.evaluation(name if part == "test" else f"{name}-{part}")
    if path.exists():
        return
    if not ws.trained(name):
        raise UserError(f"there is no student {name} yet; run `cwt train --method {name}` first.")
    model, encoder = open_student(ws, str(ws.student(name)))
    found, generations = evaluate(
        model, encoder, ws.examples(part), ws.config.max_new_tokens, ws.config.eval_batch_size,
        progress,
    )  # fmt: skip
    write_lines(path.with_suffix(".jsonl"), as_rows(generations))
    write_json(path, asdict(found))


def diagnose_student(ws: Workspace, name: str, examples: int = 48) -> dict[str, Any]:
    """Writes diagnostics/<name>.json: what its gradients and its loss look like.

    Held-out examples are validation questions under average chunking.
    """
    path = ws.out / "diagnostics" / f"{name}.json"
    if path.exists():
        return dict(read_json(path))
    if not ws.trained(name):
        raise UserError(f"there is no student {name} yet; run `cwt train --method {name}` first.")
    model, encoder = open_student(ws, str(ws.student(name)))
    held_out = [e for e in ws.examples("validation") if len(e.units) > 1][:examples]
    cuts = [average_chunks(len(e.units) - 1, ws.config.chunks) for e in held_out]
    test = [encoder.encode(e, [*c, len(e.units)]) for e, c in zip(held_out, cuts, strict=True)]
    known = load_training(ws, encoder)[:examples]
    found = diagnose(model, encoder, (ws.examples("train")[:examples], known), (held_out, test))
    write_json(path, found)
    return found
