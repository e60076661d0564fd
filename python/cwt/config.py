"""The configuration of a run, nested by stage; read from a preset, a YAML file and flags.

It loads neither torch nor a model, so that `cwt COMMAND --help` is quick.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from cwt.data.units import UnitKind
from cwt.errors import UserError
from cwt.files import write_text
from cwt.skipping.criterion import SkipCriterion
from cwt.training.recipe import ChunkOptions, Optimizer, Precision, TrainingOptions

PRESETS = Path(__file__).parent / "presets"


def short(name: str) -> Any:
    """Returns the annotation that gives a nested option the flag `--name`."""
    return tyro.conf.arg(name=name, prefix_name=False)


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from.

    Attributes:
        file: teacher rationales in place of generated ones: JSON, JSONL, CSV or Parquet (plain,
            .gz or .zst), a `datasets` folder, or a name on the hub. The columns are recognised.
        eval_file: test questions, in the same formats; without it a part of --data is held out.
        columns: names of columns that are not recognised: question=NAME,rationale=NAME,answer=NAME.
        strict: stop at the first row that cannot be used, in place of listing it.
        task: generated task: arithmetic, objects, letters, coin or stock.
        steps: reasoning steps of a generated problem, 0 for the task's own number.
        thinking: think markers of --data: strip them, keep those that are there, or wrap in <think>
            and </think> what stands before the answer.
        unit: the piece of a rationale that is never cut.
        train_size: how many training examples, at most; 0: all rows of --data, 600 generated ones.
        validation_size: how many validation questions, at most; they choose among rounds.
        test_size: how many test questions, at most; 0: all of --eval-data, 300 of another source.
    """

    file: Annotated[str, short("data")] = ""
    eval_file: Annotated[str, short("eval-data")] = ""
    columns: Annotated[str, short("columns")] = ""
    strict: Annotated[bool, short("strict")] = False
    task: Annotated[str, short("task")] = "arithmetic"
    steps: int = 0
    thinking: Annotated[Literal["strip", "keep", "wrap"], short("thinking")] = "strip"
    unit: UnitKind = "sentence"
    train_size: int = 600
    validation_size: int = 100
    test_size: int = 300

    def __post_init__(self) -> None:
        from cwt.data.tasks import TASKS

        _at_least(self, 1, "validation_size")
        _at_least(self, 0, "train_size", "test_size", "steps")
        if self.task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}.")
        if self.eval_file and not self.file:
            raise UserError("--eval-data needs --data: it is the test part of the same job.")
        if self.thinking != "strip" and not self.file:
            raise UserError(f"--thinking {self.thinking} needs --data: no generated text thinks.")


@dataclass(frozen=True)
class TrainConfig(TrainingOptions):
    """How long and in what steps every method trains.

    Attributes:
        budget: how long each method trains, counted in --train.budget-unit.
        epochs: passes over all training rationales, used instead of --budget; 0: use --budget.
        learning_rate: peak of AdamW's learning rate; it warms up over 5 % of the budget, then
            falls linearly to 5 % of the peak. 0: 2e-5, or 1e-4 for --lora.
        optimizer: adamw, or adamw8bit: AdamW with its averages in 8 bits (of bitsandbytes).
        parent: row of the table that skip-thinking training (STT) and its controls go on from.
        batch_size: samples a step for answer-only, FTT (full-thinking training, whole rationales),
            STT and its controls.
        small_batch_size: samples a step for FTT-small-batch and FTT-sentence-dropout.
        chunk_batch_size: samples a step, one chunk each, for CWT (chunk-wise training).
        sentence_dropout: probability with which the rows named sentence-dropout leave out each
            middle unit.
    """

    budget: Annotated[int, short("budget")] = 400_000
    epochs: Annotated[float, short("epochs")] = 0.0
    optimizer: Annotated[Optimizer, short("optimizer")] = "adamw"
    parent: str = "FTT-small-batch"
    batch_size: int = 4
    small_batch_size: int = 2
    chunk_batch_size: int = 16
    sentence_dropout: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "budget", "batch_size", "small_batch_size", "chunk_batch_size")
        _at_least(self, 0, "epochs")
        _share(self, "sentence_dropout")


