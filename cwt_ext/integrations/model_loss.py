"""The chunk loss of a transformers model on a batch: labels, head and denominator together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cwt_ext.chunk_loss import ChunkStats, RowStats, chunk_loss
from cwt_ext.integrations.head import (
    LogitsMap,
    fused_loss,
    inner_model,
    measured_map,
    replaced_forward,
    why_not_plain,
)
from cwt_ext.integrations.targets import IGNORE_INDEX, Targets, take_targets, token_weights

_LOG = logging.getLogger("cwt_ext.integrations")
_PROBED_TOKENS = 4

Backend = Literal["auto", "fused", "logits"]


class Step(NamedTuple):
    """What one optimizer step divides by, over its micro-batches and ranks."""

    normalizer: Tensor  # (), float64: this step's denominator / number of ranks
    active: Tensor | None  # (C,), the weight of each chunk


class ModelLoss(NamedTuple):
    """What ModelChunkLoss returns."""

    loss: Tensor  # (), float32
    stats: ChunkStats  # per chunk, over the tokens of this call that count
    rows: RowStats | None  # per token (B, T), of the fused path; None on the other
    output: Any  # the model's output; `logits` is None unless `keep_logits`


class ModelChunkLoss:
    """chunk_loss of a transformers model, causal or encoder-decoder, called with whole batches.

    For one batch and one rank it replaces::

        logits = model(input_ids, attention_mask=attention_mask).logits
        loss = chunk_loss(logits, shift_labels(labels), shift_labels(chunk_ids, -1)).loss

    Labels and chunk ids are shifted for causal models and left alone for encoder-decoders. Where
    the head is a plain matrix product, `linear_chunk_loss` takes its place and (B, T, V) logits are
    never held; scale, softcap and offset that the model applies to its logits are measured on the
    first batch and checked against the model's own logits. Everywhere else (an adapter on the head,
    a quantised head) the model computes logits itself, only for the tokens that count. `path` says
    which, and the logger "cwt_ext.integrations" says it once. The loss is formed inside the model's
    forward, so DDP, FSDP2, autocast and PEFT treat it as the model's own.

    Args:
        model: a transformers model, or DDP, FSDP2 or PEFT around one. Its body may be compiled
            (`model.base_model.compile()`), the model as a whole may not.
        reduction: "token_mean" or "chunk_mean", as in chunk_loss, over the whole step.
        num_chunks: C, where every batch shall report as many chunks; needed by "chunk_mean" unless
            `active` is given.
        label_smoothing: as in chunk_loss.
        z_loss: as in chunk_loss.
        backend: "auto"; "fused" raises where the head is not plain; "logits" never fuses.

    Raises:
        TypeError: `model` has no output head, or is compiled as a whole.
        ValueError: an option is none of those above.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1,
        ...     intermediate_size=8, num_attention_heads=2, num_key_value_heads=2))
        >>> loss_of = ModelChunkLoss(model)
        >>> ids = torch.arange(12).view(2, 6)
        >>> batch = {"input_ids": ids, "labels": ids, "chunk_ids": ids % 6 // 2}
        >>> step = loss_of.step([batch])  # all micro-batches of the step
        >>> out = loss_of(batch, step)
        >>> out.loss.backward()
        >>> out.stats.tokens.tolist()
        [2.0, 4.0, 4.0]
    """

    def __init__(
        self,
        model: Any,
        *,
        reduction: Literal["token_mean", "chunk_mean"] = "token_mean",
        num_chunks: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        if reduction not in ("token_mean", "chunk_mean"):
            raise ValueError(
                f'chunk loss: reduction must be "token_mean" or "chunk_mean", got {reduction!r}.'
            )
        if backend not in ("auto", "fused", "logits"):
            raise ValueError(
                f'chunk loss: backend must be "auto", "fused" or "logits", got {backend!r}.'
            )
        self.model = model
        self.inner = inner_model(model)
        self.shift = not getattr(self.inner.config, "is_encoder_decoder", False)
        self.reduction = reduction
        self.num_chunks = num_chunks
        self.backend = backend
        self.options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        self._measured: tuple[Any, str | None, LogitsMap | str] | None = None

    @property
    def path(self) -> str:
        """Which operator runs, and why: "linear_chunk_loss" or "chunk_loss: <reason>"."""
        if self.backend == "logits":
            return 'chunk_loss: backend="logits"'
        if self._measured is None:
            return "undecided before the first batch"
        found = self._measured[-1]
        return f"chunk_loss: {found}" if isinstance(found, str) else "linear_chunk_loss"

    def step(self, batches: Iterable[Mapping[str, Any]], *, active: Tensor | None = None) -> Step:
        """Returns the denominator of a step, counted over its micro-batches and all ranks.

        Every rank must call it, each with its own batches: where torch.distributed is initialised,
        counts are summed over the ranks. The losses of a step's micro-batches then add up to the
        step's loss on one rank, and over ranks their mean is it, which is how DDP and FSDP combine
        gradients. Reads numbers on the host.

        Args:
            batches: the micro-batches of this rank, as ModelChunkLoss is called with.
            active: (C,), bool or float chunk weights; None = all 1.

        Raises:
            ValueError: no token counts in the whole step, or "chunk_mean" does not know C.
            IndexError: a chunk id lies beyond `num_chunks` or `active`.
        """
        chunks = self.num_chunks if active is None else len(active)
        if self.reduction == "chunk_mean" and chunks is None:
            raise ValueError('chunk loss: "chunk_mean" needs num_chunks or active, got neither.')
        found = (take_targets(batch, self.shift)[1] for batch in batches)
        totals = self._count(found, active, chunks)
        ranks = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = torch.distributed.get_world_size()
            if totals.device.type == "cpu":
                totals = totals.to(self.inner.device)
            torch.distributed.all_reduce(totals)
        if not float(totals.sum()) > 0:
            raise ValueError(
                "chunk loss: no token of this step counts: every label is -100, in no chunk, or in "
                "a chunk that is not active. Was the supervised text truncated?"
            )
        return self._divide_by(totals, active, ranks)

    def _count(self, found: Iterable[Targets], active: Tensor | None, chunks: int | None) -> Tensor:
        """Returns sum(a_c w_t) of the tokens that count: (1,), or for "chunk_mean" (C,)."""
        by_chunk = chunks is not None and self.reduction == "chunk_mean"
        totals = torch.zeros(chunks if by_chunk else 1, dtype=torch.float64)  # type: ignore[arg-type]
        for targets in found:
            ids, weight = token_weights(targets, active, chunks)
            where = ids if by_chunk else torch.zeros_like(ids)
            totals = totals.to(ids.device).index_add(0, where, weight)
        return totals

    def _divide_by(self, totals: Tensor, active: Tensor | None, ranks: int) -> Step:
        if self.reduction == "token_mean":
            return Step(totals[0] / ranks, active)
        # The mean of a chunk is its sum over its own weight W_c: a factor a chunk in one sum.
        # `totals` holds a_c W_c, so that a_c / W_c = a_c^2 / totals.
        own = torch.ones_like(totals) if active is None else active.to(totals)
        present = totals > 0
        factor = torch.where(present, own * own / torch.where(present, totals, 1.0), 0.0)
        return Step((own * present).sum() / ranks, factor)

    def __call__(
        self,
        batch: Mapping[str, Any],
        step: Step | None = None,
        *,
        model: Any = None,
        keep_logits: bool = False,
    ) -> ModelLoss:
        """Returns the loss of a micro-batch, its statistics and the model's output.

        Args:
            batch: the model's inputs, `labels` and `chunk_ids`, each (B, T) in the order of the
                tokens, and perhaps `token_weight`.
            step: from `step`; None = this batch is the step, on this rank alone.
            model: called instead of the model given at first, which is inside it (DDP, say).
            keep_logits: compute all (B, T, V) logits and leave them in the output.

        Raises:
            ValueError: a column is missing or of another shape; `backend="fused"` cannot run; the
                model adds a loss of its own (router), which is not supported.
        """
        inputs, targets = take_targets(batch, self.shift)
        inputs.setdefault("use_cache", False)
        if not self.shift and inputs.get("decoder_input_ids") is None:
            inputs["decoder_input_ids"] = self.inner.prepare_decoder_input_ids_from_labels(
                labels=batch["labels"]
            )
        if step is None:
            chunks = self.num_chunks
            if chunks is None and self.reduction == "chunk_mean":
                chunks = max(0, int(targets.chunk_ids.max())) + 1
            totals = self._count([targets], None, chunks)
            empty = torch.zeros_like(totals) if bool(totals.any()) else torch.ones_like(totals)
            step = self._divide_by(totals + empty, None, 1)
        result: list[Any] = []
        with self._loss_in_forward(targets, step, keep_logits, result):
            output = (self.model if model is None else model)(**inputs)
        found = result[0]
        return ModelLoss(output.loss, found.stats, found.rows, output)

    @contextmanager
    def _loss_in_forward(
        self, targets: Targets, step: Step, keep_logits: bool, result: list[Any]
    ) -> Iterator[None]:
        """Inside this context the inner model's output has the loss, and no logits."""
        original = self.inner.forward
        active = None if step.active is None else step.active.to(targets.labels.device)
        call = {
            "active": active,
            "reduction": "sum",
            "normalizer": step.normalizer,
            "num_chunks": None if active is not None else self.num_chunks,
            **self.options,
        }

        def forward(*args: Any, **kwargs: Any) -> Any:
            fused = None if keep_logits else self._fused_map(original, args, kwargs)
            if fused is not None:
                output, found = self._through_head(
                    lambda: original(*args, **kwargs), targets, fused, call
                )
            else:
                output, found = self._through_logits(
                    lambda: original(*args, **kwargs), targets, keep_logits, call
                )
            if getattr(output, "aux_loss", None) is not None:
                raise ValueError(
                    "chunk loss: the model adds a router loss (aux_loss), which is not supported; "
                    "set config.output_router_logits = False."
                )
            output["loss"] = found.loss
            if not keep_logits:
                output["logits"] = None
            result.append(found)
            return output

        with replaced_forward(self.inner, forward):
            yield

    def _through_head(
        self, run: Callable[[], Any], targets: Targets, fused: LogitsMap, call: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Runs the model with linear_chunk_loss in place of its head."""
        head = self.inner.get_output_embeddings()
        found: list[Any] = []

        def forward(hidden: Tensor) -> Tensor:
            labels, chunk_ids, weight = targets
            options = {**call, "token_weight": weight}
            found.append(fused_loss(head, fused, hidden, labels, chunk_ids, **options))
            return hidden.new_zeros(1, 1, head.weight.shape[0])  # for what follows the head

        with replaced_forward(head, forward):
            output = run()
        return output, found[0]

    def _through_logits(
        self, run: Callable[[], Any], targets: Targets, keep_logits: bool, call: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Runs the model, its logits computed at the tokens that count alone, and chunk_loss."""
        counts = (targets.labels != IGNORE_INDEX) & (targets.chunk_ids >= 0)
        if call["active"] is not None:
            ids = targets.chunk_ids.clamp(0, len(call["active"]) - 1).long()
            beyond = targets.chunk_ids >= len(call["active"])  # chunk_loss refuses them
            counts &= (call["active"].to(ids.device)[ids] != 0) | beyond
        picked: list[bool] = []

        def pick(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            picked.append(True)
            return (args[0][counts][None], *args[1:])

        head = None if keep_logits else self.inner.get_output_embeddings()
        handle = None if head is None else head.register_forward_pre_hook(pick)
        try:
            output = run()
        finally:
            if handle is not None:
                handle.remove()
        logits, weight = output.logits, targets.token_weight
        if not picked:  # a model that does not call its head
            return output, chunk_loss(logits, *targets[:2], token_weight=weight, **call)
        weight = None if weight is None else weight[counts]
        labels, ids = targets.labels[counts], targets.chunk_ids[counts]
        found = chunk_loss(logits[0], labels, ids, token_weight=weight, **call)
        return output, found._replace(rows=None)

    def _fused_map(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LogitsMap | None:
        """Returns f where the head's product can be fused, measured once for each head."""
        if self.backend == "logits":
            return None
        head = self.inner.get_output_embeddings()
        why = why_not_plain(head)
        if self._measured is None or self._measured[0] is not head or self._measured[1] != why:
            found = why if why is not None else self._measure(head, original, args, kwargs)
            self._measured = (head, why, found)
            log = _LOG.info if isinstance(found, LogitsMap) else _LOG.warning
            log("chunk loss of %s: %s", type(self.inner).__name__, self.path)
        found = self._measured[-1]
        if isinstance(found, LogitsMap):
            return found
        if self.backend == "fused":
            raise ValueError(f'chunk loss: backend="fused" cannot run: {found}.')
        return None

    def _measure(
        self,
        head: Any,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> LogitsMap | str:
        few = {
            name: value[:1, :_PROBED_TOKENS]
            for name, value in kwargs.items()
            if isinstance(value, Tensor) and value.dim() >= 2 and "mask" not in name
        }

        def run() -> Tensor:
            logits: Tensor = original(*args, **few, use_cache=False).logits
            return logits

        return measured_map(head, run)
