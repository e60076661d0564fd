"""How a model makes logits: whether its head is a plain product, and what follows the head.

A model computes z = f(head(hidden)). `linear_chunk_loss` may take the head's place only where head
is hidden @ weight.T + bias, and f is known. Both are measured on the model itself, once:

- the head must be a torch.nn.Linear with nothing around it (an adapter, a quantised or a
  parametrised layer is something else, even where its numbers agree today);
- f is read off by giving it a few known rows in place of the head's output. It must be
  u -> softcap * tanh((scale * u + offset) / softcap), or the same without softcap, which covers
  Gemma (softcap), Granite and Cohere (scale) and BART (offset). T5 scales before its head, so its
  scale is part of what the head is given;
- the two together must give the model's own logits of a few tokens of the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cwt_ext.linear_chunk_loss import LinearChunkLoss, linear_chunk_loss

Forward = Callable[..., Any]
_LARGE, _SMALL = 2.0**20, 2.0**-8
_TOLERANCE = 1e-5  # of float32 arithmetic on probe rows
_UNKNOWN = "the model changes its logits in another way than by a scale, a softcap or an offset"


class LogitsMap(NamedTuple):
    """f: what the model does to its head's output u, element by element."""

    scale: float = 1.0
    softcap: float | None = None
    offset: Tensor | None = None  # (V,) float32, only without softcap

    def __call__(self, u: Tensor) -> Tensor:
        """Returns f(u) for u: (..., V)."""
        z = u * self.scale
        if self.offset is not None:
            z = z + self.offset
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class NotFused(Exception):
    """Why the head's product cannot be taken over by linear_chunk_loss."""


