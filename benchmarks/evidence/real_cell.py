"""One cell of the matrix of real.py: a task and a seed, some rows of the table, in one process."""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import real_decode
import torch
from cwt.config import RunConfig, TrainConfig, configured
from cwt.errors import UserError
from cwt.files import read_json, write_json
from cwt.pipeline.data import make_data
from cwt.pipeline.methods import METHODS, needs, trained_for
from cwt.pipeline.results import write_report
from cwt.pipeline.run import run_method
from cwt.pipeline.stages import ask_student, evaluate_student, make_chunks, train_method
from cwt.pipeline.workspace import Workspace, open_workspace
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student, quiet_libraries
from cwt.training.recipe import ChunkOptions

AT_ONCE = "STT-at-once"
PARENT = "FTT"  # what skip-thinking training and its controls go on from
MICRO_BATCH_TOKENS = 8192  # of one pass, padding included: 11 GB of activations in float32
LONG_AS = "CWT"  # the row whose processed tokens `long` cells give to FTT


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        data: folder of <task>.json with <task>.split.json.
        student: folder of the model.
        work: folder of all runs.
        epochs: passes over the rationales of every row, counted in loss tokens.
        batch: rationales of one optimizer step; chunk-wise training has as many in chunks.
        max_new_tokens: tokens written for a question, at most.
        sizes: training examples, validation questions, test questions, at most.
        graphs: whether generation uses CUDA graphs.
        cpu: stay on the CPU.
        overrides: options of the run that replace what is set here.
    """

    data: Path
    student: str
    work: Path
    epochs: float = 4.0
    batch: int = 8
    max_new_tokens: int = 192
    sizes: tuple[int, int, int] = (300, 50, 1000)
    graphs: bool = False
    cpu: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A piece of the matrix.

    Attributes:
        kind: sweep trains FTT and asks it validation questions alone; rows trains and tests rows;
            long trains FTT until it has processed as many tokens as CWT did.
        task: name of the task's file.
        seed: of the run.
        learning_rate: of the run; rows that go on from a parent have half of it.
        rows: of the table, in the order in which they are wanted.
        lora: train adapters of this kind in place of all weights (the option of `cwt`); or nothing.
    """

    kind: str
    task: str
    seed: int
    learning_rate: float
    rows: tuple[str, ...] = ()
    lora: str = ""

    @property
    def folder(self) -> str:
        """The folder of its run, in that of all runs."""
        name = f"{self.task}-{self.seed}"
        if self.kind == "sweep":
            return f"sweep/{name}-{self.learning_rate:g}{'-lora' if self.lora else ''}"
        return f"{name}-long" if self.kind == "long" else name


def run_config(cell: Cell, settings: Settings) -> RunConfig:
    """Returns the configuration of a cell's run."""
    file = str(settings.data / f"{cell.task}.json")
    train, validation, test = settings.sizes
    values: dict[str, Any] = {
        "student": settings.student,
        "seed": cell.seed,
        "cpu": settings.cpu,
        "lora": cell.lora,
        "data": {
            "file": file,
            "eval_file": file,
            "train_size": train,
            "validation_size": validation,
            "test_size": test,
        },
        "train": {
            "epochs": settings.epochs,
            "parent": PARENT,
            "batch_size": settings.batch,
            "small_batch_size": settings.batch,  # of CWT-one-pass: as many steps as FTT
            "learning_rate": cell.learning_rate,
            "checkpoint_seconds": 1e9,  # a row takes seconds; its weights take as long to write
        },
        "eval": {
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": 1000,
            "latency_questions": 0,
        },
    }
    if "compare" in ChunkOptions.__dataclass_fields__:
        values["chunk"] = {"compare": False}  # chunkings that no row trains on
    if "micro_batch_tokens" in TrainConfig.__dataclass_fields__:
        values["train"]["micro_batch_tokens"] = MICRO_BATCH_TOKENS
    if "tf32" in RunConfig.__dataclass_fields__:
        values["tf32"] = True
    config = configured(RunConfig(), values, "real.py")
    return configured(config, settings.overrides, "--set")


def run_cell(cell: Cell, settings: Settings) -> None:
    """Does what is missing of a cell; every row is on the disk as soon as it ends."""
    prepare(settings)
    config, folder = run_config(cell, settings), settings.work / cell.folder
    if cell.kind == "long":
        config = _as_long_as(config, settings.work / f"{cell.task}-{cell.seed}")
    if not (folder / "chunks" / "chunks.json").exists():
        ws = open_workspace(config, folder)
        with ws.locked():
            make_data(ws)
            make_chunks(ws)
    ws = open_workspace(_with_equal_steps(config, folder), folder)
    with ws.locked():
        if cell.kind == "sweep":
            _validate(ws)
            return
        for name in in_order(cell.rows, ws.config):
            if not ws.method(name).exists():
                with _timed(ws, name):
                    if name == "STT":
                        take_over_rounds(ws)
                    run_method(ws, name)
                    if name == "continued":  # STT compares itself with it; its weights go
                        ask_student(ws, METHODS["STT"], name)
            forget_weights(ws, name, but=PARENT if cell.kind == "rows" else "")
            write_report(ws)


