"""How much memory a student needs, by its shape: to train, to score and to generate."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from cwt.students.quantize import all_weights, quantized_weights

_FLOAT32 = 4  # bytes
_EIGHT_BITS = 1 + 4 / 256  # bytes, with a float32 scale for every 256 numbers
_NF4 = 0.5 + _EIGHT_BITS / 64  # bytes, scales included
_PASS_LIMIT = {"cuda": 16_384, "cpu": 2_048}  # tokens; beyond it a pass gets no faster
_INNER = ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim")  # names of the inner width
_DECODER = ("num_decoder_layers", "decoder_layers")  # names of the number of decoder layers
_BLOCK_BYTES = {"cuda": 512 << 20, "cpu": 112 << 20}  # of logits that linear_chunk_loss holds
_TRAINING_SHARE, _SCORING_SHARE, _CACHE_SHARE = 0.7, 0.4, 0.3  # of the device's memory


@dataclass(frozen=True)
class Shape:
    """What decides the memory of a language model.

    Attributes:
        parameters: number of weights.
        trained: those of them that training changes.
        layers: number of layers, of encoder and decoder together.
        width: of the hidden states.
        inner: width of the feed-forward part.
        cached: key and value elements that a layer keeps for each token; a decoder layer keeps
            them for the encoder's tokens too, an encoder layer keeps none.
        vocabulary: number of tokens of the output.
        positions: tokens of a row, at most; 0: no limit known.
        quantized: those of the weights that are held in 4 bits.
    """

    parameters: int
    trained: int
    layers: int
    width: int
    inner: int
    cached: int
    vocabulary: int
    positions: int
    quantized: int = 0


def shape_of(model: Any) -> Shape:
    """Returns the shape of a model of transformers, with or without adapters."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = next((n for name in _INNER if (n := getattr(config, name, None))), None)
    layers = config.num_hidden_layers
    if model.config.is_encoder_decoder:
        layers += next(n for name in _DECODER if (n := getattr(config, name, None)))
    return Shape(
        parameters=all_weights(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=layers,
        width=config.hidden_size,
        inner=inner or 4 * config.hidden_size,
        cached=2 * key_heads * head_dim,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        positions=getattr(config, "max_position_embeddings", None) or 0,
        quantized=quantized_weights(model),
    )


def state_bytes(shape: Shape, frozen_bytes: float = _FLOAT32, average: float = _FLOAT32) -> int:
    """Returns the bytes of weights, gradients and AdamW's two averages.

    Trained weights take 16 bytes each (four numbers in float32), frozen ones `frozen_bytes`, those
    in 4 bits 0.516: half a byte, a scale of a byte for every 64, and a float32 for 256 scales.

    Args:
        shape: of the student.
        frozen_bytes: of a weight neither trained nor in 4 bits: 4 in float32, 2 in bfloat16.
        average: bytes of a number of the averages, from `average_bytes`.
    """
    frozen = shape.parameters - shape.trained - shape.quantized
    trained = 2 * _FLOAT32 + 2 * average
    return round(trained * shape.trained + frozen_bytes * frozen + _NF4 * shape.quantized)


def average_bytes(optimizer: str) -> float:
    """Returns the bytes of a number of the averages of adamw, or of adamw8bit.

    The latter keeps small tensors (of fewer than 4,096 weights) in float32.
    """
    return _EIGHT_BITS if optimizer == "adamw8bit" else _FLOAT32


def activation_bytes(shape: Shape, element: int, checkpointing: bool = False) -> int:
    """Returns the bytes that the layers hold for each token between forward and backward pass.

    A layer holds about 6 numbers of its width in float32 (the residual stream and its norms), and
    in the format of the products 8 of its width, its keys and values, and 5 of its inner width.
    With checkpointing only the input of each layer stays, and one layer is computed again.

    Args:
        shape: of the student.
        element: bytes of a number in the format of the products: 4 or 2.
        checkpointing: hold the inputs of layers alone.
    """
    layer = 6 * _FLOAT32 * shape.width
    layer += element * (8 * shape.width + shape.cached + 5 * shape.inner)
    if checkpointing:
        return shape.layers * _FLOAT32 * shape.width + layer
    return shape.layers * layer


def logit_bytes(shape: Shape, element: int, training: bool) -> int:
    """Returns the bytes of the logits of one token that bears loss, and of their gradient."""
    return shape.vocabulary * element * (3 if training else 2)


def block_bytes(shape: Shape, device: torch.device, training: bool) -> int:
    """Returns the bytes that linear_chunk_loss holds in place of logits, for any number of tokens.

    They are a block of logits and, in training, the head's gradient in float32 before it is added.
    """
    gradient = _FLOAT32 * shape.vocabulary * shape.width
    head_is_trained = shape.trained == shape.parameters
    return _BLOCK_BYTES[_kind(device)] + (gradient if training and head_is_trained else 0)


def device_bytes(device: torch.device) -> int:
    """Returns the memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def training_tokens(
    shape: Shape,
    device: torch.device,
    element: int,
    checkpointing: bool = False,
    linear: bool = False,
    average: float = _FLOAT32,
) -> int:
    """Returns how many padded tokens of one training pass fit beside the weights and averages.

    Args:
        shape: of the student.
        device: that trains it.
        element: bytes of a number in the format of the products: 4 or 2.
        checkpointing: whether only the inputs of layers are held.
        linear: whether linear_chunk_loss computes the loss.
        average: bytes of a number of the optimizer's averages.
    """
    frozen = _FLOAT32 if shape.trained == shape.parameters else element
    free = _TRAINING_SHARE * device_bytes(device) - state_bytes(shape, frozen, average)
    token = activation_bytes(shape, element, checkpointing)
    if linear:
        free -= block_bytes(shape, device, True)
    else:
        token += logit_bytes(shape, element, True)
    return _limited(free / token, device)


def scoring_tokens(shape: Shape, device: torch.device, element: int, linear: bool = False) -> int:
    """Returns how many padded tokens of one scoring pass, which keeps no activations, fit."""
    free = _SCORING_SHARE * device_bytes(device)
    token = activation_bytes(shape, element) / shape.layers
    if linear:
        free -= block_bytes(shape, device, False)
    else:
        token += logit_bytes(shape, element, False)
    return _limited(free / token, device)


def cache_tokens(shape: Shape, device: torch.device, element: int) -> int:
    """Returns how many tokens of keys and values fit while a student generates."""
    # The cache grows by copying: twice its size for a moment.
    token = 2 * shape.layers * shape.cached * element
    return max(1, int(_CACHE_SHARE * device_bytes(device) / token))


def _limited(tokens: float, device: torch.device) -> int:
    return max(1, min(int(tokens), _PASS_LIMIT[_kind(device)]))


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"
