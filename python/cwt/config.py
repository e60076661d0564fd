"""The configuration of a run: a frozen dataclass, from a preset, a YAML file and flags."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import UserError
from .files import write_text
from .recipe import BudgetUnit, ChunkMethod, Objective, Part, Schedule
from .tasks import TASKS
from .units import UnitKind

PRESETS = Path(__file__).parent / "presets"


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run. The saved config.yaml holds it whole."""

    student: str = option("tiny", "tiny, a Hugging Face or GGUF folder, or a name on the hub")
    prompt: str = option("{question}\n", "prompt template, with {question} in it")
    seed: int = option(0, "of the data, the order of training and the controls")
    task: str = option("arithmetic", f"generated task: {', '.join(TASKS)}")
    steps: int = option(0, "reasoning steps of a generated problem, 0 for the task's own")
    data: str = option("", "file of teacher rationales (JSON or JSONL) in place of generated ones")
    eval_data: str = option("", "file of test questions; without it a part of --data is held out")
    unit: UnitKind = option("sentence", "the piece of a rationale that is never cut")
    train_size: int = option(600, "training examples at the most")
    validation_size: int = option(100, "validation questions, from the training file or generator")
    test_size: int = option(300, "test questions at the most")

    chunking: ChunkMethod = option("ac", "how units become chunks: ac, dp, sbc or sbc-exact")
    chunks: int = option(5, "chunks before the answer, which is always one of its own")
    objective: Objective = option("mean", "of sbc: NLL per token of a chunk, or summed")
    embeddings: str = option("student", "of dp: student, tfidf, or a sentence-transformers folder")
    schedule: Schedule = option("shuffled", "of CWT: shuffled, by-index, curriculum or adaptive")

    methods: str = option("all", "comma-separated rows of the table, or all")
    budget: int = option(400_000, "how long each method trains, in --budget_unit")
    budget_unit: BudgetUnit = option("loss_tokens", "of budget: loss-bearing or processed tokens")
    parent: str = option("FTT-small-batch", "row of the table that STT and its controls go on from")
    batch_size: int = option(4, "samples of a step of answer-only and FTT, STT and its controls")
    cwt_batch_size: int = option(16, "samples (one chunk each) of a step of CWT")
    small_batch_size: int = option(2, "samples of a step of FTT-small-batch, -sentence-dropout")
    micro_batch_size: int = option(0, "samples of one forward pass, 0 for all of a step")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.1, "of AdamW")
    sentence_dropout: float = option(0.25, "of FTT-sentence-dropout: chance to leave a unit out")
    max_length: int = option(0, "tokens of a training row, 0 for no limit; cut from the left")

    judge: Literal["forward", "literal"] = option("forward", "which judge decides what to skip")
    rounds: int = option(4, "rounds of deciding and STT; the best on validation is kept")
    ratify: bool = option(True, "in every other round the student ratifies what the judge decided")
    threshold: float = option(0.9, "least probability of a token that a skip must not upset")
    judge_part: Part = option("unit", "what the judge lets go as one: unit, or chunk")
    judge_onsets: bool = option(False, "the first token of a unit may veto a skip too")
    judge_floor: float = option(0.0, "a token whose probability falls below this vetoes a skip")
    judge_veto: float = option(0.5, "rise of the answer's NLL that vetoes a skip, in nats")
    judge_cumulative: bool = option(True, "judge with the holes already made, not one at a time")
    stt_share: float = option(0.2, "part of --budget that each STT round trains on")
    mix_full: float = option(0.0, "share of full rationales added to the shortened ones")

    max_new_tokens: int = option(256, "generated per question at the most")
    eval_batch_size: int = option(100, "questions generated at once")
    cpu: bool = option(False, "stay on the CPU even where there is a GPU")

    def __post_init__(self) -> None:
        at_least = {
            "train_size": 1, "validation_size": 1, "test_size": 1, "chunks": 1, "budget": 1,
            "batch_size": 1, "cwt_batch_size": 1, "small_batch_size": 1, "rounds": 1,
            "max_new_tokens": 1, "eval_batch_size": 1,
            "steps": 0, "micro_batch_size": 0, "max_length": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("sentence_dropout", "threshold", "judge_floor", "stt_share", "mix_full"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be between 0 and 1, got {value}.")
        if not self.judge_veto >= 0:
            raise UserError(f"judge_veto must be at least 0, got {self.judge_veto}.")
        if self.task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}.")
        if self.eval_data and not self.data:
            raise UserError("eval_data needs data: it is the test part of the same job.")


def preset_values(name: str) -> dict[str, Any]:
    """Returns what a preset sets.

    Raises:
        UserError: no preset of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"preset must be one of {known}, got {name!r}.")
    return yaml_values(path)


def yaml_values(path: Path) -> dict[str, Any]:
    """Returns the fields that a YAML file sets.

    Raises:
        UserError: no such file, not YAML, not a mapping, or a field that does not exist.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML: {reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: wanted a mapping of options, got {type(values).__name__}.")
    known = {f.name for f in dataclasses.fields(RunConfig)}
    if unknown := sorted(set(map(str, values)) - known):
        raise UserError(f"{path}: unknown option {', '.join(unknown)}.")
    return values


def save_config(path: Path, config: RunConfig) -> None:
    write_text(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def load_config(path: Path) -> RunConfig:
    return RunConfig(**yaml_values(path))
