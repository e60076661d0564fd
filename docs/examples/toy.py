"""What the examples train: a small Llama on number series, in three chunks after a prompt."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, CHUNKS, BATCH, MICRO_BATCH, STEPS, LEARNING_RATE = 4, 3, 8, 4, 4, 3e-3


def make_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_rows():
    """Rows of token ids and chunk ids: -1 for the prompt, then 0, 1 and 2, of several lengths."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(9, 16, (BATCH * STEPS,), generator=draw).tolist():
        start = int(torch.randint(1, 80, (), generator=draw))
        ids = list(range(start, start + length))
        chunks = [(i - PROMPT) * CHUNKS // (length - PROMPT) for i in range(PROMPT, length)]
        rows.append({"input_ids": ids, "chunk_ids": [-1] * PROMPT + chunks})
    return rows
