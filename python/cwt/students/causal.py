"""The student that is a causal language model of the transformers library."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cwt.students.pretrained import PretrainedStudent
from cwt.students.tokenized import Batch, TokenSequence, collate


class CausalStudent(PretrainedStudent):
    """A causal language model: question and rationale are one row."""

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        return collate(sequences, self.tokenizer.pad).to(self.device)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        output = self._call(batch, output_hidden_states=True)
        last: torch.Tensor = output.hidden_states[-1]
        return last

    def _continued(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        rows = [torch.tensor(prompt) for prompt in prompts]
        # Padded on the left, so that all go on from the same column.
        ids = pad_sequence(rows, True, self.tokenizer.pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side="left")
        out = self.plain_model.generate(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), **options
        )
        written: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return written
