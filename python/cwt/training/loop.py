"""The training loop of every method: draws samples, computes the loss, updates, resumes."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from cwt.at_hand import at_hand
from cwt.data.example import Example
from cwt.data.marks import with_stage_marks
from cwt.errors import UserError
from cwt.files import write_json
from cwt.interrupts import Asked, postponed
from cwt.processes import from_all, is_divided
from cwt.progress import Progress, quiet
from cwt.students.load import student_files
from cwt.students.loss import TokenLoss
from cwt.students.student import Student, group_by_tokens
from cwt.students.tokenized import TokenSequence
from cwt.training.checkpoint import (
    Pace,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
    saving,
)
from cwt.training.divergence import BeforeStep, NotFinite, check_finite
from cwt.training.divided import open_accelerator, same_beginning, whole, whole_weights
from cwt.training.optimizer import make_optimizer
from cwt.training.rechunk import Rechunker
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler
from cwt.training.sharing import share_prefixes
from cwt.training.step_log import StepLog
from cwt.training.trackers import PROJECT, tracker_names
from cwt.training.trackers import figures as figures_of
from cwt.training.validation import Validation
from cwt_ext.linear_chunk_loss import LinearChunkLoss

_MEASURE_EVERY = 25  # steps between two measurements of the mean gradient of each chunk
_ALIGNMENT = ("chunk_mean_grad_norm", "chunk_hidden_smoothing")  # names of what is measured then


@dataclass
class Spent:
    """What a training run has used so far, over all processes.

    Attributes:
        optimizer_steps: updates of the weights.
        loss_tokens: tokens that bore loss.
        processed_tokens: tokens that the model saw, context included.
        train_seconds: wall time of the steps.
    """

    optimizer_steps: int = 0
    loss_tokens: int = 0
    processed_tokens: int = 0
    train_seconds: float = 0.0


def train(
    student: Student,
    examples: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress = quiet,
    cpu: bool = False,
    validation: Sequence[Example] = (),
    trackers: str = "",
) -> Spent:
    """Trains a student in place, writes it to `out`, and returns what that took.

    `out` becomes a standard Hugging Face folder with train.json and train_log.jsonl. train.json has
    the recipe, the budget spent and a checksum of each file; it is written last, so its presence
    says that the run is complete. train_log.jsonl grows as the run goes on. A run that was stopped
    resumes from its last checkpoint in `out` and ends with the same weights, bit for bit on a CPU.
    SIGINT, and SIGTERM where Python handles it, wait for the end of a step and a checkpoint.

    Args:
        student: the student to train.
        examples: with their chunks and the units that stay.
        recipe: how to train.
        out: folder of this training run.
        progress: called with the share of the budget spent, and the loss.
        cpu: stay on the CPU even where there is a GPU.
        validation: held-out rationales, measured `recipe.validations` times. Training stops when
            they get no better, and the student has its best weights in the end.
        trackers: names of accelerate, separated by commas, that are told the figures of each step;
            auto: tensorboard where it is installed, with its files in out/cwt.

    Raises:
        UserError: fewer samples in a step than processes, no sample within max_length, a checkpoint
            of another recipe in `out`, a tracker that is not there, a student that is worse on
            validation than it started, a disk that is full, or a loss or gradient that is not
            finite: the message names the step and its samples, and a checkpoint has the state
            before.
        KeyboardInterrupt: the run was interrupted, and its checkpoint written.

    Example:
        >>> import tempfile, cwt
        >>> student = cwt.load_student("tiny")
        >>> recipe = Recipe(target="rationale", budget=200, batch_size=2)
        >>> spent = train(student, cwt.generate_examples("coin", [4], 0)[0], recipe,
        ...               Path(tempfile.mkdtemp()))
        >>> spent.loss_tokens >= 200
        True
    """
    names = tracker_names(trackers)
    options = {"log_with": names or None, "project_dir": str(out)}
    accelerator = open_accelerator(cpu, student.dtype, **options)
    if recipe.batch_size < accelerator.num_processes:
        raise UserError(
            f"batch_size {recipe.batch_size} leaves some of {accelerator.num_processes} processes "
            "without a sample."
        )
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    marks = recipe.stage_marks
    rechunker = Rechunker(student, examples, recipe.rechunk, marks) if recipe.rechunk else None
    marked = with_stage_marks(examples) if marks else examples
    sampler = Sampler([student.tokenize(e) for e in marked], recipe, rechunker)
    asked = with_stage_marks(validation) if marks else validation
    held_out = Validation(student, [student.tokenize(e) for e in asked], recipe, out)
    path = student.loss_path  # measured on the model before anything wraps it
    run = _Run(accelerator, student, sampler, recipe, held_out)
    if run.main:
        run.log = StepLog(out / "train_log.jsonl")
    if names:
        accelerator.init_trackers(PROJECT)
    with run.logging():
        run.go_on(out, progress)
    weights = whole_weights(accelerator, run.model)
    if run.main:
        with saving("the student", out):
            student.save(out, weights)
        record = {"recipe": asdict(recipe), **asdict(run.spent)}
        record |= {"dropped": sampler.dropped, "shortened": sampler.shortened}
        record["head"] = path
        if held_out.measured.history:
            record["validation"] = held_out.measured.history
            record["best_step"] = held_out.measured.history[held_out.measured.best]["step"]
        record["files"] = student_files(str(out))
        write_json(out / "train.json", record)
        remove_checkpoints(out)
    accelerator.wait_for_everyone()
    spent = run.spent
    del run, accelerator  # each holds the other, and the optimizer: twice the memory of the model
    gc.collect()
    return spent


class _Run:
    """A training run in progress; its state is part of a checkpoint."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Student,
        sampler: Sampler,
        recipe: Recipe,
        held_out: Validation,
    ) -> None:
        trained = [p for p in student.model.parameters() if p.requires_grad]
        optimizer = make_optimizer(trained, recipe)
        self.accelerator, self.student, self.recipe = accelerator, student, recipe
        if recipe.gradient_checkpointing:
            _checkpoint_activations(student.model)
        same_beginning(accelerator, student.model)
        self.model, self.optimizer = accelerator.prepare(student.model, optimizer)
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        # DeepSpeed's stage 2 divides the gradients, and reduces them in every pass.
        self.divided = is_divided(self.model) or self.deepspeed
        self.sampler, self.held_out = sampler, held_out
        half = student.dtype == torch.float16  # its gradients underflow unless they are scaled
        self.scaler = torch.amp.GradScaler(student.device.type, enabled=half)
        self.spent = Spent()
        self.log: StepLog | None = None
        more = [*([held_out] if held_out.rows else []), *([self.scaler] if half else [])]
        accelerator.register_for_checkpointing(self, sampler, *more)

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.spent)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent = Spent(**state)

    @contextmanager
    def logging(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.log:
                self.log.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def go_on(self, out: Path, progress: Progress) -> None:
        """Trains from the last checkpoint until the budget is spent."""
        load_checkpoint(self.accelerator, out, self.recipe)
        if self.log:
            self.log.begin(after=self.spent.optimizer_steps)
        self.model.train()
        self.validate()
        with postponed() as asked:
            self.steps(out, progress, asked)
        self.accelerator.wait_for_everyone()
        self.held_out.finish()

    def steps(self, out: Path, progress: Progress, asked: Asked) -> None:
        """Trains until the budget is spent or somebody asks to stop."""
        mark = time.perf_counter()
        pace = Pace(self.recipe.checkpoint_seconds, mark)
        while (share := self.share()) < 1 and not self.enough():
            self.set_learning_rate(share)
            figures = self.step_or_save(out)
            now = time.perf_counter()
            self.spent.train_seconds += now - mark
            mark = now
            measured = self.validate()
            if measured:
                mark = time.perf_counter()
            row = self.row(figures) | measured
            if self.log:
                self.log.write(row)
            if self.accelerator.trackers:
                self.accelerator.log(figures_of(row), step=row["step"])
            progress(share, self.told(row))
            due, stopping = self.agreed(pace.due(now), bool(asked.signum))
            if due or stopping:
                self.save(out)
                mark = time.perf_counter()
                pace.saved(now, mark)
            if stopping:
                raise KeyboardInterrupt

    def save(self, out: Path) -> None:
        """Writes a checkpoint; the log has all rows up to it."""
        if self.log:
            self.log.flush()
        save_checkpoint(self.accelerator, out, self.recipe, self.spent.optimizer_steps)

    def step_or_save(self, out: Path) -> dict[str, Any]:
        """Takes one step; where it would spoil the weights, saves the state before and raises."""
        before = BeforeStep(self.sampler)
        try:
            return self.step()
        except NotFinite as error:
            if self.deepspeed:
                raise UserError(f"{out}: training diverged, and took the step: {error}.") from None
            before.restore()
            self.save(out)
            step = self.spent.optimizer_steps
            raise UserError(
                f"{out}: training diverged in step {step + 1}: {error}. checkpoint-{step} has the "
                f"state before it. The learning rate is {self.recipe.learning_rate:g}; try a third "
                "of it (--train.learning-rate), in another --out."
            ) from None

    def validate(self) -> dict[str, float]:
        """Measures the loss on validation where it is time to; returns what goes into the log."""
        if not self.held_out.due(self.share()):
            return {}
        return self.held_out.measure(self.spent.optimizer_steps, self.main)

    def told(self, row: dict[str, Any]) -> str:
        """Returns what a person is told of a step."""
        last = self.held_out.measured.history[-1:]
        return f"loss {row['loss']:.3f}" + "".join(f", validation {m['loss']:.3f}" for m in last)

    def enough(self) -> bool:
        return bool(self.held_out.rows) and self.held_out.out_of_patience

    def agreed(self, due: bool, stopping: bool) -> tuple[bool, bool]:
        """Returns whether to save, by the first process's clock, and whether any is to stop."""
        told = from_all((due, stopping))
        return told[0][0], any(stop for _, stop in told)

    def share(self) -> float:
        if self.recipe.budget_unit == "epochs":
            spent = self.spent.loss_tokens / self.sampler.epoch_tokens
        else:
            spent = getattr(self.spent, self.recipe.budget_unit)
        return float(spent / self.recipe.budget)

    def set_learning_rate(self, share: float) -> None:
        factor = min(share / 0.05 + 0.02, 1.0) * max(0.05, 1 - share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * factor

    def step(self) -> dict[str, Any]:
        """Takes one step; the loss is the sum over its loss tokens, divided once by their count.

        Where chunks weigh the same it is the sum over all chunks of their mean, over their count.
        """
        samples = self.sampler.draw()
        at_hand(f"training, step {self.spent.optimizer_steps + 1}", [s.example for s in samples])
        tokens = sum(s.loss_tokens for s in samples)
        by_chunk = self.recipe.weigh == "chunk"
        count = sum(len({*s.chunks} - {-1}) for s in samples) if by_chunk else tokens
        processes = self.accelerator.num_processes
        rows = self.rows_of(samples, processes)
        parts = self.micro_batches(rows[self.accelerator.process_index :: processes])
        if self.divided:
            self.keep_pace(rows, parts)
        # The mean gradient of a chunk is known where one pass on one process holds all of it.
        measures = len(parts) == processes == 1 and not by_chunk
        measures &= self.spent.optimizer_steps % _MEASURE_EVERY == 0
        self.optimizer.zero_grad()
        loss, stats = 0.0, torch.zeros(())
        for i, part in enumerate(parts):
            wait = i + 1 < len(parts)
            self.accelerator.sync_gradients = not wait  # DeepSpeed's backward also takes the step
            with self.accelerator.no_sync(self.model) if wait else nullcontext():
                result = self.loss(part, count, measures)
                # DDP averages gradients over processes, the step wants their sum.
                self.accelerator.backward(self.scaler.scale(result.loss * processes))
            loss += float(result.loss.detach())
            stats = stats.to(result.loss.device) + _table(result, self.sampler.chunks)
        stats = self.accelerator.reduce(stats, "sum")  # the same on every process
        loss = sum(from_all(loss))
        self.scaler.unscale_(self.optimizer)
        norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0))
        check_finite(stats[1], None if self.scaler.is_enabled() else norm, samples)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.spent.optimizer_steps += 1
        self.spent.loss_tokens += tokens
        self.spent.processed_tokens += sum(len(row.ids) for row in rows)
        of_chunk, _, norms = stats.tolist()
        self.sampler.observe(of_chunk, norms)
        return {"loss": loss, "stats": stats, **_alignment(result)}

    def rows_of(self, samples: list[TokenSequence], processes: int) -> list[TokenSequence]:
        """Returns the rows that the model reads for the samples of a step."""
        if not self.recipe.share_prefixes:
            return samples
        rows = share_prefixes(samples)
        return samples if len(rows) < processes else rows  # no process may be without one

    def keep_pace(self, samples: list[TokenSequence], mine: list[list[TokenSequence]]) -> None:
        """Makes as many passes as the process with the most; each pass needs all processes.

        A pass that only keeps the others company has a gradient of nothing.
        """
        processes = self.accelerator.num_processes
        most = max(len(self.micro_batches(samples[r::processes])) for r in range(processes))
        shortest = min(samples, key=lambda s: len(s.ids))
        self.accelerator.sync_gradients = False
        for _ in range(most - len(mine)):
            with self.accelerator.no_sync(self.model):
                self.accelerator.backward(0 * self.loss([shortest], 1, False).loss)
        self.accelerator.sync_gradients = True  # else accelerate's optimizer clears no gradients

    def micro_batches(self, samples: list[TokenSequence]) -> list[list[TokenSequence]]:
        """Returns the samples of a step on this process as they go through the model."""
        if tokens := self.recipe.micro_batch_tokens:
            groups = group_by_tokens([len(s.ids) for s in samples], tokens)
            return [[samples[i] for i in group] for group in groups]
        size = self.recipe.micro_batch_size or len(samples)
        return [samples[i : i + size] for i in range(0, len(samples), size)]

    def loss(self, samples: list[TokenSequence], count: int, mean_grad_norm: bool) -> TokenLoss:
        """Returns the summed loss of some samples over `count`, with statistics per chunk."""
        batch = self.student.collate(samples)
        chunk_ids = None
        chunks, by_chunk = self.sampler.chunks, self.recipe.weigh == "chunk"
        if by_chunk:  # a chunk of one sample is not that of another
            rows = torch.arange(len(samples), device=batch.labels.device)[:, None]
            chunk_ids = (batch.chunk_ids + rows * chunks)[batch.bears_loss]
        return self.student.token_loss(
            batch,
            chunk_ids,
            self.model,
            reduction="chunk_mean" if by_chunk else "sum",
            normalizer=count,
            num_chunks=chunks * len(samples) if by_chunk else chunks,
            validate=False,
            mean_grad_norm=mean_grad_norm,
        )

    def row(self, figures: dict[str, Any]) -> dict[str, Any]:
        """One line of train_log.jsonl."""
        tokens, nll, norm = figures["stats"].tolist()
        return {
            "step": self.spent.optimizer_steps,
            "loss": figures["loss"],
            "loss_tokens": self.spent.loss_tokens,
            "processed_tokens": self.spent.processed_tokens,
            "chunk_tokens": [int(t) for t in tokens],
            "chunk_nll": [round(v, 4) for v in nll],
            "chunk_grad_norm": [round(v, 4) for v in norm],
            **{
                name: [round(v, 5) for v in figures[name]] for name in _ALIGNMENT if name in figures
            },
        }


