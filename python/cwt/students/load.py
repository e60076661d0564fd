"""Loads students: `tiny` (ships with the package), Hugging Face and GGUF folders, hub names."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)
from transformers.utils import logging

from cwt.errors import UserError
from cwt.files import checksum
from cwt.students.adapters import (
    ADAPTER,
    add_adapters,
    base_of,
    frozen_for_adapters,
    load_adapters,
    merge_adapters,
    parse_lora,
)
from cwt.students.causal import CausalStudent
from cwt.students.chat import PromptStyle, saved_style
from cwt.students.pretrained import PretrainedStudent
from cwt.students.quantize import FourBit, keep_layout
from cwt.students.seq2seq import Seq2SeqStudent
from cwt.students.tokenized import PromptTokenizer

TINY = Path(__file__).parent / "tiny"
_NO_CODE = {"trust_remote_code": False}  # a folder's own code is refused, without a question


def quiet_libraries() -> None:
    """Turns off the progress bars and notices of transformers."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("accelerate").setLevel(ERROR)  # says of every checkpoint that weights are tied


def check_student(name: str) -> tuple[str, dict[str, str]]:
    """Returns where a student is loaded from, without loading it: (source, extra options).

    Raises:
        UserError: the folder is not a student.
    """
    path = TINY if name == "tiny" else Path(name)
    if name != "tiny" and not path.is_dir() and not name.startswith((".", "/", "~")):
        return name, {}  # a name on the hub
    if not path.is_dir():
        raise UserError(f"student {name!r}: no such folder.")
    if (path / ADAPTER).exists():
        return check_student(base_of(path))
    if not (path / "config.json").exists():
        gguf = sorted(path.glob("*.gguf"))
        if len(gguf) != 1:
            raise UserError(
                f"student {name!r}: wanted a folder with config.json (save_pretrained), "
                f"adapter_config.json (peft) or one .gguf file, found {len(gguf)} .gguf files and "
                "none of the others."
            )
        return str(path), {"gguf_file": gguf[0].name}
    _config(name, str(path))
    return str(path), {}


def _config(name: str, source: str, **extra: str) -> Any:
    """Returns the configuration of a student's model."""
    with _loading(name):
        return AutoConfig.from_pretrained(source, **_NO_CODE, **extra)


def positions_of(name: str) -> int:
    """Returns how many tokens a row of a student may have, 0 where no limit is known.

    Args:
        name: of the student, as `load_student` takes it; its weights are not loaded.
    """
    source, extra = check_student(name)
    config = _config(name, source, **extra).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 0


def student_files(name: str) -> dict[str, int]:
    """Returns the CRC-32 of every file that a student is loaded from, by its name.

    Args:
        name: of the student, as `load_student` takes it; one on the hub has no files here.
    """
    folder = TINY if name == "tiny" else Path(name)
    if not folder.is_dir():
        return {}
    known = (".json", ".jinja", ".safetensors", ".bin", ".gguf", ".model", ".txt")
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in known]
    return {p.name: checksum(p) for p in files if p.name[0] != "." and p.name != "train.json"}


def check_files(name: str, wanted: dict[str, int], since: str) -> None:
    """Refuses a student that is another one now.

    Args:
        name: of the student, as `load_student` takes it.
        wanted: its files as `student_files` gave them; none: nothing is checked.
        since: when that was, for the message.

    Raises:
        UserError: one of the files has changed or is gone.
    """
    found = student_files(name) if wanted else {}
    for file, value in wanted.items():
        if found.get(file) != value:
            state = "has changed" if file in found else "is missing"
            raise UserError(
                f"student {name!r}: {file} {state} since {since}; put it back, or begin anew in "
                "another --out."
            )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"student {name!r} cannot be loaded: {reason}") from error


