"""The number format of a student's passes: float32, or a 16-bit one where the device has units."""

from contextlib import AbstractContextManager, nullcontext

import torch

from cwt.errors import UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the number format of matrix products on a device; weights and sums stay float32.

    Args:
        name: float32, bfloat16, float16, or auto: bfloat16 where the device has units for it
            (CUDA of compute capability 8 and later, CPUs with AMX or AVX512-BF16), else float32. A
            CPU without computes bfloat16 about 30 times slower than float32.
        device: of the passes.

    Raises:
        UserError: no such format, or float16 on a CPU.

    Example:
        >>> compute_dtype("float32", torch.device("cpu"))
        torch.float32
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    if name not in _DTYPES:
        raise UserError(f"dtype must be auto, {', '.join(_DTYPES)}, got {name!r}.")
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype float16 needs a GPU, the device is the CPU; use bfloat16 or auto.")
    return _DTYPES[name]


def has_bfloat16_units(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        used = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # no, where DNNL_MAX_CPU_ISA forbids it
        return bool(units and used)
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Returns the context in which passes compute in a format; float32 needs none."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def allow_tf32(allowed: bool) -> None:
    """Lets float32 matrix products on CUDA use TF32, which has 10 bits of mantissa."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
