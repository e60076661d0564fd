"""Distils chain-of-thought reasoning into small language models, chunk by chunk.

The student learns one chunk of the teacher's rationale at a time (chunk-wise training, CWT), then
learns to skip the steps that it does not need (skip-thinking training, STT).

    import cwt

    report = cwt.run(cwt.RunConfig(methods="FTT,CWT,STT"), "runs/first")   # all stages

    student = cwt.load_student("tiny")                                     # or stage by stage
    examples = cwt.chunk(student, cwt.load_examples("train.jsonl"))
    cwt.train(student, examples, cwt.Recipe(target="chunk", budget=400_000, batch_size=16), out)
    shorter, decisions = cwt.find_skips(student, examples)
    score, answers = cwt.evaluate(student, questions)

Names are loaded when they are first used: importing cwt loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwt.config import DataConfig, EvalConfig, RunConfig, SkipConfig, TrainConfig
    from cwt.data.example import Example, load_examples, write_examples
    from cwt.data.readers import read_examples
    from cwt.data.tasks import generate_examples
    from cwt.errors import UserError
    from cwt.evaluation.generation import evaluate
    from cwt.pipeline.run import run
    from cwt.pipeline.sweep import sweep
    from cwt.skipping.criterion import SkipCriterion
    from cwt.skipping.judge import find_skips
    from cwt.skipping.ratify import ratify_skips
    from cwt.students.load import load_student
    from cwt.students.student import Student
    from cwt.training.chunking import chunk
    from cwt.training.loop import train
    from cwt.training.recipe import ChunkOptions, Recipe

_HOME = {
    "ChunkOptions": "cwt.training.recipe",
    "DataConfig": "cwt.config",
    "EvalConfig": "cwt.config",
    "Example": "cwt.data.example",
    "Recipe": "cwt.training.recipe",
    "RunConfig": "cwt.config",
    "SkipConfig": "cwt.config",
    "SkipCriterion": "cwt.skipping.criterion",
    "Student": "cwt.students.student",
    "TrainConfig": "cwt.config",
    "UserError": "cwt.errors",
    "chunk": "cwt.training.chunking",
    "evaluate": "cwt.evaluation.generation",
    "find_skips": "cwt.skipping.judge",
    "generate_examples": "cwt.data.tasks",
    "load_examples": "cwt.data.example",
    "load_student": "cwt.students.load",
    "ratify_skips": "cwt.skipping.ratify",
    "read_examples": "cwt.data.readers",
    "run": "cwt.pipeline.run",
    "sweep": "cwt.pipeline.sweep",
    "train": "cwt.training.loop",
    "write_examples": "cwt.data.example",
}

__all__ = [
    "ChunkOptions",
    "DataConfig",
    "EvalConfig",
    "Example",
    "Recipe",
    "RunConfig",
    "SkipConfig",
    "SkipCriterion",
    "Student",
    "TrainConfig",
    "UserError",
    "__version__",
    "chunk",
    "evaluate",
    "find_skips",
    "generate_examples",
    "load_examples",
    "load_student",
    "ratify_skips",
    "read_examples",
    "run",
    "sweep",
    "train",
    "write_examples",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from cwt_ext import __version__

        return __version__
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cwt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
