"""Several processes of one run (torchrun, accelerate launch): who is first, and who does what.

Every process runs the same stages. What costs time is divided among them by `Shares` and gathered
in the order of one process; files are written by the first one alone (`by_main`), while the others
wait. Without a launcher there is one process, and nothing here does anything.

It loads torch only where there are several processes, so that `cwt COMMAND --help` is quick.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cwt.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

# One may work for hours while the others wait. Where one ends, its launcher ends the others.
_PATIENCE = timedelta(days=7)


class ToldElsewhere(UserError):
    """An error of the user's that another process has already said."""


def count() -> int:
    """Returns how many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns which of them this one is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Returns whether this is the first process, which writes files and speaks."""
    return rank() == 0


def start(cpu: bool = False) -> "torch.device":
    """Returns the device of this process; where there are several, joins the others first.

    Args:
        cpu: stay on the CPU even where there is a GPU; the processes then talk over gloo. A machine
            without a GPU needs no word of it.

    Raises:
        UserError: the processes are not joined.
    """
    import torch
    from accelerate import PartialState

    options: dict[str, Any] = {}
    if count() > 1:
        options["timeout"] = _PATIENCE
        kind = torch.accelerator.current_accelerator(check_available=True)
        cpu = cpu or kind is None or kind.type == "mps"  # accelerate joins no CPUs unasked
        # Every process scores and answers with a whole student, so each loads it; checkpoints are
        # whole files, which torch reads without running code that is in them.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    state = PartialState(cpu=cpu, **options)
    if state.num_processes != count():
        raise UserError(
            f"{count()} processes were started and accelerate joins {state.num_processes}; on "
            "CPUs give --cpu."
        )
    device: torch.device = state.device
    return device


def from_all(value: T) -> list[T]:
    """Returns what each process gives, in their order; all of them must ask.

    Args:
        value: anything that can be pickled.
    """
    if count() == 1:
        return [value]
    import torch.distributed as dist

    start()
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def by_main(work: Callable[[], T]) -> T:
    """Returns what a piece of work gives, done by the first process once all have come here.

    Files that it writes are there when the others go on, and whatever they read before was not yet
    changed by it.

    Raises:
        UserError: the work raised an error; the first process raises that one itself.
    """
    if count() == 1:
        return work()
    from_all(None)
    done, error = None, None
    if is_main():
        try:
            done = work()
        except Exception as raised:
            error = raised
    done, message = from_all((done, error and str(error)))[0]
    if error:
        raise error
    if message is not None:
        raise ToldElsewhere(message)
    return done  # type: ignore[return-value]


class Shares(Generic[T]):
    """Some items, divided over the processes: every n-th one is this process's.

    Args:
        items: the same in all processes.
        whole: nothing is divided, because each process needs all of them.

    Attributes:
        mine: the items of this process, in their order; there may be none.
    """

    def __init__(self, items: Sequence[T], whole: bool = False) -> None:
        self.total, self.processes = len(items), 1 if whole else count()
        self.mine = list(items[rank() :: self.processes] if self.processes > 1 else items)

    def gather(self, found: Sequence[R]) -> list[R]:
        """Returns what was found for each item, in the order of the items.

        Args:
            found: for each of `mine`.
        """
        if len(found) != len(self.mine):
            raise ValueError(f"{len(self.mine)} items are this process's, got {len(found)}.")
        if self.processes == 1:
            return list(found)
        parts = from_all(list(found))
        return [parts[i % self.processes][i // self.processes] for i in range(self.total)]

    def map(self, work: Callable[[list[T]], Sequence[R]]) -> list[R]:
        """Returns what a piece of work finds for each item, in the order of the items.

        Args:
            work: is given the items of this process; not called where it has none.
        """
        return self.gather(work(self.mine) if self.mine else [])


def is_divided(model: Any) -> bool:
    """Returns whether the weights of a model lie in several processes (FSDP).

    Each of its passes then needs all processes, so all must make the same ones.
    """
    if count() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def is_broken(error: RuntimeError) -> bool:
    """Returns whether an error says that another process of this run has ended."""
    if count() == 1:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "Connection closed by peer" in str(error)


def leave() -> None:
    """Waits for the other processes, and parts from them; nobody ends while others talk."""
    if count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        from_all(None)
        dist.destroy_process_group()
