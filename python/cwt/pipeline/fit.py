"""Options that suit the student, its data and the device: what a configuration leaves open."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cwt.config import RunConfig
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.files import read_json
from cwt.pipeline.methods import METHODS, chunkings, selected_methods
from cwt.pipeline.workspace import Workspace
from cwt.processes import start
from cwt.students.adapters import ADAPTER
from cwt.students.chat import PromptStyle
from cwt.students.load import check_files, load_student, load_tokenizer, positions_of
from cwt.students.loss import LINEAR
from cwt.students.memory import (
    Shape,
    average_bytes,
    cache_tokens,
    scoring_tokens,
    shape_of,
    training_tokens,
)
from cwt.students.precision import allow_tf32, compute_dtype
from cwt.students.quantize import FourBit, is_quantized
from cwt.students.student import Student
from cwt.students.tokenized import TokenizedExample

FULL_RATE, LORA_RATE = 2e-5, 1e-4  # learning rates of training all weights, and adapters alone
_STEP = 32  # max_new_tokens is a multiple of it
_READERS = {"judge", "literal", "perplexity", "entropy", "upset", "surprisal"}  # of whole rows


def device_of(ws: Workspace) -> torch.device:
    """Returns the device of this process."""
    return start(ws.config.cpu)


def prompt_style(config: RunConfig) -> PromptStyle:
    """Returns how the students of a run are asked."""
    return PromptStyle(config.prompt, config.chat_template, config.system)


def open_student(ws: Workspace, name: str = "") -> Student:
    """Returns a student of the run, by default the given one, on this process's device.

    Raises:
        UserError: a file of it has changed since it was trained; of the given one, since the run
            made its chunks.
    """
    c, device = ws.config, device_of(ws)
    source = checked_source(ws, name)
    dtype = compute_dtype(c.dtype, device)
    four_bit = FourBit(dtype, device) if c.quantize == "4bit" else None
    student = load_student(source, prompt_style(c), c.lora, four_bit)
    student.dtype = dtype
    allow_tf32(c.tf32)
    if student.dtype != torch.float32:
        for weight in student.model.parameters():
            # Frozen under adapters: never updated, so 16 bits do. What is packed stays.
            if not weight.requires_grad and weight.is_floating_point():
                weight.data = weight.data.to(student.dtype)
    student.to(device)
    if c.batches == "tokens":
        shape = shape_of(student.model)
        linear = student.loss_path == LINEAR
        student.pass_tokens = scoring_tokens(shape, device, student.dtype.itemsize, linear)
    return student


def checked_source(ws: Workspace, name: str = "") -> str:
    """Returns where a student of the run is loaded from; see `open_student`."""
    source = str(ws.student(name)) if name else ws.config.student
    record = ws.student(name) / "train.json" if name else ws.chunks_record
    if record.exists():  # runs of earlier versions have no checksums
        saved = read_json(record)
        wanted = saved.get("files" if name else "student_files", {})
        check_files(source, wanted, "it was trained" if name else f"{ws.out} made its chunks")
    return source


def open_to_write(ws: Workspace, name: str) -> Student:
    """Returns a student of the run that only generates: its weights too are in its format.

    Products are the same as with weights in float32, and keys and values take half the memory.
    """
    student = open_student(ws, name)
    if not is_quantized(student.model):
        student.model.to(student.dtype)
    return student


def describe(student: Student) -> dict[str, Any]:
    """Returns what a plan needs to know of a student.

    Its shape, the format of its products (dtype), and how its loss is computed (head).
    """
    dtype = str(student.dtype).removeprefix("torch.")
    return {**asdict(shape_of(student.model)), "dtype": dtype, "head": student.loss_path}


def token_lengths(examples: Sequence[TokenizedExample]) -> dict[str, int]:
    """Returns how long some examples are, in tokens.

    rationale_tokens, answer_tokens and prompt_tokens are sums; the others are lengths of one
    rationale, one prompt, or one row of both.
    """
    rationales = np.array([sum(map(len, x.units)) for x in examples])
    prompts = np.array([len(x.prompt) for x in examples])
    return {
        "rationale_tokens": int(rationales.sum()),
        "answer_tokens": sum(len(x.units[-1]) for x in examples),
        "prompt_tokens": int(prompts.sum()),
        "median_rationale": int(np.median(rationales)),
        "rationale_99": int(np.quantile(rationales, 0.99, method="higher")),
        "longest_rationale": int(rationales.max()),
        "longest_prompt": int(prompts.max()),
        "longest_row": int((rationales + prompts).max()),
    }


def reads_whole_rows(config: RunConfig) -> bool:
    """Returns whether a judge or a chunking of the run reads question and rationale at once."""
    if config.chunk.compare or any(m not in ("ac", "length") for m in chunkings(config)):
        return True
    return any(METHODS[name].skips in _READERS for name in selected_methods(config))


def rows_too_long(config: RunConfig, examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Returns the examples that no judge of the run could read, and the student's positions.

    Loads the tokenizer of the student, not its weights.
    """
    positions = positions_of(config.student) if reads_whole_rows(config) else 0
    if not positions:
        return [], 0
    tokenizer = load_tokenizer(config.student, prompt_style(config))
    rows = ((e, tokenizer.tokenize(e.keeping(None))) for e in examples)
    long = [e for e, row in rows if len(row.prompt) + sum(map(len, row.units)) > positions]
    return long, positions


