"""A step whose loss or gradient is not finite: the run goes back to before it, saves, and stops."""

from collections.abc import Sequence
from typing import Any

import torch

from cwt.students.tokenized import TokenSequence
from cwt.training.sampler import Sampler


class NotFinite(Exception):
    """A step was not taken; says what was not finite, and for which samples."""


def check_finite(nll: torch.Tensor, norm: Any, samples: Sequence[TokenSequence]) -> None:
    """Raises where a step would spoil the weights.

    Args:
        nll: summed NLL of every chunk index over all processes, (C,).
        norm: of the gradient over all processes; None: it need not be finite, because a loss scale
            skips such steps.
        samples: of the step.

    Raises:
        NotFinite: the loss or the norm is not.
    """
    if not bool(nll.isfinite().all()):
        what = f"the loss is {float(nll.sum())}"
    elif norm is not None and not bool(torch.as_tensor(norm).isfinite()):
        what = f"the norm of the gradient is {float(norm)}"
    else:
        return
    raise NotFinite(f"{what}; its samples: {', '.join(row.example for row in samples)}")


class BeforeStep:
    """The random states from before a step; the weights change at the end of a step only.

    Args:
        sampler: of the run.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.drawn = sampler, sampler.state_dict()
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Undoes the draws of the step."""
        self.sampler.load_state_dict(self.drawn)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
