"""Loads the student: `tiny` (ships with the package), a Hugging Face folder, or a hub name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .errors import UserError

TINY = Path(__file__).parent / "assets" / "tiny"


def quiet_libraries() -> None:
    """Turns off the progress bars and notices that loading small files does not need."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_student(name: str) -> tuple[str, dict[str, str]]:
    """Returns where a student is loaded from, without loading it: (source, extra options).

    Raises:
        UserError: the folder is not a student, or not one of a causal language model.
    """
    path = TINY if name == "tiny" else Path(name)
    if name != "tiny" and not path.is_dir() and not name.startswith((".", "/", "~")):
        return name, {}  # a name on the hub
    if not path.is_dir():
        raise UserError(f"student {name!r}: no such folder.")
    if not (path / "config.json").exists():
        gguf = sorted(path.glob("*.gguf"))
        if len(gguf) != 1:
            raise UserError(
                f"student {name!r}: wanted a folder with config.json (save_pretrained) or one "
                f".gguf file, found {len(gguf)} .gguf files and no config.json."
            )
        return str(path), {"gguf_file": gguf[0].name}
    with _loading(name):
        config = AutoConfig.from_pretrained(path)
    if config.is_encoder_decoder:
        raise UserError(
            f"student {name!r} is an encoder-decoder ({config.model_type}); wanted a causal "
            "language model."
        )
    return str(path), {}


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"student {name!r} cannot be loaded: {reason}") from error


def load_student(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns (model in float32, tokenizer).

    Args:
        name: `tiny`, a folder made by save_pretrained, a folder that holds one .gguf file, or the
            name of a model on the hub.

    Raises:
        UserError: it cannot be loaded, or its tokenizer has more tokens than its embedding rows.
    """
    source, extra = check_student(name)
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **extra)
    if extra:  # a model from GGUF refuses save_pretrained until it forgets where it came from
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        fresh = AutoModelForCausalLM.from_config(model.config)
        fresh.load_state_dict(model.state_dict())
        model = fresh.float()
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"student {name!r}: its tokenizer has {len(tokenizer)} tokens, its embedding "
            f"{vocabulary} rows; they do not belong together."
        )
    return model, tokenizer


def save_student(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a standard Hugging Face folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
