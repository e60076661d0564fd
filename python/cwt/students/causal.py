"""The student that is a causal language model of the transformers library."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from cwt.data.example import Example
from cwt.students.adapters import is_adapted
from cwt.students.precision import autocast
from cwt.students.student import Student
from cwt.students.tokenized import (
    Batch,
    PromptTokenizer,
    TokenizedExample,
    TokenSequence,
    collate,
)


class CausalStudent:
    """A causal language model with its tokenizer and prompt; implements `Student`.

    Args:
        model: any causal model with output embeddings, or one with peft's adapters in it.
        tokenizer: of the model, with the prompt.
        dtype: format of the matrix products of every pass (autocast).
        pass_tokens: padded tokens of one scoring pass, at most; 0: the caller counts rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PromptTokenizer,
        dtype: torch.dtype = torch.float32,
        pass_tokens: int = 0,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.dtype, self.pass_tokens = dtype, pass_tokens

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def to(self, device: torch.device) -> "Student":
        self.model.to(device)
        return self

    def ids(self, text: str) -> tuple[int, ...]:
        return self.tokenizer.ids(text)

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.text(ids)

    def prompt(self, question: str) -> tuple[int, ...]:
        return self.tokenizer.prompt(question)

    def tokenize(self, example: Example) -> TokenizedExample:
        return self.tokenizer.tokenize(example)

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        return collate(sequences, self.tokenizer.pad).to(self.device)

    def logits_at(self, batch: Batch, model: torch.nn.Module | None = None) -> torch.Tensor:
        logits: torch.Tensor = self._call(batch, model).logits[0]
        return logits

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        output = self._call(batch, output_hidden_states=True)
        last: torch.Tensor = output.hidden_states[-1]
        return last

    def _call(self, batch: Batch, model: torch.nn.Module | None = None, **options: Any) -> Any:
        with logits_only_at(self.model, batch.bears_loss), autocast(self.device, self.dtype):
            return (model or self.model)(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **options,
            )

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        return self._write(prompts, max_new_tokens, do_sample=False)

    def sample(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return self._write(
                prompts, max_new_tokens, do_sample=True, temperature=temperature, top_k=0
            )

    @torch.inference_mode()
    def _write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
    ) -> list[list[int]]:
        self.model.eval()
        eos, pad = self.tokenizer.eos, self.tokenizer.pad
        rows = [torch.tensor(prompt) for prompt in prompts]
        # Padded on the left, so that all go on from the same column.
        ids = pad_sequence(rows, True, pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side="left")
        model = _without_adapter_wrapper(self.model)
        with _own_generation(model, eos, pad), autocast(self.device, self.dtype):
            out = model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max_new_tokens,
                **options,
            )
        written = out[:, ids.shape[1] :].tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in written]

    def ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] == self.tokenizer.eos

    def save(self, folder: Path) -> None:
        if is_adapted(self.model):  # no vocabulary is added, so embeddings stay the base's
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.tokenizer.save_pretrained(folder)


def _without_adapter_wrapper(model: Any) -> Any:
    """Returns the transformers model, whose layers hold the adapters; peft wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _own_generation(model: Any, eos: int, pad: int) -> Iterator[None]:
    """Inside this context the model generates as it is asked to, whatever its own configuration.

    generation_config.json may hold sampling, penalties or forbidden words; generate() would apply
    those that the caller does not set.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=eos, pad_token_id=pad
    )
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def logits_only_at(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Inside this context the model computes logits only at the selected positions, (1, n, V).

    Whatever the model does to its logits afterwards (a softcap, a scale) still happens.

    Args:
        model: any model with output embeddings.
        positions: (B, T) bool, n of them set.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][positions][None],))
    try:
        yield
    finally:
        handle.remove()
