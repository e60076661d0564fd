"""chunk_loss as the loss of a transformers Trainer, or of one built on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cwt_ext.chunk_loss import ChunkStats
from cwt_ext.integrations.collator import ChunkCollator
from cwt_ext.integrations.model_loss import Backend, ModelChunkLoss, Step
from cwt_ext.integrations.targets import TARGETS

if TYPE_CHECKING:
    _Trainer = Any  # a transformers Trainer: whose methods the mixin calls with super()
else:
    _Trainer = object


class ChunkLog:
    """Sums of per-chunk statistics between two lines of a log."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (4, C) float64

    def add(self, stats: ChunkStats) -> None:
        """Adds a call's statistics; the number of chunks may differ from call to call."""
        sums = torch.stack([stats.tokens, stats.nll_sum, stats.correct, stats.grad_norm_sum])
        sums = sums.double()
        if self._sums is not None:
            chunks = max(sums.shape[1], self._sums.shape[1])
            sums = _widen(sums, chunks) + _widen(self._sums, chunks)
        self._sums = sums

    def pop(self, device: torch.device) -> dict[str, float]:
        """Returns loss, accuracy and gradient share of each chunk over all ranks, and forgets them.

        Every rank must call it.
        """
        sums = torch.zeros(4, 0, dtype=torch.float64) if self._sums is None else self._sums
        sums, self._sums = sums.to(device), None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            chunks = torch.tensor(sums.shape[1], device=device)
            torch.distributed.all_reduce(chunks, torch.distributed.ReduceOp.MAX)
            sums = _widen(sums, int(chunks))
            torch.distributed.all_reduce(sums)
        tokens, nll, correct, pull = sums.tolist()
        out: dict[str, float] = {}
        for chunk, count in enumerate(tokens):
            if count:
                out[f"chunk_{chunk}/loss"] = nll[chunk] / count
                out[f"chunk_{chunk}/accuracy"] = correct[chunk] / count
                out[f"chunk_{chunk}/grad_share"] = pull[chunk] / (sum(pull) or 1.0)
        return out


def _widen(sums: Tensor, chunks: int) -> Tensor:
    return torch.nn.functional.pad(sums, (0, chunks - sums.shape[1]))


