"""The training loop of every method: draw, loss of the step, update; stops and resumes exactly."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

import cwt_ext

from .encode import Encoded, Encoder, Sample, collate, head_of_rows
from .errors import UserError
from .files import replacing, write_json
from .recipe import Recipe
from .sampler import Sampler
from .students import save_student

Progress = Callable[[float, str], None]


@dataclass
class Spent:
    """What a run has used so far, over all processes."""

    optimizer_steps: int = 0
    loss_tokens: int = 0
    processed_tokens: int = 0
    train_seconds: float = 0.0


def train(
    model: PreTrainedModel,
    encoder: Encoder,
    items: Sequence[Encoded],
    keeps: Sequence[frozenset[int] | None],
    recipe: Recipe,
    out: Path,
    progress: Progress = lambda share, text: None,
    cpu: bool = False,
) -> Spent:
    """Trains the model in place, writes it to `out`, and returns what that took.

    `out` becomes a standard Hugging Face folder with train.json (recipe and budget spent, written
    last: its presence says that the run is complete) and train_log.jsonl. A run that was stopped
    goes on from out/checkpoint.pt and ends with the same weights, bit for bit on a CPU.

    Args:
        model: the student.
        encoder: of the student.
        items: the examples.
        keeps: for each example the units that stay, None for all.
        recipe: what to do.
        out: folder of this run.
        progress: is told the share of the budget spent, and the loss.
        cpu: stay on the CPU even where there is a GPU.
    """
    accelerator = Accelerator(cpu=cpu)
    if recipe.batch_size < accelerator.num_processes:
        raise UserError(
            f"batch_size {recipe.batch_size} leaves some of {accelerator.num_processes} processes "
            "without a sample."
        )
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay,
        fused=True,
    )  # fmt: skip
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run = _Run(accelerator, prepared, optimizer, Sampler(items, keeps, recipe), encoder.pad)
    run.chunks = max(item.chunks for item in items)
    run.resume(out, recipe)
    prepared.train()
    mark = saved = time.perf_counter()
    while (share := run.share(recipe)) < 1:
        run.set_learning_rate(recipe, share)
        figures = run.step(recipe)
        now = time.perf_counter()
        run.spent.train_seconds += now - mark
        mark = now
        run.log(figures)
        progress(share, f"loss {figures['loss']:.3f}")
        if now - saved > recipe.checkpoint_seconds:
            run.save(out, recipe)
            mark = saved = time.perf_counter()
    if accelerator.is_main_process:
        run.write_log(out)
        unwrapped = accelerator.unwrap_model(prepared)
        save_student(out, unwrapped, encoder.tokenizer)
        record = {"recipe": asdict(recipe), **asdict(run.spent), "dropped": run.sampler.dropped}
        write_json(out / "train.json", record)
        (out / "checkpoint.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return run.spent


@dataclass
class _Run:
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Any
    sampler: Sampler
    pad: int

    def __post_init__(self) -> None:
        self.spent = Spent()
        self.chunks = 1
        self.rows: list[dict[str, Any]] = []

    def share(self, recipe: Recipe) -> float:
        return float(getattr(self.spent, recipe.budget_unit) / recipe.budget)

    def set_learning_rate(self, recipe: Recipe, share: float) -> None:
        factor = min(share / 0.05 + 0.02, 1.0) * max(0.05, 1 - share)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor

    def step(self, recipe: Recipe) -> dict[str, Any]:
        """One optimizer step: the summed loss over its loss tokens, divided once by their count."""
        samples = self.sampler.draw()
        count = sum(s.loss_tokens for s in samples)
        mine = samples[self.accelerator.process_index :: self.accelerator.num_processes]
        size = recipe.micro_batch_size or len(samples)
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        # The mean gradient of a chunk is known where one pass on one process holds all of it.
        measures = len(parts) == 1 and self.accelerator.num_processes == 1
        measures &= self.spent.optimizer_steps % 25 == 0
        self.optimizer.zero_grad()
        loss, stats = 0.0, None
        for i, part in enumerate(parts):
            wait = i + 1 < len(parts)
            with self.accelerator.no_sync(self.model) if wait else nullcontext():
                result = self._forward(part, count, measures)
                # DDP averages gradients over processes, the step wants their sum.
                self.accelerator.backward(result.loss * self.accelerator.num_processes)
            loss += float(result.loss.detach())
            table = torch.stack(
                [result.stats.tokens, result.stats.nll_sum, result.stats.grad_norm_sum]
            )
            stats = table if stats is None else stats + table
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.spent.optimizer_steps += 1
        self.spent.loss_tokens += count
        self.spent.processed_tokens += sum(len(s.ids) for s in samples)
        assert stats is not None
        stats = self.accelerator.reduce(stats, "sum")  # the same on every process
        tokens, _, norms = stats.tolist()
        self.sampler.observe(tokens, norms)
        mean_norm = result.stats.mean_grad_norm.tolist() if measures else None
        return {"loss": loss, "stats": stats, "mean_norm": mean_norm}

    def _forward(
        self, samples: list[Sample], count: int, mean_grad_norm: bool
    ) -> "cwt_ext.ChunkLoss":
        batch = collate(samples, self.pad).to(self.accelerator.device)
        with head_of_rows(self.accelerator.unwrap_model(self.model), batch.rows):
            logits = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits[0]
        return cwt_ext.chunk_loss(
            logits, batch.labels[batch.rows], batch.chunk_ids[batch.rows],
            reduction="sum", normalizer=count, num_chunks=self.chunks, validate=False,
            mean_grad_norm=mean_grad_norm,
        )  # fmt: skip

    def log(self, figures: dict[str, Any]) -> None:
        tokens, nll, norm = figures["stats"].tolist()
        mean = figures["mean_norm"]
        self.rows.append(
            {
                "step": self.spent.optimizer_steps,
                "loss": figures["loss"],
                "loss_tokens": self.spent.loss_tokens,
                "processed_tokens": self.spent.processed_tokens,
                "chunk_tokens": [int(t) for t in tokens],
                "chunk_nll": [round(v, 4) for v in nll],
                "chunk_grad_norm": [round(v, 4) for v in norm],
                **({"chunk_mean_grad_norm": [round(v, 5) for v in mean]} if mean else {}),
            }
        )

    def write_log(self, out: Path) -> None:
        with replacing(out / "train_log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def save(self, out: Path, recipe: Recipe) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": asdict(recipe),
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state(),
            "spent": asdict(self.spent),
            "rows": self.rows,
            "torch_random": torch.get_rng_state(),
        }
        with replacing(out / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def resume(self, out: Path, recipe: Recipe) -> None:
        path = out / "checkpoint.pt"
        if not path.exists():
            return
        # Our own file: it holds the state of Python's random generator beside tensors.
        state = torch.load(path, map_location="cpu", weights_only=False)
        if state["recipe"] != asdict(recipe):
            raise UserError(
                f"{path} belongs to another recipe: {state['recipe']}, wanted {asdict(recipe)}."
            )
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.restore(state["sampler"])
        self.spent = Spent(**state["spent"])
        self.rows = state["rows"]
        torch.set_rng_state(state["torch_random"])
