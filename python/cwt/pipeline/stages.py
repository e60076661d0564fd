"""The stages of a run after its data. Each reads the files of the stage before and writes its own.

A stage whose result is there does nothing, so a run that was stopped goes on where it was.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from cwt.data.example import Example, write_examples
from cwt.errors import UserError
from cwt.evaluation.diagnostics import diagnose
from cwt.evaluation.generation import Generation, evaluate_by, latency_by, score
from cwt.files import read_json, write_json, write_lines
from cwt.pipeline.choice import (
    asked_parts,
    chosen_student,
    readiness,
    training_questions,
    write_choice,
)
from cwt.pipeline.fit import (
    check_positions,
    describe,
    fitted_options,
    open_student,
    reads_whole_rows,
    token_lengths,
)
from cwt.pipeline.generators import open_generator
from cwt.pipeline.methods import (
    CONTINUED,
    METHODS,
    Method,
    chunkings,
    matched_row,
    parent_of,
    round_names,
)
from cwt.pipeline.skips import decide_skips
from cwt.pipeline.workspace import Workspace
from cwt.processes import Shares, by_main, from_all
from cwt.progress import Progress, part_of, quiet
from cwt.skipping.controls import removal_rates, skipped_share
from cwt.skipping.search import search_cost
from cwt.students.load import student_files
from cwt.students.student import Student
from cwt.students.supervision import supervision
from cwt.training.chunking import Segmenter, average_chunks, chunk_shares
from cwt.training.loop import train
from cwt.training.recipe import ChunkMethod, Recipe, TrainingOptions


def make_chunks(
    ws: Workspace, progress: Progress = quiet, also: Sequence[ChunkMethod] = ()
) -> dict[str, Any]:
    """Writes chunks/: the boundaries under every chunking method, or under those that rows need.

    chunks.json also says how long the training examples are, in tokens of the student.

    Args:
        ws: the run; its data is there.
        progress: called with the share done and what is being done.
        also: methods that are needed beside those that the configuration asks for.

    Returns:
        For each method the mean number of chunks and, where methods are compared, the mean over the
        examples of their cost.
    """
    saved = dict(read_json(ws.chunks_record)) if ws.chunks_record.exists() else {}
    record: dict[str, Any] = saved.get("chunkings", {})
    todo = [m for m in (*chunkings(ws.config), *also) if m not in record]
    if not todo:
        return record
    examples = ws.examples("train")
    student = open_student(ws)
    shares = chunk_shares(student, examples, ws.config.chunk)
    segmenter = Segmenter(student, shares.mine, ws.config.chunk)
    tokenized = segmenter.tokenized
    if shares.processes > 1:  # tokens are quick to count, the lengths are those of all
        tokenized = [student.tokenize(e.keeping(None)) for e in examples]
    lengths, facts = token_lengths(tokenized), describe(student)
    if reads_whole_rows(ws.config):
        check_positions(lengths["longest_row"], facts["positions"])
    for i, method in enumerate(todo):
        progress(i / len(todo), method)
        mine = segmenter.boundaries(method)
        cuts = shares.gather(mine)
        record[method] = {"chunks": sum(len(b) - 1 for b in cuts) / len(cuts)}
        if ws.config.chunk.compare:
            costs = shares.gather(segmenter.total_costs(mine))
            record[method]["cost"] = float(np.mean(costs))
        rows = [{"id": e.id, "boundaries": b} for e, b in zip(examples, cuts, strict=True)]
        by_main(partial(write_lines, ws.chunks(method), rows))
    tokens = lengths["rationale_tokens"]
    found = {"tokens_per_epoch": tokens, "lengths": lengths, "student": facts}
    report = saved.get("supervision")
    found["supervision"] = report or supervision(student, tokenized, facts["positions"])
    found["search"] = search_cost(tokenized)
    found["student_files"] = saved.get("student_files") or student_files(ws.config.student)
    by_main(partial(write_json, ws.chunks_record, {"chunkings": record, **found}))
    return record


def recipe_of(ws: Workspace, method: Method) -> Recipe:
    """Returns the recipe of a row.

    A row that goes on from a parent has half the learning rate, because the student has converged
    once.
    """
    c = ws.config.train
    shared = {name: getattr(c, name) for name in TrainingOptions.__dataclass_fields__}
    recipe = Recipe(
        target=method.target,
        batch_size=getattr(c, method.batch),
        sentence_dropout=c.sentence_dropout if method.dropout else 0.0,
        weigh=method.weigh,
        stage_marks=method.stage_marks,
        seed=ws.config.seed,
        **shared | fitted_options(ws),
    )
    if method.budget_unit:
        recipe = replace(recipe, budget_unit=method.budget_unit)
    if method.rechunk:
        recipe = replace(recipe, rechunk=replace(ws.config.chunk, method=method.rechunk))
    if method.schedule:
        recipe = replace(recipe, schedule=method.schedule)
    if parent_of(method, ws.config):
        recipe = replace(recipe, learning_rate=recipe.learning_rate / 2)
    return recipe


def continued_recipe(ws: Workspace, method: Method, rounds: int) -> Recipe:
    """Returns the recipe of training on from the parent, with the budget of some rounds."""
    recipe = recipe_of(ws, method)
    budget = recipe.budget * ws.config.skip.budget_share * rounds
    return replace(recipe, budget=max(1, round(budget)))


def train_method(ws: Workspace, method: Method, progress: Progress = quiet) -> str:
    """Trains a row of the table, in all its rounds; returns its student (of STT: the chosen)."""
    parent = parent_of(method, ws.config)
    if parent is None:
        _train_base(ws, method, progress)
        return method.name
    if method.in_rounds:
        _train_rounds(ws, method, parent, progress)
        return by_main(partial(write_choice, ws, method))
    skip_units(ws, method.name, method, parent, like=_matched_student(ws, method))
    train_on(ws, method.name, method, parent, ws.config.skip.rounds, progress)
    return method.name


def _matched_student(ws: Workspace, method: Method) -> str | None:
    """Returns the student whose number of skips a control copies; None where it has none."""
    matches = matched_row(method, ws.config)
    student = chosen_student(ws, METHODS[matches]) if matches else None
    return student if student and ws.skips(student).exists() else None  # STT may be its parent


def _train_base(ws: Workspace, method: Method, progress: Progress) -> None:
    if ws.trained(method.name):
        return
    if method.chunking and ws.chunks_record.exists():
        make_chunks(ws, also=[method.chunking])
    examples = ws.training_examples(method.chunking)
    recipe = recipe_of(ws, method)
    # Whole rationales say nothing of a student that learns to leave sentences out.
    measured = recipe.validations and not method.dropout
    held_out = ws.examples("validation") if measured else []
    folder, c = ws.student(method.name), ws.config
    train(open_student(ws), examples, recipe, folder, progress, c.cpu, held_out, c.trackers)


def train_on(
    ws: Workspace, name: str, method: Method, start: str, rounds: int, progress: Progress = quiet
) -> None:
    """Trains on from a student of this run on what is left of the rationales.

    Args:
        ws: the run.
        name: the new student; its skips are decided.
        method: the row that it belongs to.
        start: the student to go on from.
        rounds: the budget, in rounds.
        progress: called with the share done and what is being done.
    """
    if ws.trained(name):
        return
    if not ws.trained(start):
        raise UserError(f"{name} continues {start}; run `cwt train --method {start}` first.")
    examples = shortened_examples(ws, name, method)
    recipe = continued_recipe(ws, method, rounds)
    folder, c = ws.student(name), ws.config
    train(open_student(ws, start), examples, recipe, folder, progress, c.cpu, (), c.trackers)


def shortened_examples(ws: Workspace, name: str, method: Method) -> list[Example]:
    """Returns the training examples as a student trains on them: shortened, some also whole."""
    share = ws.config.skip.mix_full if method.mix_full is None else method.mix_full
    whole = ws.training_examples()
    rng = random.Random(f"mix-{ws.config.seed}")
    mixed_in = [e for e in whole if rng.random() < share]
    left = ws.with_skips(whole, name) if ws.skips(name).exists() else whole
    return [*left, *mixed_in]


def _train_rounds(ws: Workspace, method: Method, parent: str, progress: Progress) -> None:
    """Alternates deciding and training on what is left, from the parent on."""
    rounds = round_names(method.name, ws.config.skip.rounds)
    for r, name in enumerate(rounds):
        told = part_of(progress, r / len(rounds), (r + 1) / len(rounds), f"round {r + 1}, ")
        if skip_round(ws, method, r, told) is None:
            break
        train_on(ws, name, method, rounds[r - 1] if r else parent, 1, told)
        ask_student(ws, method, name, told)
    if method.may_decline:
        train_method(ws, METHODS[CONTINUED], progress)  # where the row itself was not trained yet
        for name in (CONTINUED, parent):
            ask_student(ws, method, name, progress)


def ask_student(ws: Workspace, method: Method, name: str, progress: Progress = quiet) -> None:
    """Has a student answer the questions that decide what a row ends with."""
    for part in asked_parts(ws, method):
        evaluate_student(ws, name, part, progress)


def skip_round(ws: Workspace, method: Method, index: int, progress: Progress = quiet) -> str | None:
    """Decides the skips of a round, the first being 0; returns the round's name.

    Until the student is ready, a round skips nothing. None: the student is not ready, and too few
    rounds are left to wait: a judged round and one that ratifies it.
    """
    rounds = round_names(method.name, ws.config.skip.rounds)
    before = rounds[index - 1] if index else None
    judge = before or parent_of(method, ws.config)
    assert judge is not None
    if method.skips == "schedule":
        part = (index + 1) / len(rounds)
        like = _matched_student(ws, method)
        skip_units(ws, rounds[index], method, judge, like, progress=progress, part=part)
        return rounds[index]
    skipping = sum(read_json(ws.skips(name))["judge"] != "none" for name in rounds[:index])
    if method.may_decline and not skipping:
        _check_trained(ws, judge)
        evaluate_student(ws, judge, "validation", progress)
        if not readiness(ws, judge).ready:
            if len(rounds) - index - 1 < 2:
                return None
            method = replace(method, skips="none")
    ratify = bool(ws.config.skip.ratify and method.ratify and skipping % 2)
    skip_units(ws, rounds[index], method, judge, before, ratify, progress)
    return rounds[index]


def skip_units(
    ws: Workspace,
    name: str,
    method: Method,
    judge: str,
    like: str | None = None,
    ratify: bool = False,
    progress: Progress = quiet,
    part: float = 1.0,
) -> None:
    """Writes skips/<name>: which units of the training examples stay, and why.

    Args:
        ws: the run.
        name: the student that will be trained on them.
        method: the row, which says who decides.
        judge: the student that decides, where one does.
        like: the student whose skips a judge starts from, or whose number of skips a control
            copies.
        ratify: whether the student decides again what was decided in the round before.
        progress: called with the share done and what is being done.
        part: of the units to go, for a row that takes them away step by step.
    """
    if ws.skips(name).exists():
        return
    begin = time.perf_counter()
    examples = ws.training_examples()
    if like:
        examples = ws.with_skips(examples, like)

    def judging() -> Student:
        _check_trained(ws, judge)
        return open_student(ws, judge)

    found = decide_skips(ws, method, judging, examples, ratify, part, progress)

    def write() -> None:
        write_lines(ws.decisions(name), (asdict(d) for d in found.decisions))
        if found.rewritten:
            write_examples(ws.rewritten(name), found.examples)
        write_json(ws.skips(name), record)

    record = {
        "judge": "ratify" if ratify else _judge_name(ws, method),
        "student": judge if found.decisions else None,
        "seconds": round(time.perf_counter() - begin, 2),
        "skipped_share": None if found.rewritten else skipped_share(found.examples),
        "unsearched_units": sum(not d.searched for d in found.decisions),
        "removal_rates": {} if found.rewritten else removal_rates(found.examples),
        "kept_units": [sorted(e.kept) for e in found.examples],
    }
    by_main(write)


def _judge_name(ws: Workspace, method: Method) -> str:
    return ws.config.skip.judge if method.skips == "judge" else str(method.skips)


def _check_trained(ws: Workspace, judge: str) -> None:
    if not ws.trained(judge):
        raise UserError(
            f"the judge needs the student {judge}; run `cwt train --method {judge}` first."
        )


def evaluate_student(
    ws: Workspace, name: str, part: str = "test", progress: Progress = quiet, served: str = ""
) -> dict[str, Any]:
    """Writes evals/<name>, the score on some questions and what the student wrote; returns it.

    Of the training examples it asks those that help to choose. `served` is the student's name on
    a server, by default its folder.
    """
    path = ws.evaluation(name, part)
    if path.exists():
        return dict(read_json(path))
    _check_there(ws, name)
    questions = training_questions(ws) if part == "train" else ws.examples(part)
    generator, tokens = open_generator(ws, name, questions, served)
    shares = Shares(questions)
    mine: list[Generation] = []
    seconds = 0.0
    if shares.mine:
        found, mine = evaluate_by(generator, shares.mine, tokens, progress)
        seconds = found.seconds_per_answer * found.questions
    written = shares.gather(mine)
    record = asdict(score(written, max(from_all(seconds))))

    def write() -> None:
        write_lines(ws.generations(name, part), (asdict(g) for g in written))
        write_json(path, record)

    by_main(write)
    return record


def measure_latency(ws: Workspace, name: str, served: str = "") -> None:
    """Writes latency/<name>.json, the median wall time of one answer; run nothing beside it.

    Of several processes the first one measures, while the others wait.
    """
    by_main(partial(_measure_latency, ws, name, served))


def _measure_latency(ws: Workspace, name: str, served: str) -> None:
    c = ws.config.eval
    if ws.latency(name).exists() or not c.latency_questions:
        return
    _check_there(ws, name)
    questions = ws.examples("test")[: c.latency_questions]
    generator, tokens = open_generator(ws, name, questions, served)
    seconds = latency_by(generator, questions, tokens)
    write_json(ws.latency(name), {"seconds": seconds, "questions": len(questions)})


def diagnose_student(ws: Workspace, name: str, examples: int = 48) -> dict[str, Any]:
    """Writes diagnostics/<name>.json, figures of the student's gradients and loss; returns them.

    Held-out examples are validation questions under average chunking.
    """
    path = ws.diagnostics(name)
    if path.exists():
        return dict(read_json(path))
    _check_trained(ws, name)
    student = open_student(ws, name)
    held_out = [e for e in ws.examples("validation") if len(e.units) > 1][:examples]
    cuts = [average_chunks(len(e.units) - 1, ws.config.chunk.count) for e in held_out]
    test = [e.chunked([*c, len(e.units)]) for e, c in zip(held_out, cuts, strict=True)]
    known = ws.training_examples()[:examples]
    in_tokens = [[student.tokenize(e) for e in part] for part in (known, test)]
    found = diagnose(student, in_tokens[0], in_tokens[1])
    by_main(partial(write_json, path, found))
    return found


def _check_there(ws: Workspace, name: str) -> None:
    if not ws.trained(name):
        raise UserError(f"there is no student {name} yet; run `cwt train --method {name}` first.")
