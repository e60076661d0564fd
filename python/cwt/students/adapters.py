"""Low-rank adapters (LoRA) through peft: put into a student, loaded with it, merged into it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cwt.errors import UserError
from cwt.files import read_json

ADAPTER = "adapter_config.json"  # of peft: what makes a folder one of an adapter


@dataclass(frozen=True)
class LoraOptions:
    """What `--lora` says.

    Attributes:
        r: rank of the adapters.
        alpha: their output is scaled by alpha / r.
        targets: which linear modules have one: auto (all of them but the head), or the ends of
            their names, joined by +, such as q_proj+v_proj+lm_head.
        dropout: of the adapters' input.
    """

    r: int = 16
    alpha: float = 32.0
    targets: str = "auto"
    dropout: float = 0.0


def parse_lora(text: str) -> LoraOptions:
    """Returns the options of `r=16,alpha=32,targets=auto`; what is not named has its default.

    Raises:
        UserError: another form, or a value that cannot be.

    Example:
        >>> parse_lora("r=8,alpha=16")
        LoraOptions(r=8, alpha=16.0, targets='auto', dropout=0.0)
    """
    kinds = {"r": int, "alpha": float, "targets": str, "dropout": float}
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in kinds or not equals:
            raise UserError(f"--lora: wanted r=16,alpha=32,targets=auto,dropout=0, got {text!r}.")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise UserError(f"--lora: {name} must be a number, got {value!r}.") from None
    options = LoraOptions(**values)
    if options.r < 1 or not options.alpha > 0 or not 0 <= options.dropout < 1:
        raise UserError(f"--lora: wanted r >= 1, alpha > 0 and dropout in [0, 1), got {text!r}.")
    return options


def add_adapters(model: Any, options: LoraOptions, base: str) -> Any:
    """Returns a model of peft: the given one, frozen, with new adapters in it that are trained.

    Args:
        model: of transformers.
        options: rank, scale and place of the adapters.
        base: name of the student, by which a saved adapter finds it again.

    Raises:
        UserError: peft is not installed, or no module of the model has such a name.
    """
    peft = _peft()
    targets = "all-linear" if options.targets == "auto" else options.targets.split("+")
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        target_modules=targets,
        lora_dropout=options.dropout,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        with _known_warnings():
            wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--lora: targets={options.targets}: {reason}") from None
    wrapped.peft_config["default"].base_model_name_or_path = base
    return wrapped


def frozen_for_adapters(model: Any) -> Any:
    """Returns a model with weights in 4 bits, frozen, as peft prepares it for adapters."""
    with _known_warnings():
        return _peft().prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def base_of(folder: Path) -> str:
    """Returns the name of the student that the adapter in a folder belongs to."""
    return str(read_json(folder / ADAPTER)["base_model_name_or_path"])


def load_adapters(model: Any, folder: Path) -> Any:
    """Returns a model with the adapters of a folder in it, ready to be trained on."""
    with _known_warnings():
        return _peft().PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def merge_adapters(model: Any) -> Any:
    """Returns the model of transformers with its adapters added to its weights.

    A head with an adapter of its own no longer shares the embedding's weights.
    """
    head = model.get_output_embeddings()
    shared = getattr(head, "base_layer", None)
    if shared is not None and shared.weight is model.get_input_embeddings().weight:
        shared.weight = torch.nn.Parameter(shared.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model.merge_and_unload()


def is_adapted(model: Any) -> bool:
    """Returns whether a model holds peft's adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silences what peft warns of and this package sees to.

    It asks transformers under a name that newer versions warn of, and it says that an adapter on a
    head tied to the embedding must not be merged into both; `merge_adapters` unties them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("adapters need the package peft: pip install peft") from None
    return peft