@dataclass(frozen=True)
class SkipConfig(SkipCriterion):
    """What may be left out, and how skip-thinking training (STT) alternates with deciding it.

    Attributes:
        rounds: how often STT decides skips and trains, at most; the best round is kept.
        ready_skill: STT begins to skip once the student's skill on validation questions is at least
            this; before that it trains on whole rationales. Above 0, the accuracy of the most
            frequent answer, to 1, all right; 0: it begins at once.
        choice_questions: how many questions decide what STT ends with, at least: the validation
            questions and, where they are fewer, training questions. 0: validation questions alone.
        max_risk: STT ends with no round that may be more points than this behind `continued` or the
            parent, as far as validation questions exclude it (upper end of a one-sided 95 %
            interval), the accuracy tolerance added. 100: no limit.
        accuracy_tolerance: points of accuracy that STT may lose. It ends with the round that writes
            the fewest tokens of those whose accuracy is within this of the best, the row
            `continued` and the parent included; else with the better of those two.
        matched_share: share of the middle units that every row with a matched number of skips
            leaves out; 0: as many of each example as STT.
        samples: rationales that the row shortest-correct samples of each question.
        sample_temperature: of that sampling.
        ratify: in every other round the student confirms what the judge decided, or takes it back.
        budget_share: part of --budget that each round trains for.
        mix_full: share of the full rationales that is added to the shortened ones.
    """

    rounds: int = 4
    ready_skill: float = 0.0
    choice_questions: int = 300
    max_risk: float = 5.0
    accuracy_tolerance: Annotated[float, short("accuracy-tolerance")] = 0.0
    matched_share: float = 0.0
    samples: int = 4
    sample_temperature: float = 1.0
    ratify: bool = True
    budget_share: float = 0.2
    mix_full: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "rounds", "samples")
        _at_least(self, 0, "choice_questions", "max_risk", "accuracy_tolerance")
        if not self.sample_temperature > 0:
            raise UserError(
                f"sample_temperature must be greater than 0, got {self.sample_temperature}."
            )
        _share(self, "ready_skill", "matched_share", "budget_share", "mix_full")


