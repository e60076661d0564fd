"""The native operators: loading, shapes for the compiler, gradients; alone in saying torch.ops."""

# torch.library and torch._check carry no types.
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = Path(__file__).with_name("libcwt_ext.so")
_CUDA_LIBRARY = Path(__file__).with_name("libcwt_ext_cuda.so")  # built where there was an nvcc

REDUCTIONS = {"sum": 0, "token_mean": 1, "chunk_mean": 2, "none": 3}
STATS_MODES = {False: 0, True: 1, "all": 2}
NUM_ROW_STATS = 5
NUM_CHUNK_STATS = 7
NUM_ERROR_COUNTS = 2
FIRST_BAD_STATE = 3  # RowState of csrc/chunk_loss/contract.h: bad labels and bad chunk ids


def _load(library: Path) -> None:
    if not library.is_file():
        raise ImportError(
            f"cwt_ext: the native library {library} is missing. Install with `pip install .`, or "
            "build in place with `python setup.py build_ext --inplace`."
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"cwt_ext: {library} does not load under torch {torch.__version__}: {error}. It needs "
            "torch >= 2.10; `python -m cwt_ext.doctor` says more."
        ) from error


_load(_LIBRARY)
if torch.version.cuda is not None and _CUDA_LIBRARY.is_file():
    _load(_CUDA_LIBRARY)
_cwt = torch.ops.cwt
# Named without their overload, operators would be looked up at every call.
_chunk_loss_no_autograd = _cwt.chunk_loss_no_autograd.default
_chunk_loss_out = _cwt.chunk_loss_out.default
_chunk_loss_plan = _cwt.chunk_loss_plan.default
_chunk_loss_stats = _cwt.chunk_loss_stats.default
_chunk_loss_backward_ = _cwt.chunk_loss_backward_.default


def library_path() -> Path:
    """Returns the path of the native library."""
    return _LIBRARY


def cpu_capability() -> str:
    """Returns the instruction set of the CPU kernels: "baseline", "neon", "avx2" or "avx512"."""
    return str(_cwt.cpu_capability())


