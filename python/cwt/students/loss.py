"""The loss of a student's pass: through linear_chunk_loss where its head is plain, or its logits.

A plain head is a matrix product that a scale, a softcap or an offset may follow; which is measured
on the model itself (`cwt_ext.integrations.head`). Then no more than one block of logits is held.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from cwt_ext.chunk_loss import ChunkLoss
from cwt_ext.integrations.head import (
    LogitsMap,
    fused_loss,
    inner_model,
    measured_map,
    replaced_forward,
    why_not_plain,
)
from cwt_ext.linear_chunk_loss import LinearChunkLoss

LINEAR = "linear_chunk_loss"
# Up to here the logits of the longest passes (2,048 tokens in float32 on a CPU, 16,384 in 16 bits
# on a GPU; memory.py) fit one block of linear_chunk_loss, which then holds no fewer of them.
SMALL_VOCABULARY = 16_384

TokenLoss: TypeAlias = ChunkLoss | LinearChunkLoss


class LossPath:
    """Decides how the loss of a model is computed, and computes it without its logits.

    Args:
        model: of transformers, or of peft around one.
    """

    def __init__(self, model: Any) -> None:
        self.model = inner_model(model)
        self._measured: tuple[Any, str | None, LogitsMap | str] | None = None

    def find(self) -> LogitsMap | str:
        """Returns what the model does to its head's product, or why its logits are computed."""
        head = self.model.get_output_embeddings()
        tokens = self.model.get_input_embeddings().num_embeddings
        if tokens <= SMALL_VOCABULARY:
            return f"a small vocabulary ({tokens:,} tokens)"
        why = why_not_plain(head)
        # The head may be wrapped later (an adapter), so it is looked at each time.
        if self._measured is None or self._measured[:2] != (head, why):
            found = self._measure(head) if why is None else why
            self._measured = (head, why, found)
        return self._measured[-1]

    def _measure(self, head: Any) -> LogitsMap | str:
        ids = torch.arange(4, device=self.model.device)[None]
        inputs = {"input_ids": ids}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids

        def run() -> torch.Tensor:
            logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
            return logits

        training = self.model.training
        self.model.eval()
        try:
            return measured_map(head, run)
        finally:
            self.model.train(training)

    @contextmanager
    def in_forward(
        self,
        logits_map: LogitsMap,
        positions: torch.Tensor,
        targets: tuple[torch.Tensor, torch.Tensor],
        options: dict[str, Any],
    ) -> Iterator[list[LinearChunkLoss]]:
        """Inside this context the output of the model has the loss, and no logits.

        The loss is formed in the model's forward, so that what wraps the model (DDP, FSDP2) sees it
        as the model's own. The list gets the result of each pass.

        Args:
            logits_map: from `find`.
            positions: (B, T) bool, n of them set: where a label bears loss.
            targets: labels and chunk ids, each (n,) int64.
            options: of linear_chunk_loss.
        """
        head, original = self.model.get_output_embeddings(), self.model.forward
        results: list[LinearChunkLoss] = []

        def through_head(hidden: torch.Tensor) -> torch.Tensor:
            results.append(fused_loss(head, logits_map, hidden[positions], *targets, **options))
            return hidden.new_zeros(1, 1, head.weight.shape[0])  # for what follows the head

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            output["loss"] = results[-1].loss
            return output

        with replaced_forward(head, through_head), replaced_forward(self.model, forward):
            yield results