@dataclass(frozen=True)
class EvalConfig:
    """How students answer the test questions.

    Attributes:
        max_new_tokens: tokens generated per question, at most; 0: a quarter more than 99 of 100
            training rationales have.
        batch_size: questions generated at once, where --batches says rows.
        latency_questions: how many questions are answered one at a time, to measure the latency
            of one answer; 0: do not measure it.
        generator: who writes the answers: hf, the model in this process, or server, an
            OpenAI-compatible server that serves the student, such as vLLM.
        base_url: of that server, such as http://localhost:8000/v1.
        concurrency: questions that the server is asked at once.
        timeout: seconds that the server may take for one answer.
    """

    max_new_tokens: int = 256
    batch_size: int = 100
    latency_questions: int = 20
    generator: Annotated[Literal["hf", "server"], short("generator")] = "hf"
    base_url: Annotated[str, short("base-url")] = ""
    concurrency: int = 32
    timeout: float = 600.0

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "concurrency")
        _at_least(self, 0, "max_new_tokens", "latency_questions")
        if not self.timeout > 0:
            raise UserError(f"timeout must be above 0 seconds, got {self.timeout}.")
        if "@" in self.base_url or "?" in self.base_url:  # it may be a secret: not repeated here
            raise UserError("--base-url must hold neither a user, a password nor a query.")
        if self.generator == "server" and not self.base_url.startswith(("http://", "https://")):
            raise UserError(
                "--generator server needs --base-url, such as http://localhost:8000/v1, got "
                f"{self.base_url!r}."
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run; config.yaml in its folder holds all of it.

    Attributes:
        student: tiny, a Hugging Face, adapter or GGUF folder, or a name on the hub.
        prompt: template of the prompt, with {question} in it; in a chat, of the user's turn.
        chat_template: ask by the chat template of the student's tokenizer, and train the token that
            ends a turn.
        system: the system's turn of a chat.
        lora: train adapters in place of all weights, such as r=16,alpha=32,targets=auto (of peft).
        quantize: 4bit holds the frozen weights under adapters in 4 bits (QLoRA, by bitsandbytes).
        dtype: format of matrix products; weights and averages stay float32. auto: bfloat16 where
            the device has units for it, else float32.
        tf32: let float32 products on CUDA use TF32.
        batches: passes of so many rows as each stage says, or of as many tokens as fit the memory
            of the device (training: --train.micro-batch-tokens, where given).
        trackers: told the figures of each training step: auto (tensorboard where it is installed),
            names of accelerate separated by commas, or nothing.
        methods: rows of the table, comma-separated, or all.
        seed: decides the data, the order of training and the random controls.
        cpu: stay on the CPU even where there is a GPU.
        data: where the examples come from.
        chunk: how the units of a rationale become chunks.
        train: how long and in what steps every method trains.
        skip: what may be left out.
        eval: how students answer the test questions.

    Example:
        >>> RunConfig(seed=3, data=DataConfig(task="coin")).data.task
        'coin'
    """

    student: str = "tiny"
    prompt: str = "{question}\n"
    chat_template: bool = False
    system: str = ""
    lora: str = ""
    quantize: Annotated[Literal["none", "4bit"], short("quantize")] = "none"
    dtype: Precision = "float32"
    tf32: bool = False
    batches: Literal["rows", "tokens"] = "rows"
    trackers: str = ""
    methods: str = "all"
    seed: int = 0
    cpu: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    chunk: ChunkOptions = field(default_factory=ChunkOptions)
    train: TrainConfig = field(default_factory=TrainConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.system and not self.chat_template:
            raise UserError("--system is a turn of a chat: it needs --chat-template.")


def _at_least(config: Any, least: float, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise UserError(f"{name} must be at least {least}, got {getattr(config, name)}.")


def _share(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} must be between 0 and 1, got {getattr(config, name)}.")


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
    """Returns what a YAML file sets, nested as RunConfig is.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
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
    return values


def configured(base: RunConfig, values: dict[str, Any], source: object) -> RunConfig:
    """Returns a configuration with some nested values replaced.

    Args:
        base: what holds where the values say nothing.
        values: nested as RunConfig is.
        source: of the values, named in errors.

    Raises:
        UserError: an option that does not exist, or a value of another kind.
    """
    from pydantic import TypeAdapter, ValidationError

    train = values.get("train")
    if isinstance(train, dict) and "budget" in train:  # the later of the two ways to say how long
        values = {**values, "train": {"epochs": 0.0, **train}}
    merged = _merged(dataclasses.asdict(base), values, source)
    try:
        return TypeAdapter(RunConfig).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        wrong = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise UserError(f"{source}: {where}: {reason}{wrong}") from None


def _merged(base: dict[str, Any], values: dict[str, Any], source: object, at: str = "") -> Any:
    result = dict(base)
    for name, value in values.items():
        path = f"{at}{name}"
        if name not in base:
            raise UserError(f"{source}: unknown option {path}; there are {', '.join(base)}.")
        if isinstance(base[name], dict):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {path}: wanted a mapping of options, got {value!r}.")
            value = _merged(base[name], value, source, f"{path}.")
        result[name] = value
    return result


def save_config(path: Path, config: RunConfig) -> None:
    """Writes all values of a configuration."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def load_config(path: Path) -> RunConfig:
    """Returns the configuration of a YAML file; options that it lacks have their defaults."""
    return configured(RunConfig(), yaml_values(path), path)
