"""What the students of the transformers library share, whatever the shape of their model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

import cwt_ext
from cwt.data.example import Example
from cwt.students.adapters import is_adapted
from cwt.students.loss import LINEAR, LossPath, TokenLoss
from cwt.students.precision import autocast
from cwt.students.student import Student
from cwt.students.tokenized import Batch, PromptTokenizer, TokenizedExample, TokenSequence
from cwt_ext.integrations.head import LogitsMap, inner_model


class PretrainedStudent(ABC):
    """A model of transformers with its tokenizer and prompt; implements `Student`.

    A kind of model says how rows become a batch, and how it is called and asked to write.

    Args:
        model: with output embeddings, or one with peft's adapters in it.
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
        self._path: LossPath | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def to(self, device: torch.device) -> Student:
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

    @abstractmethod
    def collate(self, sequences: Sequence[TokenSequence]) -> Batch: ...

    @abstractmethod
    def hidden_states(self, batch: Batch) -> torch.Tensor: ...

    @abstractmethod
    def _continued(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """Returns what the model generates for each prompt, without the prompt."""

    def logits_at(self, batch: Batch, model: torch.nn.Module | None = None) -> torch.Tensor:
        logits: torch.Tensor = self._call(batch, model).logits[0]
        return logits

    @property
    def loss_path(self) -> str:
        found = self._logits_map()
        return f"logits: {found}" if isinstance(found, str) else LINEAR

    def token_loss(
        self,
        batch: Batch,
        chunk_ids: torch.Tensor | None = None,
        model: torch.nn.Module | None = None,
        **options: Any,
    ) -> TokenLoss:
        labels, own = batch.targets
        targets = (labels, own if chunk_ids is None else chunk_ids)
        found = self._logits_map()
        if isinstance(found, str):
            return cwt_ext.chunk_loss(self.logits_at(batch, model), *targets, **options)
        options["hidden_stats"] = options.pop("mean_grad_norm", False)
        assert self._path is not None
        with (
            self._path.in_forward(found, batch.bears_loss, targets, options) as results,
            autocast(self.device, self.dtype),
        ):
            output = (model or self.model)(**batch.inputs, use_cache=False)
        return results[0]._replace(loss=output.loss)

    def _logits_map(self) -> LogitsMap | str:
        """Returns what the model does to its head's product, or why its logits are computed."""
        if type(self).logits_at is not PretrainedStudent.logits_at:
            return "the student has logits of its own"
        if self._path is None or self._path.model is not inner_model(self.model):
            self._path = LossPath(self.model)
        with autocast(self.device, self.dtype):
            return self._path.find()

    def _call(self, batch: Batch, model: torch.nn.Module | None = None, **options: Any) -> Any:
        with logits_only_at(self.model, batch.bears_loss), autocast(self.device, self.dtype):
            return (model or self.model)(**batch.inputs, use_cache=False, **options)

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
        ends = self.tokenizer.ends
        with (
            _own_generation(self.plain_model, sorted(ends), self.tokenizer.pad),
            autocast(self.device, self.dtype),
        ):
            written = self._continued(prompts, max_new_tokens=max_new_tokens, **options)
        stops = [
            next((i for i, token in enumerate(row) if token in ends), len(row)) for row in written
        ]
        return [row[: stop + 1] for row, stop in zip(written, stops, strict=True)]

    @property
    def plain_model(self) -> Any:
        """The transformers model, whose layers hold the adapters; peft wraps it."""
        wrapped = hasattr(self.model, "get_base_model")
        return self.model.get_base_model() if wrapped else self.model

    def ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] in self.tokenizer.ends

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        if self.tokenizer.style.chat:  # a server stops where the student's turn ends
            ends = [self.tokenizer.eos, *sorted(self.tokenizer.ends - {self.tokenizer.eos})]
            self.plain_model.generation_config.eos_token_id = ends
            if is_adapted(self.model):
                self.plain_model.generation_config.save_pretrained(folder)
        if is_adapted(self.model):  # no vocabulary is added, so embeddings stay the base's
            self.model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
        else:
            self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save(folder)


@contextmanager
def _own_generation(model: Any, ends: list[int], pad: int) -> Iterator[None]:
    """Inside this context the model generates as it is asked to, whatever its own configuration.

    generation_config.json may hold sampling, penalties or forbidden words; generate() would apply
    those that the caller does not set.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=ends, pad_token_id=pad
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
