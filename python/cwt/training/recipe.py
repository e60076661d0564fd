"""What one training run does, as data: its target, its schedule and its budget."""

from dataclasses import dataclass
from typing import Literal

from cwt.errors import UserError

ChunkMethod = Literal["ac", "dp", "sbc", "sbc-exact"]
Objective = Literal["mean", "sum"]
Target = Literal["answer", "rationale", "chunk"]
Schedule = Literal["shuffled", "by-index", "curriculum", "adaptive"]
Weigh = Literal["token", "chunk"]
BudgetUnit = Literal["loss_tokens", "processed_tokens", "optimizer_steps"]


@dataclass(frozen=True)
class ChunkOptions:
    """How the units of a rationale become chunks.

    Attributes:
        method: ac (average chunking: evenly), dp (most coherent by dynamic programming), sbc
            (search-based chunking: moves one boundary at a time) or sbc-exact (the optimum of its
            objective).
        count: chunks before the answer, which is always a chunk of its own.
        objective: what sbc minimises, summed over the chunks: the student's negative
            log-likelihood (NLL) per token of a chunk (mean), or of the whole chunk (sum).
        min_gain: what a move of sbc must lower the objective by, at least, in nats a token (mean)
            or nats (sum).
        embeddings: what dp compares: the hidden states of the student, tfidf, or the folder of a
            sentence-transformers model.
    """

    method: ChunkMethod = "ac"
    count: int = 5
    objective: Objective = "mean"
    min_gain: float = 0.0
    embeddings: str = "student"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}.")
        if not self.min_gain >= 0:
            raise UserError(f"min_gain must be at least 0, got {self.min_gain}.")


@dataclass(frozen=True)
class TrainingOptions:
    """What all training runs of a table share.

    Attributes:
        budget_unit: what a budget counts: loss-bearing tokens, all processed tokens, or optimizer
            steps.
        schedule: the order of chunks in chunk-wise training. shuffled mixes all (example, chunk)
            pairs; in by-index all samples of a step share one chunk index; in curriculum, epoch e
            trains chunk e mod M (of M); adaptive draws each chunk index in proportion to its recent
            gradient norm per token (moving average over steps, at least a tenth of the greatest).
        micro_batch_size: samples of one forward pass; 0: all samples of a step at once.
        learning_rate: peak of AdamW's learning rate; it warms up over 5 % of the budget, then
            falls linearly to 5 % of the peak.
        weight_decay: AdamW's weight decay.
        max_length: tokens of a training row, at most; 0: no limit. A longer row loses context from
            the left.
        checkpoint_seconds: seconds between two checkpoints.
    """

    budget_unit: BudgetUnit = "loss_tokens"
    schedule: Schedule = "shuffled"
    micro_batch_size: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    max_length: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "max_length", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingOptions):
    """Everything that decides one training run: the same recipe and data give the same student.

    Attributes:
        target: what carries the loss of a sample: the `answer` alone, the whole `rationale`, or one
            `chunk` with everything before it as context.
        budget: how long to train, counted in budget_unit.
        batch_size: samples of an optimizer step, over all micro-batches and processes.
        sentence_dropout: probability with which each middle unit is left out, drawn afresh at
            every visit; never the first unit, never the answer.
        weigh: what weighs the same in the loss of a step: every token, or every chunk of every
            sample, whatever its length.
        stage_marks: whether the number of its stage stands before each chunk.
        rechunk: how the chunks are searched anew at the beginning of every epoch, with the student
            as it then is, from those of the last search; None: they stay. The passes of the search
            count in train_seconds, not in tokens.
        seed: of the order of samples and of what is left out.
    """

    target: Target
    budget: int
    batch_size: int
    sentence_dropout: float = 0.0
    weigh: Weigh = "token"
    stage_marks: bool = False
    rechunk: ChunkOptions | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("budget", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.sentence_dropout < 1:
            raise UserError(f"sentence_dropout must be in [0, 1), got {self.sentence_dropout}.")