def check_positions(longest_row: int, positions: int) -> None:
    """Raises where a stage would read a row that has no place in the student.

    Args:
        longest_row: tokens of the longest question with its rationale.
        positions: of the student; 0: no limit known.
    """
    if positions and longest_row > positions:
        raise UserError(
            f"the longest question with its rationale has {longest_row} tokens, the student "
            f"{positions} positions, and judges and chunkings by the student read whole rows: "
            "leave long rationales out, or run --methods FTT,CWT with --chunk.method length "
            "--chunk.no-compare, which train on rows that fit."
        )


def fitted_options(ws: Workspace) -> dict[str, Any]:
    """Returns the options of a recipe that the student, its data or the device decide.

    Epochs become loss tokens of the whole rationales, so that rows which leave sentences out train
    as long as those that do not.
    """
    c, record = ws.config.train, read_json(ws.chunks_record)
    options: dict[str, Any] = {"budget": c.budget}
    if c.epochs or c.budget_unit == "epochs":
        tokens = record["tokens_per_epoch"] * (c.epochs or c.budget)
        options = {"budget": max(1, round(tokens)), "budget_unit": "loss_tokens"}
    if not c.learning_rate:
        options["learning_rate"] = LORA_RATE if is_adapter(ws) else FULL_RATE
    if "student" in record:
        positions = record["student"]["positions"]
        if positions and record["lengths"]["longest_row"] > (c.max_length or positions):
            options["max_length"] = min(c.max_length or positions, positions)
    if ws.config.batches == "tokens" and not c.micro_batch_tokens and not c.micro_batch_size:
        shape, element = saved_shape(record)
        options["micro_batch_tokens"] = training_tokens(
            shape, device_of(ws), element, c.gradient_checkpointing, is_linear(record),
            average_bytes(c.optimizer),
        )  # fmt: skip
    return options


def is_adapter(ws: Workspace) -> bool:
    """Returns whether the run trains adapters: new ones, or those of the given student."""
    return bool(ws.config.lora) or (Path(ws.config.student) / ADAPTER).exists()


def saved_shape(record: dict[str, Any]) -> tuple[Shape, int]:
    """Returns the shape of the student that chunks.json describes, and bytes of its products."""
    facts = {name: value for name, value in record["student"].items() if name != "head"}
    element: int = getattr(torch, facts.pop("dtype")).itemsize
    return Shape(**facts), element


def is_linear(record: dict[str, Any]) -> bool:
    """Returns whether linear_chunk_loss computes the loss of the student of chunks.json."""
    return bool(record["student"].get("head") == LINEAR)  # runs of earlier versions do not say


@dataclass(frozen=True)
class GenerationLimits:
    """How a student answers: see cwt.evaluation.generation.evaluate."""

    max_new_tokens: int
    batch_size: int
    batch_tokens: int


def generation_limits(
    ws: Workspace, student: Student, questions: Sequence[Example]
) -> GenerationLimits:
    """Returns how many tokens a student may write, and how many questions it answers at once.

    Raises:
        UserError: a question leaves no position of the student free for an answer.
    """
    c, shape = ws.config.eval, shape_of(student.model)
    longest = max(len(student.prompt(e.question)) for e in questions)
    wanted = answer_tokens(ws, longest, shape.positions)
    tokens = 0
    if ws.config.batches == "tokens":
        tokens = cache_tokens(shape, student.device, student.dtype.itemsize)
    return GenerationLimits(wanted, 0 if tokens else c.batch_size, tokens)


def answer_tokens(ws: Workspace, longest: int, positions: int) -> int:
    """Returns how many tokens an answer may have, at most.

    Args:
        ws: the run.
        longest: tokens of the longest prompt.
        positions: of the student; 0: no limit known.

    Raises:
        UserError: the longest prompt leaves no position free for an answer.
    """
    wanted = ws.config.eval.max_new_tokens
    wanted = wanted or written_tokens(read_json(ws.chunks_record)["lengths"])
    if not positions:
        return wanted
    if longest >= positions:
        raise UserError(
            f"a question of {longest} tokens leaves no room for an answer: the student has "
            f"{positions} positions."
        )
    return min(wanted, positions - longest)


def written_tokens(lengths: dict[str, int]) -> int:
    """Returns max_new_tokens: a quarter more than 99 of 100 training rationales have."""
    return -(-lengths["rationale_99"] * 5 // 4 // _STEP) * _STEP
