"""What the benchmarks of several features need of torch and of the rivals' packages.

A rival whose package or feature is not there raises Unavailable, with the reason that is printed.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from harness import Unavailable, Work
from torch import Tensor

# A loss that is ready to be differentiated, and with respect to what.
Graph = tuple[Tensor, tuple[Tensor, ...]]


def differentiate(
    graph: Callable[[], Graph], work: str, after: Callable[[tuple[Tensor, ...]], Any] | None = None
) -> Work:
    """Returns the forward pass, the backward pass or both of a loss.

    Args:
        graph: computes the loss.
        work: "forward" (no graph is made), "backward" (the graph is made beforehand) or "both".
        after: what else is done with the gradients.
    """

    def forward() -> None:
        with torch.no_grad():
            graph()

    def backward(loss: Tensor, leaves: tuple[Tensor, ...]) -> None:
        gradients = torch.autograd.grad(loss, leaves)
        if after is not None:
            after(gradients)

    if work == "forward":
        return Work(forward)
    if work == "backward":
        return Work(backward, graph)
    if work == "both":
        return Work(lambda: backward(*graph()))
    raise ValueError(f"work must be forward, backward or both, got {work!r}.")


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the function compiled for the shapes that it will see first, and no others."""
    torch.compiler.reset()  # what earlier shapes left would count against the limit of recompiling
    return torch.compile(function, dynamic=False)


def require(package: str, name: str) -> None:
    """Raises Unavailable where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{name}: the package {package} is not installed")


def cuda_only(package: str, name: str) -> NoReturn:
    """Raises Unavailable: the kernels of the package take CUDA tensors, ours here are not."""
    require(package, name)
    raise Unavailable(f"{name} takes CUDA tensors only: see bench_chunk_loss_gpu.py")


def torch_linear(with_options: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns f(hidden, head, labels), F.linear_cross_entropy of this torch."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy")
    if not with_options:
        return F.linear_cross_entropy
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unavailable(f"torch {torch.__version__} has no torch.nn.LinearCrossEntropyOptions")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)


# What TRL's SFTTrainer asks for in every step, for its metrics.
TRL_OUTPUTS = ("log_probs", "entropy", "is_top1")


def trl_linear() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns f(hidden, head, labels): how TRL's SFTTrainer gets its loss without all logits.

    The labels are aligned; -100 = no loss. Newer versions call it `nll`, their default, older ones
    `chunked_nll`; both are internal functions of TRL.
    """
    require("trl", "TRL")
    import trl

    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK
    except ImportError:
        pass
    else:

        def new(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
            # On a CPU TRL computes every row, and leaves out those without a label afterwards.
            log_p, *_ = ChunkedLogProbFunction.apply(
                h, w, None, y.clamp(min=0), 1.0, CHUNK, None, 1.0, TRL_OUTPUTS
            )
            return -log_p.masked_fill(y == -100, 0).sum() / (y != -100).sum()

        return new
    try:
        from trl.trainer.sft_trainer import _chunked_cross_entropy_loss
    except ImportError as error:
        raise Unavailable(f"TRL {trl.__version__} has no chunked loss that we know") from error
    return lambda h, w, y: _chunked_cross_entropy_loss(h[None], w, 256, shift_labels=y[None])[0]
