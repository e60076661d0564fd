"""Training whose weights lie in several processes: FSDP2, DeepSpeed, as `accelerate launch` asks.

accelerate divides the model and the optimizer; here is what a loop must know of it besides.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from cwt.errors import UserError
from cwt.processes import is_divided, start


def open_accelerator(cpu: bool, dtype: torch.dtype, **options: Any) -> Accelerator:
    """Returns the accelerator of a training run, joined with those of the other processes.

    Args:
        cpu: stay on the CPU even where there is a GPU.
        dtype: format of the student's products.
        options: of Accelerator.

    Raises:
        UserError: a way to divide the weights that this loop does not follow.
    """
    start(cpu)
    accelerator = Accelerator(cpu=cpu, **options)
    state = accelerator.state
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate offers FSDP on GPUs alone; what it does there works over gloo as well.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    divided = state.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if state.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP of version 1 is not supported: accelerate launch --fsdp_version 2.")
    if state.distributed_type == DistributedType.DEEPSPEED:
        _fit_deepspeed(state.deepspeed_plugin.deepspeed_config)
    if divided and dtype == torch.float16:
        raise UserError(
            "--dtype float16 scales its loss, and each process would decide alone whether its part "
            "of the gradient overflowed: with FSDP or DeepSpeed use --dtype bfloat16."
        )
    return accelerator


def _fit_deepspeed(config: dict[str, Any]) -> None:
    """Tells DeepSpeed what this loop decides."""
    if config.get("zero_optimization", {}).get("stage") == 3:
        raise UserError(
            "DeepSpeed divides the weights in its stage 3, which is not supported: use stage 2, or "
            "accelerate launch --use_fsdp --fsdp_version 2."
        )
    config["train_micro_batch_size_per_gpu"] = 1  # of its own log; passes differ in their samples
    config["gradient_clipping"] = 1.0


def same_beginning(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Gives all processes the first one's weights, those that training changes, before FSDP.

    New adapters are drawn at random, and FSDP takes each part of a weight from another process.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        for weight in model.parameters():
            if weight.requires_grad:
                torch.distributed.broadcast(weight.detach(), 0)


def whole_weights(accelerator: Accelerator, model: Any) -> Mapping[str, torch.Tensor] | None:
    """Returns the whole weights of a divided model; None where each process has all anyway.

    All processes must ask; the first gets the weights, on the CPU, the others perhaps none.
    """
    if not is_divided(model):
        return None
    found: Mapping[str, torch.Tensor] = accelerator.get_state_dict(model)
    # A weight that two modules share is there under both names; save_pretrained knows it by one.
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: value for name, value in found.items() if name in once}


def whole(value: torch.Tensor) -> torch.Tensor:
    """Returns all of a weight, or of a norm, that may be divided over processes; all must ask."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def fill(weight: torch.Tensor, value: torch.Tensor) -> None:
    """Writes a whole value into a weight; into this process's part of it where it is divided."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(weight, DTensor):
        value = distribute_tensor(
            value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
    weight.copy_(value)
