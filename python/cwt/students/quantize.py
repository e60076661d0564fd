"""A frozen base in 4 bits under adapters (QLoRA), and AdamW's averages in 8: bitsandbytes."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from cwt.errors import UserError


@dataclass(frozen=True)
class FourBit:
    """How a base is held in 4 bits: NF4 in blocks of 64 weights, their scales in 8 bits.

    Attributes:
        dtype: format of the products; weights are unpacked to it.
        device: on which the weights are packed, and stay.

    References:
        Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023.
    """

    dtype: torch.dtype
    device: torch.device

    def loading_options(self) -> dict[str, Any]:
        """Returns what from_pretrained is given. The head and the embeddings stay as they are.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        from transformers import BitsAndBytesConfig

        bitsandbytes("--quantize 4bit")
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )
        return {"quantization_config": config, "device_map": {"": self.device}}


def bitsandbytes(wanted_by: str) -> Any:
    """Returns the package bitsandbytes.

    Args:
        wanted_by: the option that needs it, for the error.

    Raises:
        UserError: it is not installed, or cannot be loaded.
    """
    try:
        with warnings.catch_warnings():  # it uses a part of torch.jit that is deprecated
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{wanted_by} needs the package bitsandbytes: pip install bitsandbytes ({reason})."
        ) from None
    return bitsandbytes


def keep_layout(model: Any) -> None:
    """Keeps weights in 4 bits as they were packed, so that gradients pass through their products.

    On a CPU with AVX512-BF16 bitsandbytes packs them otherwise in the first pass without gradient,
    and the products of that layout have none.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(model: Any) -> bool:
    """Returns whether a model holds weights in 4 bits."""
    return any(hasattr(p, "quant_state") for p in model.parameters())


def quantized_weights(model: Any) -> int:
    """Returns how many weights a model holds in 4 bits."""
    return sum(_weights(p) for p in model.parameters() if hasattr(p, "quant_state"))


def all_weights(model: Any) -> int:
    """Returns how many weights a model has; two of them in 4 bits are packed into one byte."""
    return sum(_weights(p) for p in model.parameters())


def _weights(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else torch.Size(state.shape).numel())
