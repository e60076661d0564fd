"""Inputs and comparisons that the chunk_loss tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cwt_ext import reference

SUMS = ("tokens", "nll_sum", "correct", "entropy_sum", "grad_norm_sum", "grad_sq_sum")
# Distance from the float64 oracle that is allowed, relative, for logits of each dtype. The gradient
# is rounded to that dtype; everything else is float32 (float64 for float64 logits).
GRAD_RTOL = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def run_under(capability, code):
    """Runs tests in a process that is told to use an instruction set; the last line says which."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(here), str(here.parent)],
        env={**os.environ, "CWT_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    if "one that this processor has" in done.stderr:
        pytest.skip(f"this processor has no {capability}")
    assert done.returncode == 0, done.stderr
    assert f"ran {capability}" in done.stdout


def make(rows, vocab, dtype=torch.float32, chunks=3, scale=3.0, seed=0, ignored=True):
    """Returns (logits, labels, chunk_ids): some rows ignored, some without a chunk."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocab, generator=g) * scale).to(dtype)
    labels = torch.randint(0, vocab, (rows,), generator=g)
    chunk_ids = torch.randint(0, max(chunks, 1), (rows,), generator=g)
    if ignored:
        labels[torch.rand(rows, generator=g) < 0.15] = -100
        chunk_ids[torch.rand(rows, generator=g) < 0.1] = -1
    return logits, labels, chunk_ids


def close(got, want, rtol, atol=0.0):
    """Asserts |got - want| <= atol + rtol |want|, NaN against NaN."""
    got, want = got.detach().double(), want.detach().double()
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def compare(out, grad, logits, labels, chunk_ids, rtol=1e-6, **options):
    """Asserts that a result and its gradient equal the oracle's."""
    mean = options.pop("mean_grad_norm", False)
    want = reference.chunk_loss(logits, labels, chunk_ids, **options)
    dtype = logits.dtype
    tight = 1e-12 if dtype == torch.float64 else rtol
    close(out.loss.reshape(want.loss.shape), want.loss, tight, 1e-12)
    if grad is not None:
        # Probabilities below 2^-126 are 0 in float32 arithmetic. float16 rounds at 2^-25 or, as it
        # is formed at least 32 times too large and rounded again, a 32nd above.
        floor = {torch.float16: 33 / 32 * 2.0**-25, torch.float64: 1e-30}.get(dtype, 2.0**-125)
        loose = max(GRAD_RTOL[dtype], 0.0 if rtol == 1e-6 else rtol)
        largest = want.grad.abs().max().item() if want.grad.numel() else 0.0
        slack = largest * (0.0 if rtol == 1e-6 else rtol)
        close(grad.reshape(want.grad.shape), want.grad, loose, floor + slack)
    if options.get("stats", True) is False:
        assert out.stats is None
        assert out.rows is None
        return
    # Entropy is a difference of numbers near log V, unless the label has most of the mass.
    slack = {"entropy": 1e-6, "entropy_sum": 1e-6} if dtype != torch.float64 else {}
    for name in SUMS:
        close(getattr(out.stats, name), want.chunks[name], tight, slack.get(name, 1e-12))
    for name in ("nll", "logsumexp", "grad_norm", "entropy", "correct"):
        got = getattr(out.rows, name).reshape(-1)
        close(got, want.rows[name], tight, slack.get(name, 1e-12))
    if mean:
        close(out.stats.mean_grad_norm, want.chunks["mean_grad_norm"], max(tight, 1e-12), 1e-9)
    else:
        assert out.stats.mean_grad_norm is None