def take_over_rounds(ws: Workspace) -> None:
    """Gives the rounds of STT-at-once to STT, which would train the same, unless STT has to wait.

    The two differ in what they may end with. Their files are the same ones on the disk.
    """
    if ws.config.skip.ready_skill or not ws.method(AT_ONCE).exists():
        return
    for room in ("students", "skips", "evals"):
        for path in list(ws.out.glob(f"{room}/{AT_ONCE}-round-*")):
            target = path.with_name(path.name.replace(AT_ONCE, "STT"))
            if path.is_dir():
                shutil.copytree(path, target, copy_function=os.link, dirs_exist_ok=True)
            elif not target.exists():
                os.link(path, target)


def is_done(cell: Cell, settings: Settings) -> bool:
    """Returns whether every row of a cell has its result."""
    methods = settings.work / cell.folder / "methods"
    return bool(cell.rows) and all((methods / f"{row}.json").exists() for row in cell.rows)


def prepare(settings: Settings) -> None:
    """Sets this process up: one thread, TensorFloat-32, generation by graphs, matched controls."""
    quiet_libraries()
    prepare_methods()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    if settings.graphs:
        CausalStudent.generate = real_decode.generate  # type: ignore[method-assign]


def prepare_methods() -> None:
    """Makes the controls of STT copy STT-at-once: where STT declines they would skip nothing."""
    for name, method in METHODS.items():
        if method.matches == "STT" and AT_ONCE in METHODS:
            METHODS[name] = replace(method, matches=AT_ONCE)


def _as_long_as(config: RunConfig, other: Path) -> RunConfig:
    """Returns the configuration with the processed tokens of CWT in another run as budget."""
    tokens = read_json(other / "students" / LONG_AS / "train.json")["processed_tokens"]
    train = {"budget": tokens, "budget_unit": "processed_tokens", "epochs": 0}
    return configured(config, {"train": train}, "real.py")


def _with_equal_steps(config: RunConfig, folder: Path) -> RunConfig:
    """Returns the configuration in which a step of CWT has as many rationales as one of FTT.

    So both take as many steps for as many loss tokens, and FTT is the control for the step size.
    """
    chunkings = read_json(folder / "chunks" / "chunks.json")["chunkings"]
    chunks = round(config.train.batch_size * chunkings[config.chunk.method]["chunks"])
    return replace(config, train=replace(config.train, chunk_batch_size=chunks))


def _validate(ws: Workspace) -> None:
    train_method(ws, METHODS[PARENT])
    evaluate_student(ws, PARENT, "validation")


def in_order(rows: Sequence[str], config: RunConfig) -> list[str]:
    """Returns rows in the order asked for, each after those that it needs."""
    done: list[str] = []

    def add(name: str) -> None:
        for other in needs(METHODS[name], config):
            add(other)
        if name not in done:
            done.append(name)

    for name in rows:
        add(name)
    return done


@contextmanager
def _timed(ws: Workspace, name: str) -> Iterator[None]:
    """Writes the wall time of a row and the most GPU memory of its process so far."""
    begin = time.perf_counter()
    yield
    gc.collect()
    torch.cuda.empty_cache()  # others need it; nothing without a GPU
    path = ws.out / "seconds.json"
    record = read_json(path) if path.exists() else {}
    peak = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    record[name] = {"seconds": round(time.perf_counter() - begin, 1), "gpu_gib": round(peak, 1)}
    write_json(path, record)
    print(f"{ws.out.name}: {name}, {record[name]}", flush=True)


def forget_weights(ws: Workspace, name: str, but: str) -> None:
    """Removes the weights that were trained for a finished row, but for those of one student.

    Weights of all cells would take 100 GB; scores, texts, skips and costs stay.
    """
    for student in trained_for(METHODS[name], ws.config, ws.student_of(name)):
        if student != but:
            for path in ws.student(student).glob("*.safetensors"):
                path.unlink()


def check_student(settings: Settings, source: str, tokens: int = 48) -> dict[str, Any]:
    """Writes the student as a folder that loads fast; tries generation by graphs on this machine.

    Returns:
        How far graphs and the library agree, or why there are none, and the milliseconds that a
        token of one answer takes in each, with nothing beside it.

    Raises:
        UserError: there is no GPU, and settings.cpu is not set.
    """
    quiet_libraries()
    torch.set_num_threads(2)
    if not settings.cpu and not torch.cuda.is_available():
        raise UserError("there is no GPU; --cpu runs on the CPU.")
    folder = Path(settings.student)
    if not (folder / "config.json").exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        load_student(source).save(part)
        part.rename(folder)
    student = load_student(settings.student)
    student.to(torch.device("cpu" if settings.cpu else "cuda"))
    questions = [f"Ann has {n} apples and buys {n + 3}. How many has she?" for n in range(2, 10)]
    prompts = [student.prompt(question) for question in questions]
    found: dict[str, Any] = {"device": student.device.type, "torch": torch.__version__}
    if student.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    found["library_ms_a_token"] = _ms_a_token(student, CausalStudent.generate, prompts[0], tokens)
    try:
        found["agreement"] = real_decode.agreement(student, prompts, tokens)
        found["graph_ms_a_token"] = _ms_a_token(student, real_decode.generate, prompts[0], tokens)
    except RuntimeError as error:
        found |= {"agreement": 0.0, "graph_error": str(error)}
    return found


def _ms_a_token(
    student: CausalStudent, generate: Callable[..., list[list[int]]], prompt: Any, tokens: int
) -> float:
    """Returns the milliseconds that a token of one answer takes, the median of three answers."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        (row,) = generate(student, [prompt], tokens)
        times.append((time.perf_counter() - begin) / len(row))
    return round(1000 * sorted(times)[1], 2)
