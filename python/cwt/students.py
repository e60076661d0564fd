"""Loads the student: `tiny` (ships with the package), a Hugging Face folder, or a hub name."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors import UserError

TINY = Path(__file__).parent / "assets" / "tiny"


def load_student(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns (model in float32, tokenizer).

    Args:
        name: `tiny`, a folder made by save_pretrained, a folder that holds one .gguf file, or the
            name of a model on the hub.

    Raises:
        UserError: the folder is not a student, or the name is neither a folder nor on the hub.
    """
    path = TINY if name == "tiny" else Path(name)
    looks_local = name == "tiny" or path.is_dir() or name.startswith((".", "/", "~"))
    source = str(path) if looks_local else name
    extra: dict[str, str] = {}
    if looks_local:
        if not path.is_dir():
            raise UserError(f"student {name!r}: no such folder.")
        gguf = sorted(path.glob("*.gguf"))
        if len(gguf) == 1 and not (path / "config.json").exists():
            extra = {"gguf_file": gguf[0].name}
        elif not (path / "config.json").exists():
            raise UserError(
                f"student {name!r}: wanted a folder with config.json (save_pretrained) or one "
                f".gguf file, found neither."
            )
    try:
        if not extra:
            config = AutoConfig.from_pretrained(source)
            if config.is_encoder_decoder:
                raise UserError(
                    f"student {name!r} is an encoder-decoder ({config.model_type}); wanted a "
                    "causal language model."
                )
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **extra)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"student {name!r} cannot be loaded: {reason}") from error
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