def inner_model(model: Any) -> Any:
    """Returns the transformers model inside DDP and PEFT wrappers.

    Raises:
        TypeError: what is inside has no `get_output_embeddings`, or is compiled as a whole.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            break
    if not hasattr(model, "get_output_embeddings"):
        raise TypeError(
            "chunk loss: model must be a transformers model with an output head "
            f"(get_output_embeddings), or DDP or PEFT around one, got {type(model).__name__}."
        )
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise TypeError(
            "chunk loss: the model is compiled together with its head, whose place the loss takes; "
            "compile its body instead: model.base_model.compile()."
        )
    return model


def why_not_plain(head: Any) -> str | None:
    """Returns why `head` is not a torch.nn.Linear with nothing around it; None if it is one."""
    kind = f"{type(head).__module__}.{type(head).__qualname__}"
    if head is None:
        return "the model names no output head"
    if not isinstance(head, nn.Linear):
        return f"the head is a {kind}, not a torch.nn.Linear (an adapter?)"
    if type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return f"the forward of the head, a {kind}, is not torch.nn.Linear's"
    if nn.utils.parametrize.is_parametrized(head):
        return "the head is parametrised"
    return None


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Inside this context `module.forward` is `forward`; hooks around it stay."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def measure(head: nn.Linear, run: Callable[[], Tensor]) -> LogitsMap:
    """Returns f, measured on the model and checked against its own logits.

    Draws random numbers if the model does (dropout): the caller restores the generators.

    Args:
        head: one that `why_not_plain` has nothing against.
        run: calls the model on a few tokens without gradient and returns its logits (..., V).

    Raises:
        NotFused: the model makes its logits in another way.
    """
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        wanted = run()
    finally:
        handle.remove()
    if len(inputs) != 1:
        raise NotFused(f"the model calls its head {len(inputs)} times")
    products: list[Tensor] = []
    probes: list[Tensor] = []

    def probing(hidden: Tensor) -> Tensor:
        if type(head.weight) not in (nn.Parameter, Tensor):
            raise NotFused(f"the weight of the head is a {type(head.weight).__name__}")
        products.append(nn.functional.linear(inputs[0], head.weight, head.bias))
        probes.append(_probes(head.weight.shape[0], products[0]))
        return probes[0]

    with replaced_forward(head, probing):
        answers = run()
    logits_map = _fit(probes[0], answers)
    # The same products in the same dtype: they differ by the rounding of f alone.
    got, want = logits_map(products[0].float()), wanted.float()
    if got.shape != want.shape or wanted.shape[-1] == 0:
        raise NotFused(
            f"the model's logits {tuple(want.shape)} have another shape than its head's product "
            f"{tuple(got.shape)}"
        )
    error = (got - want).abs().max().item()
    bound = 8 * torch.finfo(wanted.dtype).eps * max(1.0, want.abs().max().item())
    if not error <= bound:
        raise NotFused(
            f"the head's product differs from the model's own logits by {error:.3g} (<= "
            f"{bound:.3g} wanted)"
        )
    return logits_map


def measured_map(head: nn.Linear, run: Callable[[], Tensor]) -> LogitsMap | str:
    """Returns what `measure` does, or the reason why not; without gradient, no random number drawn.

    Args:
        head: as in `measure`.
        run: as in `measure`.
    """
    devices = [head.weight.device] if head.weight.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            return measure(head, run)
    except NotFused as reason:
        return str(reason)


def fused_loss(
    head: nn.Linear,
    logits_map: LogitsMap,
    hidden: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    **options: Any,
) -> LinearChunkLoss:
    """Returns linear_chunk_loss of what the model makes of its head's product.

    Args:
        head: one that `why_not_plain` has nothing against.
        logits_map: f, as measured.
        hidden: (N, D) or (B, T, D), what the head is given.
        labels: (N,) or (B, T), int64.
        chunk_ids: shape of the labels.
        options: of linear_chunk_loss, but bias and softcap.
    """
    bias: Tensor | None = head.bias
    if logits_map.scale != 1 and bias is not None:
        bias = bias * logits_map.scale
    if logits_map.offset is not None:
        offset = logits_map.offset.to(head.weight)
        bias = offset if bias is None else bias + offset
    if logits_map.scale != 1:
        hidden = hidden * logits_map.scale
    return linear_chunk_loss(
        hidden, head.weight, labels, chunk_ids, bias, softcap=logits_map.softcap, **options
    )


def _probes(vocab: int, like: Tensor) -> Tensor:
    """Rows of float32 that tell f: (1, 4, V)."""
    ramp = torch.linspace(-8, 8, vocab, device=like.device)
    flat = torch.ones_like(ramp)
    return torch.stack([0 * flat, _SMALL * flat, _LARGE * flat, ramp])[None]


def _fit(probes: Tensor, answers: Tensor) -> LogitsMap:
    """Returns the f that takes `probes` to `answers`, both (1, 4, V)."""
    if answers.shape != probes.shape or not bool(answers.isfinite().all()):
        raise NotFused(_UNKNOWN)
    zero, small, large, _ = answers[0].double()
    slope = ((small - zero) / _SMALL).mean().item()
    steep = ((large - zero) / _LARGE).mean().item()
    offset = answers[0, 0] if bool(zero.any()) else None
    if steep > 0.5 * slope > 0:  # a softcap would be below it by orders of magnitude
        found = LogitsMap(_plain(steep), None, offset)
    else:
        softcap = large.max().item()
        scale = (softcap / _SMALL * torch.atanh(small / softcap)).mean().item()
        if not (offset is None and 0 < scale < float("inf") and softcap > 0):
            raise NotFused(_UNKNOWN)
        found = LogitsMap(_plain(scale), _plain(softcap))
    error = (found(probes) - answers).abs() / (1 + answers.abs())
    if not error.max().item() <= _TOLERANCE:
        raise NotFused(_UNKNOWN)
    return found


def _plain(value: float) -> float:
    """Returns the number or quotient of small whole numbers that float32 arithmetic blurred."""
    for denominator in range(1, 65):
        rounded = round(value * denominator) / denominator
        if rounded and abs(rounded - value) <= 2e-7 * abs(value):
            return rounded
    return value
