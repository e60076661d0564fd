"""Loss on held-out rationales while a student trains: when to stop, and which weights to keep."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cwt.errors import UserError
from cwt.files import replacing
from cwt.processes import Shares, from_all, is_divided
from cwt.students.loss import TokenLoss
from cwt.students.student import Student, iterate_passes
from cwt.students.tokenized import Batch, TokenizedExample, TokenSequence, build_sequence
from cwt.training.checkpoint import BEST_WEIGHTS
from cwt.training.divided import fill, whole
from cwt.training.recipe import Recipe

_ROWS = 16  # of one forward pass, where the student has no limit in tokens


@dataclass
class Measured:
    """The measurements so far.

    Attributes:
        history: step, loss (mean negative log-likelihood a token, in nats) and accuracy (share of
            tokens that are the first choice, given all before them); the first is before training.
        best: index of the measurement with the lowest loss.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0


class Validation:
    """Measures a student on held-out rationales; its state is part of a checkpoint.

    Args:
        student: the student that trains.
        examples: held-out rationales in tokens; none: nothing is measured.
        recipe: says what bears the loss, how often to measure, and when to stop.
        folder: of the training run; the best weights lie there until the run ends.
    """

    def __init__(
        self, student: Student, examples: Sequence[TokenizedExample], recipe: Recipe, folder: Path
    ) -> None:
        answer_only = recipe.target == "answer"
        rows = [build_sequence(x, None, answer_only, recipe.max_length) for x in examples]
        self.rows: list[TokenSequence] = [row for row in rows if row]
        self.student, self.recipe = student, recipe
        self.weights = folder / BEST_WEIGHTS
        self.measured = Measured()

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to go on from here."""
        return asdict(self.measured)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of another one of the same recipe."""
        self.measured = Measured(**state)

    def due(self, share: float) -> bool:
        """Returns whether it is time to measure, after a share of the budget."""
        wanted = 1 + int(min(share, 1.0) * self.recipe.validations)
        return bool(self.rows and self.recipe.validations) and wanted > len(self.measured.history)

    def measure(self, step: int, keeps: bool) -> dict[str, float]:
        """Measures, and keeps the weights if they are the best.

        Args:
            step: optimizer steps so far.
            keeps: whether this process writes the weights.

        Returns:
            validation_loss and validation_accuracy.

        Raises:
            UserError: the loss is not a number.
        """
        training = self.student.model.training
        loss, accuracy = self._loss()
        self.student.model.train(training)
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged: the loss on validation is {loss} after {step} steps. "
                f"{self._advice()}"
            )
        history = self.measured.history
        history.append({"step": step, "loss": loss, "accuracy": accuracy})
        if loss < history[self.measured.best]["loss"]:
            self.measured.best = len(history) - 1
            weights = _trained_weights(self.student, keeps)
            if keeps:
                with replacing(self.weights) as path:
                    save_file(weights, path)
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def _loss(self) -> tuple[float, float]:
        """Returns what `held_out_loss` does, each process having measured its share of the rows."""
        if is_divided(self.student.model):  # all make the same passes
            return from_all(held_out_loss(self.student, self.rows))[0]
        shares = Shares(self.rows)
        if shares.processes == 1:
            return held_out_loss(self.student, self.rows)
        tokens = sum(row.loss_tokens for row in shares.mine)
        mine = held_out_loss(self.student, shares.mine) if tokens else (0.0, 0.0)
        parts = from_all((tokens, *mine))
        total = sum(n for n, _, _ in parts)
        return sum(n * a for n, a, _ in parts) / total, sum(n * b for n, _, b in parts) / total

    @property
    def out_of_patience(self) -> bool:
        """Whether the last measurements were all no better than the best."""
        return len(self.measured.history) - 1 - self.measured.best >= self.recipe.patience

    def finish(self) -> None:
        """Gives the student its best weights.

        Raises:
            UserError: the student never became better than it was before training.
        """
        history = self.measured.history
        if not history:
            return
        if len(history) > 1 and not self.measured.best:
            lowest = min(history[1:], key=lambda m: m["loss"])
            raise UserError(
                f"training makes the student worse on validation: its loss is "
                f"{history[0]['loss']:.3f} before training and {lowest['loss']:.3f} at best after "
                f"it ({lowest['step']} steps). {self._advice()}"
            )
        if self.weights.exists():
            weights = load_file(self.weights)
            parameters = dict(self.student.model.named_parameters())
            with torch.no_grad():
                for name, value in weights.items():
                    fill(parameters[name], value)

    def _advice(self) -> str:
        return (
            f"The learning rate is {self.recipe.learning_rate:g}; try a third of it "
            "(--train.learning-rate), in another --out."
        )


def held_out_loss(student: Student, rows: Sequence[TokenSequence]) -> tuple[float, float]:
    """Returns the mean NLL of the tokens that bear loss, in nats, and the share predicted right.

    Args:
        student: is put into evaluation mode.
        rows: held-out rows, at least one of them with a token that bears loss.
    """
    tokens = nll = right = 0.0

    def loss(batch: Batch) -> TokenLoss:
        ids = torch.zeros_like(batch.targets[0])
        return student.token_loss(batch, ids, reduction="sum", num_chunks=1)

    for _, _, result in iterate_passes(student, rows, _ROWS, loss):
        stats = result.stats
        assert stats is not None
        tokens += float(stats.tokens)
        nll += float(stats.nll_sum)
        right += float(stats.correct)
    return nll / tokens, right / tokens


def _trained_weights(student: Student, keeps: bool) -> dict[str, torch.Tensor]:
    """Returns the weights that training changes, on the CPU; none where they are not kept.

    Where they are divided over processes, all take part.
    """
    weights = {}
    for name, value in student.model.named_parameters():
        if value.requires_grad:
            found = whole(value.detach())
            if keeps:
                weights[name] = found.to("cpu", copy=True).contiguous()
    return weights
