"""Speed of a step of chunk-wise training (CWT) of a transformers model on the CPU.

    python benchmarks/bench_training_step.py [--rounds 5] [--quick]
    python -m pytest benchmarks/bench_training_step.py --benchmark-only [--quick]

A step is the forward pass, the backward pass, clipping and AdamW. The second half of every sequence
is a rationale of 8 chunks, of which one bears the loss. Every rival gets the same model (random
weights, or the embedded `tiny`), and computes the same loss:
- ours: linear_chunk_loss of the hidden states; statistics of the chunk included;
- ours, chunk_loss on all logits: the model's own head, then chunk_loss in place;
- plain loop, all logits: F.cross_entropy of all logits, labels -100 where there is no loss;
- plain loop, masked rows: the head of the rows that bear loss only, then F.cross_entropy;
- TRL: what its SFTTrainer does, where it is installed.
"""

import os

if __name__ == "__main__":  # waiting threads must not count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import cases
import torch
import torch.nn.functional as F
from harness import Work, paired_tables
from rivals import trl_linear
from torch import Tensor

import cwt_ext

FEATURE = cases.TRAINING_STEP
C = cases.CHUNKS
ACTIVE = 3
TINY = Path(__file__).resolve().parents[1] / "python/cwt/students/tiny"
WIDTH, LAYERS, HEADS = 256, 4, 4


def make_model(name: str) -> torch.nn.Module:
    """Returns a causal language model in float32: of random weights, or the embedded student."""
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    if name == "tiny":
        return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    if name == "llama-49k":
        config = LlamaConfig(
            vocab_size=49152, hidden_size=WIDTH, intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    if name == "gpt2-50k":
        config = GPT2Config(
            vocab_size=50257, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    raise ValueError(f"model must be tiny, llama-49k or gpt2-50k, got {name!r}.")


class Batch:
    """A model, the tokens of a step, and a step by every rival."""

    def __init__(self, name: str, sequences: int, length: int) -> None:
        torch.manual_seed(0)
        self.model = make_model(name).train()
        vocab = self.model.config.vocab_size
        self.tokens = torch.randint(0, vocab, (sequences, length))
        self.labels = cwt_ext.shift_labels(self.tokens)
        prompt = length // 2
        ids = torch.full((length,), -1)
        ids[prompt:] = torch.arange(length - prompt) * C // (length - prompt)
        self.ids = cwt_ext.shift_labels(ids.repeat(sequences, 1), -1)
        self.active = torch.arange(C) == ACTIVE
        self.rows = (self.labels != -100) & (self.ids == ACTIVE)
        self.masked_labels = torch.where(self.rows, self.labels, -100)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.buffer, self.flat = torch.empty(2, self.parameters).unbind()

    def loss_of(self, rival: str) -> Callable[[torch.nn.Module], Tensor]:
        """Returns f(model) -> the loss of the batch. Raises Unavailable."""
        if rival == "TRL":
            function = trl_linear()
            return lambda model: function(
                self.hidden(model).flatten(0, 1), head(model), self.masked_labels.flatten()
            )
        return {
            "ours": self.ours,
            "ours, chunk_loss on all logits": self.ours_on_logits,
            "plain loop, all logits": self.all_logits,
            "plain loop, masked rows": self.masked,
        }[rival]

    def work(self, rival: str, work: str) -> Work:
        """Returns the step of a rival, on a copy of the model of its own."""
        loss_of = self.loss_of(rival)
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.98), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(model).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return Work(step)

    def copied(self) -> tuple[Work, int]:
        """Returns copy_ of as many numbers as the model has, and the bytes that it moves."""
        return Work(lambda: self.buffer.copy_(self.flat)), 2 * self.flat.nbytes

    def size(self, work: str) -> tuple[str, int]:
        """Returns the traffic of the parameters P alone, whatever the activations need."""
        return (
            "40 P (read in both passes, gradient written; AdamW reads 4 and writes 3 of 4 bytes)",
            40 * self.parameters,
        )

    def hidden(self, model: torch.nn.Module) -> Tensor:
        return model.base_model(input_ids=self.tokens, use_cache=False).last_hidden_state

    def ours(self, model: torch.nn.Module) -> Tensor:
        return cwt_ext.linear_chunk_loss(
            self.hidden(model), head(model), self.labels, self.ids, active=self.active
        ).loss

    def logits(self, model: torch.nn.Module) -> Tensor:
        return model(input_ids=self.tokens, use_cache=False).logits

    def ours_on_logits(self, model: torch.nn.Module) -> Tensor:
        return cwt_ext.chunk_loss(
            self.logits(model), self.labels, self.ids, active=self.active, inplace=True
        ).loss

    def all_logits(self, model: torch.nn.Module) -> Tensor:
        return F.cross_entropy(self.logits(model).flatten(0, 1), self.masked_labels.flatten())

    def masked(self, model: torch.nn.Module) -> Tensor:
        logits = F.linear(self.hidden(model)[self.rows], head(model))
        return F.cross_entropy(logits, self.labels[self.rows])


def head(model: torch.nn.Module) -> Tensor:
    return model.get_output_embeddings().weight


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[str, int, int], dtype: str) -> Batch:
    assert dtype == "float32"
    return Batch(*shape)


def test_training_step(case, measure):
    measure(inputs(case.shape, case.dtype))


if __name__ == "__main__":
    paired_tables(FEATURE, inputs, __doc__, rounds=5)