def _checkpoint_activations(model: Any) -> None:
    """Makes a model of transformers hold the inputs of its layers alone in the forward pass."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def _alignment(result: TokenLoss) -> dict[str, list[float]]:
    """Returns for every chunk, (C,), what was asked for of how its gradients agree.

    Of the logits' gradients the norm of their mean; where no logits are held, of the hidden states'
    gradients the norm of their sum over the sum of their norms.
    """
    if isinstance(result, LinearChunkLoss):
        if result.hidden is None:
            return {}
        norms = result.hidden.grad_norm_sum
        ratio = result.hidden.sum_grad_norm / torch.where(norms == 0, 1.0, norms)
        return {"chunk_hidden_smoothing": ratio.tolist()}
    if result.stats is None or result.stats.mean_grad_norm is None:
        return {}
    return {"chunk_mean_grad_norm": result.stats.mean_grad_norm.tolist()}


def _table(result: TokenLoss, chunks: int) -> torch.Tensor:
    """Returns (3, C): tokens, summed NLL and summed gradient norms of every chunk index."""
    stats = result.stats
    assert stats is not None
    table = torch.stack([stats.tokens, stats.nll_sum, stats.grad_norm_sum])
    return table.view(3, -1, chunks).sum(1) if table.shape[1] != chunks else table