def load_student(
    name: str,
    prompt: PromptStyle | str | None = None,
    lora: str = "",
    four_bit: FourBit | None = None,
) -> PretrainedStudent:
    """Returns a student with weights in float32, on the CPU unless four_bit says otherwise.

    Its configuration says whether it is a causal language model or an encoder-decoder.

    Args:
        name: `tiny`, a folder made by save_pretrained, an adapter's folder (its base is loaded too,
            and frozen), a folder that holds one .gguf file, or the name of a model on the hub.
        prompt: how it is asked, or a template with {question} in it; None: as it was saved, or a
            line with the question.
        lora: adapters to put in, such as r=16,alpha=32,targets=auto; empty: none. A student that
            has adapters keeps those.
        four_bit: how the weights under the adapters are held in 4 bits; None: they are not.

    Raises:
        UserError: it cannot be loaded, its tokenizer has more tokens than its embedding rows or no
            end-of-sequence token, the prompt has no {question}, adapters cannot be put in, or 4
            bits are asked for without adapters or without bitsandbytes.

    Example:
        >>> student = load_student("tiny")
        >>> student.text(student.prompt("Is the coin heads up?"))
        'Is the coin heads up?\\n'
    """
    source, extra = check_student(name)
    prompts = load_tokenizer(name, prompt)
    kind = AutoModelForSeq2SeqLM if prompts.encoder else AutoModelForCausalLM
    adapted = (Path(name) / ADAPTER).exists()
    if four_bit and (extra or not (adapted or lora)):
        needed = "a student that is no GGUF file" if extra else "--lora, or a student with adapters"
        raise UserError(f"--quantize 4bit needs {needed}: weights in 4 bits are not trained.")
    packed = four_bit.loading_options() if four_bit else {}
    with _loading(name):
        model: Any = kind.from_pretrained(
            source, dtype=torch.float32, **_NO_CODE, **extra, **packed
        )
    if four_bit:
        keep_layout(model)
        model = frozen_for_adapters(model)
    if extra:
        model = _without_origin(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(prompts.tokenizer) > vocabulary:
        raise UserError(
            f"student {name!r}: its tokenizer has {len(prompts.tokenizer)} tokens, its embedding "
            f"{vocabulary} rows; they do not belong together."
        )
    if adapted:
        with _loading(name):
            model = load_adapters(model, Path(name))
    elif lora:
        base = str(Path(name).resolve()) if Path(name).is_dir() else name
        model = add_adapters(model, parse_lora(lora), base)
    if not prompts.encoder:
        return CausalStudent(model, prompts)
    if model.config.decoder_start_token_id is None:
        raise UserError(
            f"student {name!r}: its configuration has no decoder_start_token_id, the token that "
            "the decoder of an encoder-decoder begins with."
        )
    return Seq2SeqStudent(model, prompts)


def load_tokenizer(name: str, prompt: PromptStyle | str | None = None) -> PromptTokenizer:
    """Returns the tokenizer of a student, without its weights.

    Args:
        name: of the student, as `load_student` takes it.
        prompt: how it is asked, or a template with {question} in it; None: as it was saved, or a
            line with the question.

    Raises:
        UserError: it cannot be loaded, has no end-of-sequence token, or the prompt no {question}.
    """
    source, extra = check_student(name)
    encoder = bool(_config(name, source, **extra).is_encoder_decoder)
    folder = Path(name)
    if (folder / ADAPTER).exists() and (folder / "tokenizer_config.json").exists():
        source, extra = name, {}
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **_NO_CODE, **extra)
    if prompt is None:
        prompt = saved_style(folder)
    return PromptTokenizer(tokenizer, prompt, encoder)


def merge(name: str, out: Path) -> None:
    """Writes a student without adapters, which gives the logits of one with them.

    Args:
        name: folder of an adapter, whose base is found by the name in it.
        out: folder for the whole model with its tokenizer; new, or empty.

    Raises:
        UserError: `name` is not the folder of an adapter, or `out` holds something.
    """
    if not (Path(name) / ADAPTER).exists():
        raise UserError(f"merge: {name!r} is not the folder of an adapter (no {ADAPTER} in it).")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"merge: --out {out} is there and not empty.")
    student = load_student(name)
    student.model = merge_adapters(student.model)
    student.save(out)


def _without_origin(model: Any) -> Any:
    """Returns a model that was loaded from GGUF as a plain one, which save_pretrained accepts."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh.float()
