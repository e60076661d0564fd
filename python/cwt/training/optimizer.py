"""The optimizers: AdamW with averages in float32, or in 8 bits (bitsandbytes)."""

from collections.abc import Sequence

import torch

from cwt.students.quantize import bitsandbytes
from cwt.training.recipe import Recipe

_BETAS = (0.9, 0.98)


def make_optimizer(weights: Sequence[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the optimizer of a recipe for some weights.

    Raises:
        UserError: it needs a package that is not installed.
    """
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw8bit":
        package = bitsandbytes("--optimizer adamw8bit")
        optimizer: torch.optim.Optimizer = package.optim.AdamW8bit(
            weights, rate, _BETAS, weight_decay=decay
        )
        return optimizer
    return torch.optim.AdamW(weights, rate, _BETAS, weight_decay=decay, fused=True)
