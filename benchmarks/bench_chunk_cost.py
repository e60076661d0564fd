"""What chunk-wise training (CWT) costs for each token that bears loss, beside whole rationales.

    python benchmarks/bench_chunk_cost.py [--rounds 5] [--task objects] [--steps 5]

A step is forward pass, backward pass, clipping and AdamW, of a random Llama of 1.9 M weights (head
a quarter of them; of SmolLM2-135M's a fifth). Rows are generated examples in five chunks and the
answer, samples of similar length together, in passes of 2,048 padded tokens. Rows of the table:
- FTT (full-thinking training): whole rationales;
- CWT: one chunk a row, with everything before it;
- CWT, N together: chunks of one example are drawn N at a time and share a row in a step.

Columns: rows and tokens read for each 100 tokens that bear loss (padding included), the share of
padding, and CPU time for each token that bears loss, over that of FTT: median of the ratios of the
rounds, with quartiles.
"""

import argparse
import os

if __name__ == "__main__":  # waiting threads must not count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
from dataclasses import replace

import harness
import torch
from cwt.data.tasks import generate_examples
from cwt.students.causal import CausalStudent
from cwt.students.load import load_student
from cwt.students.student import group_by_tokens
from cwt.training.chunking import average_chunks
from cwt.training.recipe import Recipe
from cwt.training.sampler import Sampler
from cwt.training.sharing import share_prefixes
from transformers import LlamaConfig, LlamaForCausalLM

_CHUNKS, _EXAMPLES, _PASS = 5, 256, 2048
FTT = Recipe(target="rationale", budget=1, batch_size=4, group_lengths=True)
CWT = replace(FTT, target="chunk", batch_size=12)
RECIPES = {
    "FTT": FTT,
    "CWT": CWT,
    "CWT, meeting by chance": replace(CWT, share_prefixes=True),
    **{
        f"CWT, {n} together": replace(CWT, share_prefixes=True, chunks_together=n)
        for n in (2, 3, 6)
    },
}


def make_student() -> CausalStudent:
    """Returns a random student of 1.9 M weights with the embedded tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3900, hidden_size=128, intermediate_size=344, num_hidden_layers=8,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return CausalStudent(LlamaForCausalLM(config).train(), load_student("tiny").tokenizer)


class Steps:
    """Draws and takes steps of a recipe, and counts what they read.

    Args:
        student: each recipe gets its own.
        examples: in tokens.
        recipe: of the steps.
    """

    def __init__(self, student, examples, recipe: Recipe) -> None:
        self.student, self.recipe = student, recipe
        self.sampler = Sampler(examples, recipe)
        self.optimizer = torch.optim.AdamW(student.model.parameters(), 1e-5, fused=True)
        self.loss_tokens: list[int] = []
        self.rows = self.read = self.padded = 0

    def draw(self):
        samples = self.sampler.draw()
        rows = share_prefixes(samples) if self.recipe.share_prefixes else samples
        lengths = [len(row.ids) for row in rows]
        parts = [[rows[i] for i in part] for part in group_by_tokens(lengths, _PASS)]
        self.rows += len(rows)
        self.read += sum(lengths)
        self.padded += sum(max(len(r.ids) for r in part) * len(part) for part in parts)
        self.loss_tokens.append(sum(row.loss_tokens for row in rows))
        return parts

    def take(self, *parts) -> None:
        self.optimizer.zero_grad()
        for part in parts:
            batch = self.student.collate(part)
            self.student.token_loss(batch, reduction="sum", normalizer=1e3).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.model.parameters(), 1.0)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", default="objects")
    parser.add_argument("--steps", type=int, default=5, help="of reasoning in a problem")
    options = parser.parse_args()
    items = []
    tokenizer = load_student("tiny")
    for e in generate_examples(options.task, [_EXAMPLES], seed=0, steps=options.steps)[0]:
        cuts = average_chunks(len(e.units) - 1, _CHUNKS)
        items.append(tokenizer.tokenize(e.chunked([*cuts, len(e.units)])))
    prompt = statistics.mean(len(x.prompt) for x in items)
    written = statistics.mean(sum(map(len, x.units)) for x in items)
    print(f"{options.task}: {prompt:.0f} tokens of question, {written:.0f} of rationale")
    steps = {name: Steps(make_student(), items, recipe) for name, recipe in RECIPES.items()}
    works = {name: harness.Work(s.take, s.draw) for name, s in steps.items()}
    times = harness.measure(works, options.rounds)
    seconds = {
        name: [t[harness.CPU] / n for t, n in zip(times[name], s.loss_tokens[1:], strict=True)]
        for name, s in steps.items()
    }
    print(f"{'':24}   rows   read  padding  x FTT, read  x FTT, CPU time")
    per_token = steps["FTT"].padded / sum(steps["FTT"].loss_tokens)
    for name, s in steps.items():
        total = sum(s.loss_tokens)
        ratio = harness.ratio(seconds[name], seconds["FTT"])
        print(
            f"{name:24} {100 * s.rows / total:6.2f} {100 * s.padded / total:6.0f} "
            f"{1 - s.read / s.padded:8.1%} {s.padded / total / per_token:12.2f} "
            f"{ratio.median:8.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        )


if __name__ == "__main__":
    main()