class ChunkTrainerMixin(_Trainer):  # type: ignore[misc]
    """Makes a transformers Trainer train on chunk_loss; put it before the Trainer's class.

    Rows need `input_ids` and `chunk_ids`, and may have `labels` and `token_weight`, each with one
    entry a token (see ChunkCollator, which pads them, and is the default collator). The columns
    reach the loss, labels and chunk ids are shifted together, and a step's loss is divided once, by
    the weight of the tokens that count over all its micro-batches and ranks. Logged besides the
    Trainer's own: `chunk_<c>/loss`, `chunk_<c>/accuracy` and `chunk_<c>/grad_share` (share of the
    summed norms of the logits' gradients), in evaluation with the prefix `eval_`. The Trainer's
    `label_smoothing_factor` is honoured. Evaluation takes every chunk, active or not: `eval_loss`
    is the Trainer's mean over batches, `eval_chunk_<c>/loss` is over tokens.

    Args:
        *args: the Trainer's.
        active: (C,), bool or float chunk weights; may be set later (`trainer.active = ...`) and
            holds from the next step on.
        reduction: "token_mean" or "chunk_mean", over the whole step.
        num_chunks: C; needed by "chunk_mean" unless `active` is given.
        z_loss: as in chunk_loss.
        backend: "auto", "fused" or "logits", as in ModelChunkLoss.
        max_length: longest text of the default collator, in tokens.
        truncation: "keep_end" or "keep_start", of the default collator.
        **kwargs: the Trainer's.

    Raises:
        ValueError: together with `compute_loss_func`, `torch_compile`, torch.nn.DataParallel or
            context or sequence parallelism; or limits for a collator that was given.

    Example:
        A Trainer of your own::

            class MyTrainer(ChunkTrainerMixin, Seq2SeqTrainer): ...
    """

    _signature_columns: Any

    def __init__(
        self,
        *args: Any,
        active: Tensor | None = None,
        reduction: Literal["token_mean", "chunk_mean"] = "token_mean",
        num_chunks: int | None = None,
        z_loss: float = 0.0,
        backend: Backend = "auto",
        max_length: int | None = None,
        truncation: Literal["keep_end", "keep_start"] = "keep_end",
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"{name}: the loss is chunk_loss; compute_loss_func must not be given."
            )
        arguments = kwargs.get("args") or next(iter(args[1:2]), None)
        if getattr(arguments, "torch_compile", False):
            raise ValueError(
                f"{name}: torch_compile=True compiles the model together with its head, whose "
                "place the loss takes; compile its body instead: model.base_model.compile()."
            )
        collator = kwargs.get("data_collator")
        if collator is not None and max_length is not None:
            raise ValueError(
                f"{name}: max_length={max_length} is for the default collator, but a "
                f"data_collator was given: {type(collator).__name__}."
            )
        super().__init__(*args, **kwargs)
        self._refuse_parallelism(name)
        self.active = active
        self.chunk_loss = ModelChunkLoss(
            self.model,
            reduction=reduction,
            num_chunks=num_chunks,
            label_smoothing=self.args.label_smoothing_factor,
            z_loss=z_loss,
            backend=backend,
        )
        if collator is None:
            self.data_collator: Any = ChunkCollator(
                self._pad_token_id(),
                max_length,
                truncation,
                encoder_decoder=not self.chunk_loss.shift,
            )
        self.loss_is_scaled_for_ga = True  # a step's loss is divided once, by `step`
        self.model_accepts_loss_kwargs = True  # the same, for older versions of transformers
        self._step: Step | None = None
        self._chunk_logs = {True: ChunkLog(), False: ChunkLog()}  # training, evaluation

    def _refuse_parallelism(self, name: str) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{name}: torch.nn.DataParallel over {self.args.n_gpu} GPUs is not supported; "
                "start one process a GPU (torchrun, accelerate launch)."
            )
        config = getattr(self.accelerator, "parallelism_config", None)
        for kind in ("cp_enabled", "sp_enabled"):
            if getattr(config, kind, False):
                raise ValueError(
                    f"{name}: context and sequence parallelism ({kind}) cut texts into parts, and "
                    "labels cannot be shifted across the cuts; use data parallelism or FSDP."
                )

    def _pad_token_id(self) -> int:
        """Any id will do: what is padded is neither attended to nor bears loss."""
        for source in (self.processing_class, self.chunk_loss.inner.config):
            if isinstance(getattr(source, "pad_token_id", None), int):
                return int(source.pad_token_id)
        return 0

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = [name for name in TARGETS if name not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Returns a step's batches and its denominator."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        self._step = self.chunk_loss.step(batches, active=self.active)
        return batches, self._step.normalizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns the micro-batch's part of the step's loss; in evaluation, the batch's mean."""
        training = self.model.training
        step = self._step if training else None
        found = self.chunk_loss(inputs, step, model=model, keep_logits=return_outputs)
        self._chunk_logs[training].add(found.stats)
        return (found.loss, found.output) if return_outputs else found.loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns (loss, logits, labels), the last two (unshifted) where metrics want them."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, inputs).detach(), None, None
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), output.logits.detach(), inputs["labels"]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as the Trainer does; the chunks' statistics are of this evaluation alone."""
        self._chunk_logs[False] = ChunkLog()
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the chunks' statistics since the last line to what the Trainer logs."""
        prefixes = [name[: -len("loss")] for name in logs if name.endswith("loss")]
        if "" in prefixes:
            logs = {**logs, **self._chunk_logs[True].pop(self.args.device)}
        elif prefixes and prefixes != ["train_"]:
            found = self._chunk_logs[False].pop(self.args.device)
            logs = {**logs, **{prefixes[0] + name: value for name, value in found.items()}}
        super().log(logs, start_time)
