"""Fewer rows than threads: all threads work on one row, and nothing of the result shows it."""

import pytest
import torch
from chunk_loss_cases import compare, make, run_under
from test_chunk_loss import run

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_threads(threads, *inputs, **options):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return run(*inputs, **options)
    finally:
        torch.set_num_threads(before)


def bits(out, grad):
    """Returns the bytes of every number of a result: NaN equals NaN."""
    tensors = [out.loss, grad, *(out.rows or ()), *(s for s in out.stats or () if s is not None)]
    return [t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def check(*inputs, rtol=1e-6, **options):
    """Asserts that 1, 2, 3, 5 and 8 threads agree bit by bit, and with the oracle."""
    out, grad = on_threads(1, *inputs, num_chunks=3, **options)
    alone = bits(out, grad)
    for threads in (2, 3, 5, 8):
        assert bits(*on_threads(threads, *inputs, num_chunks=3, **options)) == alone, threads
    compare(out, grad, *inputs, rtol=rtol, num_chunks=3, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_any_number_of_threads_gives_the_same_bits(dtype, rows):
    check(*make(rows, 65536 + 517, dtype, ignored=rows > 4))


@pytest.mark.parametrize("label", [0, 1023, 1024, 40_000, 70_000])  # ends of blocks and of the row
@pytest.mark.parametrize("stats", [True, False])
def test_wherever_the_label_is(label, stats):
    logits, _, ids = make(2, 70_001, ignored=False)
    check(logits, torch.tensor([label, 7]), ids, stats=stats)


def test_rows_whose_exponents_change_from_block_to_block():
    """Maxima that rise by more than 2^6, towards the end, and fall again."""
    logits, labels, ids = make(1, 80_000, ignored=False)
    logits[0] += torch.linspace(-80, 60, 80_000)
    logits[0, 70_000:] -= 300
    check(logits, labels, ids)


@pytest.mark.parametrize("value", [2e4, -2e4])
def test_rows_far_from_zero_are_rebased(value):
    logits, labels, ids = make(1, 66_000, ignored=False)
    check(logits + value, labels, ids, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["label", "elsewhere", "everywhere"])
def test_rows_that_are_not_finite(bad, where):
    logits, labels, ids = make(2, 66_000, ignored=False)
    place = {"label": labels[1], "elsewhere": labels[1] - 1, "everywhere": slice(None)}[where]
    logits[1, place] = bad
    alone = bits(*on_threads(1, logits, labels, ids, num_chunks=3, reduction="none"))
    for threads in (3, 8):
        found = on_threads(threads, logits, labels, ids, num_chunks=3, reduction="none")
        assert bits(*found) == alone
    finite = bad == float("-inf") and where == "elsewhere"
    assert torch.isfinite(found[0].loss).tolist() == [True, finite]


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(capability):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_chunk_loss_split as t\n"
        "for dtype in t.DTYPES: t.test_any_number_of_threads_gives_the_same_bits(dtype, 1)\n"
        "t.test_wherever_the_label_is(1024, True)\n"
        "t.test_rows_whose_exponents_change_from_block_to_block()\n"
        "print('ran', t.torch.ops.cwt.cpu_capability())\n"
    )
    run_under(capability, code)
