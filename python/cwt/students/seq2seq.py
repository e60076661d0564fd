"""The student that is an encoder-decoder of the transformers library, such as T5 or BART."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cwt.students.pretrained import PretrainedStudent
from cwt.students.tokenized import Batch, TokenSequence, collate_pairs


class Seq2SeqStudent(PretrainedStudent):
    """An encoder-decoder: the encoder reads the question, the decoder writes the rationale."""

    @property
    def decoder_start(self) -> tuple[int, ...]:
        """The tokens that the decoder begins with: the model's own, then the tokenizer's."""
        return (int(self.model.config.decoder_start_token_id), *self.tokenizer.start)

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        return collate_pairs(sequences, self.tokenizer.pad, self.decoder_start).to(self.device)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        output = self._call(batch, output_hidden_states=True)
        last: torch.Tensor = output.decoder_hidden_states[-1]
        return last

    def _continued(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        rows = [torch.tensor(prompt) for prompt in prompts]
        ids = pad_sequence(rows, True, self.tokenizer.pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0)
        start = torch.tensor([self.decoder_start] * len(rows))
        self.plain_model.generation_config.decoder_start_token_id = self.decoder_start[0]
        out = self.plain_model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            decoder_input_ids=start.to(self.device),
            **options,
        )
        written: list[list[int]] = out[:, start.shape[1] :].tolist()
        return written

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        begin = self.tokenizer.start  # a server that gives no decoder_input_ids begins alike
        if begin:
            self.plain_model.generation_config.forced_bos_token_id = begin[0]
        super().save(folder, weights)