def backends() -> list[str]:
    """Returns the devices that chunk_loss has a native kernel for in this build."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [key.lower() for key in ("CPU", "CUDA") if has("cwt::chunk_loss", key)]


def chunk_loss(*args: Any) -> tuple[Tensor, ...]:
    """Calls the functional operator; arguments as in csrc/ops.cpp. Differentiable in the logits."""
    return tuple(_cwt.chunk_loss(*args))


def chunk_loss_no_autograd(*args: Any) -> tuple[Tensor, ...]:
    """Calls the functional operator, with nothing of it differentiable."""
    return _chunk_loss_no_autograd(*args)  # type: ignore[no-any-return]


def chunk_loss_plan(*args: Any) -> tuple[Tensor, Tensor]:
    """Returns (row_weight, state), each (N,); arguments as in csrc/ops.cpp. Not differentiable."""
    row_weight, state = _chunk_loss_plan(*args)
    return row_weight, state


def chunk_loss_out(*args: Any, grad: Tensor) -> tuple[Tensor, ...]:
    """Calls the operator that writes the gradient to `grad`. Not differentiable."""
    return tuple(_chunk_loss_out(*args, grad=grad))


def chunk_loss_stats(*args: Tensor) -> tuple[Tensor, ...]:
    """Returns the statistics of chunk_loss one by one, as views; arguments as in csrc/ops.cpp."""
    plain = type(args[0]) is Tensor and not torch.compiler.is_compiling()
    if plain and not torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
        return _chunk_loss_stats(*args)  # type: ignore[no-any-return]
    return _stats_views(*args)  # the compiler and vmap know views, but no operator returning some


def _stats_views(
    row_stats: Tensor, chunk_stats: Tensor, errors: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    return (
        *row_stats.view(NUM_ROW_STATS, *labels.shape).unbind(),
        *chunk_stats.unbind(),
        errors.narrow(0, NUM_ERROR_COUNTS, errors.shape[0] - NUM_ERROR_COUNTS),
        errors.select(0, 0),
        errors.select(0, 1),
    )


def linear_chunk_loss(*args: Any) -> tuple[Tensor, ...]:
    """Calls the operator of _linear_blocks.py; arguments as its Call. Differentiable."""
    return tuple(_cwt.linear_chunk_loss(*args))


def scale_grad(grad: Tensor, row_weight: Tensor | None, grad_output: Tensor) -> Tensor:
    """Returns grad * grad_output; in grad's own memory when autograd will not need it again.

    Rows of `row_weight` 0 are 0, and not read; None: there are none.

    `grad` is what a forward pass saved. Autograd says whether it keeps the graph for another
    backward pass (retain_graph=True); only then the product goes to a tensor of its own.
    """
    # A subclass or fake tensor is being traced: the compiler decides about memory.
    eager = type(grad) is Tensor and not torch.compiler.is_compiling()
    own = eager and not torch.is_grad_enabled() and not _graph_is_kept()
    if own and grad_output.dim() == 0 and grad_output.is_cpu and grad_output.item() == 1:
        return grad
    if row_weight is None:
        row_weight = grad_output.new_ones(grad.shape[0], dtype=_acc_dtype(grad))
    if grad_output.dtype != row_weight.dtype or not grad_output.is_contiguous():
        grad_output = grad_output.to(row_weight.dtype).contiguous()
    if own:
        _chunk_loss_backward_(grad, row_weight, grad_output)
        return grad
    out: Tensor = _cwt.chunk_loss_backward(grad, row_weight, grad_output)
    return out


# Whether the running backward pass keeps its saved tensors; True where torch does not tell.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)


def _acc_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check_rows(logits: Tensor, labels: Tensor, chunk_ids: Tensor) -> int:
    torch._check(logits.dim() in (2, 3), lambda: "chunk_loss: logits must be (N, V) or (B, T, V)")
    rows = logits.shape[0] if logits.dim() == 2 else logits.shape[0] * logits.shape[1]
    torch._check(labels.dim() == 1 and labels.shape[0] == rows, lambda: "labels must be (N,)")
    torch._check(chunk_ids.dim() == 1 and chunk_ids.shape[0] == rows, lambda: "chunk_ids: (N,)")
    return rows


def _fake_results(logits: Tensor, rows: int, num_chunks: int, reduction: int) -> list[Tensor]:
    acc = _acc_dtype(logits)
    loss_shape = (rows,) if reduction == REDUCTIONS["none"] else ()
    return [
        logits.new_empty(loss_shape, dtype=acc),
        logits.new_empty((NUM_ROW_STATS, rows), dtype=acc),
        logits.new_empty((NUM_CHUNK_STATS, num_chunks), dtype=acc),
        logits.new_empty((NUM_ERROR_COUNTS + num_chunks,), dtype=torch.int64),
        logits.new_empty((rows,), dtype=acc),
    ]


def _fresh_like(x: Tensor) -> Tensor:
    """Returns what fresh_like of entry.h does: an x of the strides of y[:, :-1] keeps them."""
    if x.dim() == 3 and not x.is_contiguous() and x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        batch, length, vocab = x.shape
        rows = x.stride(0) // x.stride(1)
        if rows * x.stride(1) == x.stride(0) and 0 < length < rows <= length + length // 8 + 1:
            return x.new_empty((batch, rows, vocab)).narrow(1, 0, length)
    return x.new_empty(x.shape)


@torch.library.register_fake("cwt::chunk_loss_no_autograd")
@torch.library.register_fake("cwt::chunk_loss")
def _(
    logits: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    active: Tensor | None,
    token_weight: Tensor | None,
    normalizer: Tensor | None,
    num_chunks: int,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    stats: int,
    mean_grad_norm: bool,
    need_grad: bool,
    validate: bool,
) -> tuple[Tensor, ...]:
    rows = _check_rows(logits, labels, chunk_ids)
    grad = _fresh_like(logits) if need_grad else logits.new_empty((0,))
    return (*_fake_results(logits, rows, num_chunks, reduction), grad)


@torch.library.register_fake("cwt::chunk_loss_out")
def _(
    logits: Tensor,
    labels: Tensor,
    chunk_ids: Tensor,
    active: Tensor | None,
    token_weight: Tensor | None,
    normalizer: Tensor | None,
    num_chunks: int,
    reduction: int,
    *options: float,
    grad: Tensor,
) -> tuple[Tensor, ...]:
    rows = _check_rows(logits, labels, chunk_ids)
    return tuple(_fake_results(logits, rows, num_chunks, reduction))


@torch.library.register_fake("cwt::chunk_loss_plan")
def _(labels: Tensor, chunk_ids: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    torch._check(labels.dim() == 1, lambda: "chunk_loss: labels must be (N,)")
    torch._check(chunk_ids.shape == labels.shape, lambda: "chunk_loss: chunk_ids must be (N,)")
    return labels.new_empty(labels.shape, dtype=torch.float64), labels.new_empty(
        labels.shape, dtype=torch.int8
    )


torch.library.register_fake("cwt::chunk_loss_stats", _stats_views)


@torch.library.register_fake("cwt::chunk_loss_backward")
def _(grad: Tensor, row_weight: Tensor, grad_output: Tensor) -> Tensor:
    return _fresh_like(grad)


@torch.library.register_fake("cwt::chunk_loss_backward_")
def _(grad: Tensor, row_weight: Tensor, grad_output: Tensor) -> None:
    return None


# Autocast: none needed, every dtype of logits is accepted as it comes and accumulated in float32.
# vmap: none needed, rows are the batch; torch.vmap calls the operator once a sample.


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *rest, row_weight, grad = output
    ctx.mark_non_differentiable(*rest, row_weight, grad)
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    ctx.has_grad = inputs[14]
    ctx.save_for_backward(row_weight, grad)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (ctx.num_inputs - 1)
    if grad_loss is None:
        return (None, *rest)
    if not ctx.has_grad:
        raise RuntimeError("chunk_loss: backward of an operator called with need_grad=False.")
    row_weight, grad = ctx.saved_tensors
    return (scale_grad(grad, row_weight, grad_loss), *rest)


torch.library.register_autograd("cwt::chunk_loss", _backward, setup_context=_save)


def _no_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "chunk_loss: double backward is not supported: the gradient is formed in the forward pass. "
        "Call cwt_ext.reference.chunk_loss where second derivatives are needed."
    )


torch.library.register_autograd("cwt::chunk_loss_backward", _no_double_backward)
