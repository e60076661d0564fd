"""Writes a T5 of random weights, an encoder-decoder that the mechanism is tried on.

    python benchmarks/evidence/t5_student.py runs/t5

It has the tokenizer of the embedded student, two layers on each side and 250 thousand parameters.
"""

import sys
from pathlib import Path

import torch
from cwt import load_student
from cwt.students.seq2seq import Seq2SeqStudent
from cwt.students.tokenized import PromptTokenizer
from transformers import T5Config, T5ForConditionalGeneration


def t5_student(seed: int = 0) -> Seq2SeqStudent:
    """Returns the student; a seed gives the same weights every time."""
    tokenizer = load_student("tiny").tokenizer.tokenizer
    prompts = PromptTokenizer(tokenizer, encoder=True)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=192, num_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=prompts.pad, pad_token_id=prompts.pad,
        eos_token_id=prompts.eos,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Seq2SeqStudent(T5ForConditionalGeneration(config), prompts)


if __name__ == "__main__":
    t5_student().save(Path(sys.argv[1]))
