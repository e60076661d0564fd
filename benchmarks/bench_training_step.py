"""Speed and memory of a training step of a transformers model on the CPU.

    python benchmarks/bench_training_step.py [--rounds 5] [--quick]
    python benchmarks/bench_training_step.py --memory
    python -m pytest benchmarks/bench_training_step.py --benchmark-only [--quick]

A step is the forward pass, the backward pass, clipping and AdamW. The second half of every sequence
is a rationale of 8 chunks. In a batch of chunk-wise training (CWT) one of them bears the loss, in
one of full-thinking training (FTT) all do. Every rival gets the same model (random weights, or the
embedded `tiny`), and computes the same loss:
- ours: linear_chunk_loss of the hidden states; statistics of the chunk included;
- ours, chunk_loss on all logits: the model's own head, then chunk_loss in place;
- plain loop, all logits: F.cross_entropy of all logits, labels -100 where there is no loss;
- plain loop, masked rows: the head of the rows that bear loss only, then F.cross_entropy;
- TRL: what its SFTTrainer does, where it is installed.

--memory has no times, but the most that a second step holds beyond weights and optimizer states,
each rival in a process of its own (Linux).
"""

import os

if __name__ == "__main__":  # waiting threads must not count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import copy
import ctypes
import functools
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cases
import torch
import torch.nn.functional as F
from harness import Unavailable, Work, paired_tables
from rivals import trl_linear
from torch import Tensor

import cwt_ext

FEATURE = cases.TRAINING_STEP
C = cases.CHUNKS
ACTIVE = 3
TINY = Path(__file__).resolve().parents[1] / "python/cwt/students/tiny"
WIDTH, LAYERS, HEADS = 256, 4, 4
LLAMA = {  # name -> hidden size, intermediate size, layers, heads, heads of keys and values
    "llama-49k": (WIDTH, 3 * WIDTH, LAYERS, HEADS, HEADS),
    "smollm2-135m": (576, 1536, 30, 9, 3),
}


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
    if name in LLAMA:
        width, inner, layers, heads, kv_heads = LLAMA[name]
        config = LlamaConfig(
            vocab_size=49152, hidden_size=width, intermediate_size=inner,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
            tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    if name == "gpt2-50k":
        config = GPT2Config(
            vocab_size=50257, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    raise ValueError(f"model must be tiny, gpt2-50k or one of {', '.join(LLAMA)}, got {name!r}.")


class Batch:
    """A model, the tokens of a step, and a step by every rival.

    Args:
        name: of the model.
        kind: CWT, one chunk of eight bears the loss, or FTT, all do.
        sequences: rows of the batch.
        length: tokens of each.
    """

    def __init__(self, name: str, kind: str, sequences: int, length: int) -> None:
        torch.manual_seed(0)
        self.model = make_model(name).train()
        vocab = self.model.config.vocab_size
        self.tokens = torch.randint(0, vocab, (sequences, length))
        self.labels = cwt_ext.shift_labels(self.tokens)
        prompt = length // 2
        ids = torch.full((length,), -1)
        ids[prompt:] = torch.arange(length - prompt) * C // (length - prompt)
        self.ids = cwt_ext.shift_labels(ids.repeat(sequences, 1), -1)
        self.active = (torch.arange(C) == ACTIVE) | (kind == "FTT")
        self.rows = (self.labels != -100) & (self.ids >= 0) & self.active[self.ids]
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
def inputs(shape: tuple[str, str, int, int], dtype: str) -> Batch:
    assert dtype == "float32"
    return Batch(*shape)


def test_training_step(case, measure):
    measure(inputs(case.shape, case.dtype))


def most_held(shape: tuple[str, str, int, int], rival: str) -> float | str:
    """Returns the most MiB that a second step holds beyond weights and optimizer states.

    Gradients count. Only in a process in which nothing else has run, on Linux. Returns the reason
    where a rival cannot run.
    """
    batch = inputs(shape, "float32")
    try:
        step = batch.work(rival, cases.STEP).run
    except Unavailable as reason:
        return str(reason)
    step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak_bytes()
    step()  # gives the gradients of the first one back, and forms its own
    return (peak_bytes() - before + 4 * batch.parameters) / 2**20


def peak_bytes() -> int:
    """Returns the most that this process has held in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory_tables() -> None:
    """Prints what every rival holds, a table a shape."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for shape in FEATURE.published.shapes:
            print(f"\n| {' x '.join(map(str, shape))} | MiB beyond | x ours |\n|-|-|-|")
            ours = 0.0
            for rival in FEATURE.rivals:
                held = pool.submit(most_held, shape, rival.name).result()
                if isinstance(held, str):
                    print(f"not measured: {held}")
                    continue
                ours = ours or held
                print(f"| {rival.name} | {held:.0f} | {held / ours:.2f} |", flush=True)


if __name__ == "__main__":
    if "--memory" in sys.argv[1:]:
        memory_tables()
    else:
        paired_tables(FEATURE, inputs, __doc__, rounds=5)
