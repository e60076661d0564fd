"""What one training run does: the sample it draws, its schedule, its budget; names of options."""

from dataclasses import dataclass
from typing import Literal

ChunkMethod = Literal["ac", "dp", "sbc", "sbc-exact"]
Objective = Literal["mean", "sum"]
Part = Literal["unit", "chunk"]
Method = Literal["answer-only", "ftt", "cwt"]
Schedule = Literal["shuffled", "by-index", "curriculum", "adaptive"]
BudgetUnit = Literal["loss_tokens", "processed_tokens", "optimizer_steps"]


@dataclass(frozen=True)
class Recipe:
    """One training run, whole: the same recipe and data give the same student.

    Attributes:
        method: what carries the loss of a sample: the `answer-only`, the whole rationale (`ftt`),
            or one chunk with everything before it as context (`cwt`).
        schedule: of cwt. `shuffled` mixes all (example, chunk) pairs; in `by-index` all samples
            of a step share one chunk index; in `curriculum` epoch e trains chunk e mod M;
            `adaptive` draws each sample's chunk index in proportion to the gradient norm per token
            that the index has shown lately (moving average over steps, held at a tenth of the
            greatest or above).
        batch_size: samples of an optimizer step, over all micro-batches and processes.
        micro_batch_size: samples of one forward pass, 0 for all at once.
        budget: how long to train, counted in budget_unit.
        learning_rate: its peak; warm-up over 5 % of the budget, then linear to 5 % of the peak.
        sentence_dropout: probability with which each middle unit is left out, drawn afresh at
            every visit; never the first unit, never the answer.
        max_length: in tokens, 0 for no limit.
        seed: of the order of samples and of what is left out.
        checkpoint_seconds: time between two checkpoints to resume from.
    """

    method: Method
    budget: int
    budget_unit: BudgetUnit = "loss_tokens"
    schedule: Schedule = "shuffled"
    batch_size: int = 16
    micro_batch_size: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    sentence_dropout: float = 0.0
    max_length: int = 0
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        positive = {"budget": self.budget, "batch_size": self.batch_size}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 <= self.sentence_dropout < 1:
            raise ValueError(f"sentence_dropout must be in [0, 1), got {self.sentence_dropout}.")
        if self.micro_batch_size < 0 or self.max_length < 0:
            raise ValueError("micro_batch_size and max_length must not be negative.")
