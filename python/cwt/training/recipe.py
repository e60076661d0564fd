"""What one training run does, as data: its target, its schedule and its budget."""

from dataclasses import dataclass
from typing import Literal

from cwt.errors import UserError

ChunkMethod = Literal["ac", "dp", "sbc", "sbc-exact", "length"]
Objective = Literal["mean", "sum"]
Target = Literal["answer", "rationale", "chunk"]
Schedule = Literal["shuffled", "by-index", "curriculum", "adaptive"]
Weigh = Literal["token", "chunk"]
BudgetUnit = Literal["loss_tokens", "processed_tokens", "optimizer_steps", "epochs"]
Optimizer = Literal["adamw", "adamw8bit"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ChunkOptions:
    """How the units of a rationale become chunks.

    Attributes:
        method: ac (average chunking: evenly), dp (most coherent by dynamic programming), sbc
            (search-based chunking: moves one boundary at a time), sbc-exact (the optimum of its
            objective) or length (as equal in tokens as the units allow).
        count: chunks before the answer, which is always a chunk of its own.
        tokens: tokens of a chunk, about: a rationale has as many chunks as that takes, whatever
            count says. 0: count.
        objective: what sbc minimises, summed over the chunks: the student's negative
            log-likelihood (NLL) per token of a chunk (mean), or of the whole chunk (sum).
        min_gain: what a move of sbc must lower the objective by, at least, in nats a token (mean)
            or nats (sum).
        embeddings: what dp compares: the hidden states of the student, tfidf, or the folder of a
            sentence-transformers model.
        compare: divide by every method and measure the costs, for the report; without it only what
            rows train on is computed, which for ac and length takes no pass of the student.
    """

    method: ChunkMethod = "ac"
    count: int = 5
    tokens: int = 0
    objective: Objective = "mean"
    min_gain: float = 0.0
    embeddings: str = "student"
    compare: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}.")
        if self.tokens < 0:
            raise UserError(f"tokens must not be negative, got {self.tokens}.")
        if not self.min_gain >= 0:
            raise UserError(f"min_gain must be at least 0, got {self.min_gain}.")


@dataclass(frozen=True)
class TrainingOptions:
    """What all training runs of a table share.

    Attributes:
        budget_unit: what a budget counts: loss-bearing tokens, all processed tokens, optimizer
            steps, or epochs (passes over the loss-bearing tokens of all examples).
        schedule: the order of chunks in chunk-wise training. shuffled mixes all (example, chunk)
            pairs; in by-index all samples of a step share one chunk index; in curriculum, epoch e
            trains chunk e mod M (of M); adaptive draws each chunk index in proportion to its recent
            gradient norm per token (moving average over steps, at least a tenth of the greatest).
        micro_batch_size: samples of one forward pass; 0: all samples of a step at once.
        micro_batch_tokens: padded tokens of one forward pass, at most, in place of
            micro_batch_size; samples of similar length go together. 0: no such limit.
        group_lengths: draw samples of similar length into one step, to pad less.
        chunks_together: how many chunks of one example the schedule shuffled draws one after
            another, so that they mostly meet in a step; 1: every chunk by itself.
        share_prefixes: read chunks of one example that meet in a step in one row: fewer tokens, the
            same gradient to rounding.
        gradient_checkpointing: compute activations twice and hold fewer of them: a third more time
            for a fraction of the memory.
        learning_rate: peak of AdamW's learning rate; it warms up over 5 % of the budget, then
            falls linearly to 5 % of the peak.
        weight_decay: AdamW's weight decay.
        optimizer: adamw, or adamw8bit: its averages in 8 bits (of bitsandbytes).
        max_length: tokens of a training row, at most; 0: no limit but the student's positions. A
            longer row loses the beginning of the rationale that is context, never its question.
        validations: how often the loss on validation is measured over a budget; 0: never.
        patience: stop after so many measurements in a row that are not better than the best, whose
            weights are kept.
        checkpoint_seconds: seconds between two checkpoints, at least; saving takes a twentieth of
            the time, at most (0: after every step, whatever it takes).
    """

    budget_unit: BudgetUnit = "loss_tokens"
    schedule: Schedule = "shuffled"
    micro_batch_size: int = 0
    micro_batch_tokens: int = 0
    group_lengths: bool = False
    chunks_together: int = 1
    share_prefixes: bool = False
    gradient_checkpointing: bool = False
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    optimizer: Optimizer = "adamw"
    max_length: int = 0
    validations: int = 0
    patience: int = 2
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in (
            "micro_batch_size", "micro_batch_tokens", "max_length", "validations",
            "checkpoint_seconds",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not self.learning_rate >= 0:
            raise UserError(f"learning_rate must not be negative, got {self.learning_rate}.")
        for name in ("patience", "chunks_together"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingOptions):
    """Everything that decides one training run: the same recipe and data give the same student.

    Attributes:
        target: what carries the loss of a sample: the `answer` alone, the whole `rationale`, or one
            `chunk` with everything before it as context.
        budget: how long to train, counted in budget_unit; epochs may be a fraction.
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
    budget: float
    batch_size: int
    sentence_dropout: float = 0.0
    weigh: Weigh = "token"
    stage_marks: bool = False
    rechunk: ChunkOptions | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget > 0 or (self.budget < 1 and self.budget_unit != "epochs"):
            raise UserError(f"budget must be at least 1, got {self.budget}.")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}.")
        if not 0 <= self.sentence_dropout < 1:
            raise UserError(f"sentence_dropout must be in [0, 1), got {self.sentence_dropout}.")
