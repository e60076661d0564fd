"""chunk_loss against the float64 oracle: values, gradients, statistics, and how torch sees it."""

import pytest
import torch
from chunk_loss_cases import close, compare, make, run_under
from hypothesis import given, settings
from hypothesis import strategies as st

import cwt_ext
from cwt_ext import _ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [  # rows, vocabulary
    (1, 1),  # nothing to be wrong about: loss 0
    (1, 2),
    (5, 7),  # below one vector
    (13, 31),  # vector and tail
    (7, 1024),  # exactly one block
    (11, 1031),  # a block and a prime tail
    (3, 50257),  # GPT-2: odd row addresses, many blocks
]


def run(logits, labels, chunk_ids, **options):
    x = logits.detach().clone().requires_grad_()
    out = cwt_ext.chunk_loss(x, labels, chunk_ids, **options)
    total = out.loss.sum()
    total.backward()
    return out, x.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_plain_loss_equals_oracle(dtype, rows, vocab):
    inputs = make(rows, vocab, dtype, ignored=rows > 1)
    out, grad = run(*inputs, num_chunks=3, mean_grad_norm=True)
    compare(out, grad, *inputs, num_chunks=3, mean_grad_norm=True)


OPTIONS = [
    {"reduction": "sum"},
    {"reduction": "none"},
    {"reduction": "chunk_mean"},
    {"reduction": "token_mean", "normalizer": 7.5},
    {"reduction": "chunk_mean", "normalizer": 2.0},
    {"reduction": "sum", "normalizer": 3.0},
    {"active": torch.tensor([True, False, True])},
    {"active": torch.tensor([0.5, 0.0, 2.0]), "reduction": "chunk_mean"},
    {"active": torch.tensor([True, False, True]), "stats": "all"},
    {"active": torch.tensor([False, False, False])},
    {"stats": False},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_masks_equal_oracle(dtype, options, weighted):
    inputs = make(23, 137, dtype)
    options = {"num_chunks": 3, **options}
    if weighted:
        weight = torch.rand(23, generator=torch.Generator().manual_seed(1))
        weight[::5] = 0
        options["token_weight"] = weight
    if options.get("stats", True):
        options["mean_grad_norm"] = True
    out, grad = run(*inputs, **options)
    compare(out, grad, *inputs, **options)


CHANGED = [
    {"label_smoothing": 0.1},
    {"z_loss": 1e-3},
    {"softcap": 5.0},
    {"label_smoothing": 0.2, "z_loss": 1e-2, "softcap": 8.0},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", CHANGED, ids=str)
@pytest.mark.parametrize("reduction", ["token_mean", "none"])
def test_options_change_gradients_and_their_statistics(dtype, options, reduction):
    inputs = make(17, 1301, dtype)
    options = {**options, "reduction": reduction, "mean_grad_norm": True, "num_chunks": 3}
    out, grad = run(*inputs, **options)
    # A softcapped logit is rounded to float32 (half an ulp of up to 8 nats) before the exponential.
    compare(out, grad, *inputs, rtol=3e-6, **options)


@pytest.mark.parametrize("options", CHANGED, ids=str)
def test_statistics_without_gradient_equal_those_with(options):
    inputs = make(9, 300)
    with_grad, _ = run(*inputs, **options)
    without = cwt_ext.chunk_loss(*inputs, **options)
    for a, b in zip(with_grad.rows, without.rows, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(with_grad.loss, without.loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4, 1e5])
def test_small_and_large_logits(dtype, scale):
    if dtype == torch.float16 and scale > 1e4:
        pytest.skip("float16 ends at 65504")
    inputs = make(7, 257, dtype, scale=scale)
    out, grad = run(*inputs, num_chunks=3)
    compare(out, grad, *inputs, num_chunks=3)


@pytest.mark.parametrize("shift", [-2e4, -9000.0, 9000.0, 2e4, 3e30])
def test_rows_far_from_zero(shift):
    logits, labels, ids = make(5, 64)
    logits = torch.round(logits) + shift  # exact in float32, except 3e30 where all become equal
    out, grad = run(logits, labels, ids, num_chunks=3)
    compare(out, grad, logits, labels, ids, num_chunks=3)


def test_confident_rows_keep_their_digits():
    gaps = torch.tensor([0.0, 8, 12, 16, 20, 23, 27, 30, 33])
    logits = torch.randn(len(gaps), 4099, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(len(gaps)) * 400
    logits[torch.arange(len(gaps)), labels] = logits.max(-1).values + gaps
    ids = torch.zeros_like(labels)
    out, grad = run(logits, labels, ids, reduction="sum")
    want = reference.chunk_loss(logits, labels, ids, reduction="sum")
    assert 1 - torch.softmax(logits.double(), -1).max() < 1e-10
    close(out.rows.nll, want.rows["nll"], 1e-6)
    close(out.rows.grad_norm, want.rows["grad_norm"], 1e-6)
    close(out.rows.entropy, want.rows["entropy"], 1e-6)
    close(grad, want.grad, 1e-6, 1e-37)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients_are_within_one_ulp_of_the_rounded_oracle(dtype):
    inputs = make(16, 2048, dtype, scale=2.0)
    _, grad = run(*inputs, reduction="sum", num_chunks=3)
    want = reference.chunk_loss(*inputs, reduction="sum", num_chunks=3).grad.to(dtype)
    steps = (grad.view(torch.int16).int() - want.view(torch.int16).int()).abs()
    assert steps.max() <= 1
    # float16 is rounded twice, which shows below its smallest normal number.
    assert (steps == 0).float().mean() > {torch.bfloat16: 0.99, torch.float16: 0.96}[dtype]


def test_masked_vocabulary():
    logits, labels, ids = make(6, 77, ignored=False)
    logits[:, 40:] = -torch.inf
    labels = labels % 40
    logits[2, :39] = torch.finfo(torch.float32).min
    out, grad = run(logits, labels, ids, num_chunks=3)
    compare(out, grad, logits, labels, ids, num_chunks=3)
    assert (grad[:, 40:] == 0).all()


def test_label_of_probability_zero():
    logits, _, ids = make(1, 9, ignored=False)
    logits[0, 4] = -torch.inf
    out, grad = run(logits, torch.tensor([4]), ids * 0)
    assert out.loss == torch.inf
    p = torch.softmax(logits[0], -1)
    p[4] -= 1
    close(grad[0], p, 1e-6, 1e-12)
    assert out.stats.nonfinite.sum() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"softcap": 9.0}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "shifted", "expanded"])
def test_strided_logits_equal_contiguous(dtype, options, layout):
    base = torch.randn(4, 6, 52, generator=torch.Generator().manual_seed(0)).to(dtype)
    view = {
        "rows": base[:, ::2, :],
        "columns": base[..., ::2],
        "transposed": base.transpose(0, 1),
        "shifted": base[:, :-1, 3:],
        "expanded": base[:1].expand(4, 6, 52),
    }[layout]
    n = view.shape[:2].numel()
    labels = torch.arange(n).view(view.shape[:2]) % view.shape[2]
    ids = torch.arange(n).view(view.shape[:2]) % 2
    options = {**options, "mean_grad_norm": True}
    leaf = view.detach().contiguous().requires_grad_()
    want = cwt_ext.chunk_loss(leaf, labels, ids, **options)
    strided = view.detach().requires_grad_()
    got = cwt_ext.chunk_loss(strided, labels, ids, **options)
    (want_grad,) = torch.autograd.grad(want.loss, leaf)
    (got_grad,) = torch.autograd.grad(got.loss, strided)
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got_grad, want_grad)
    assert got.rows.nll.shape == labels.shape
    assert torch.equal(got.stats.mean_grad_norm, want.stats.mean_grad_norm)


@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, *CHANGED], ids=str)
def test_gradcheck(reduction, options):
    logits, labels, ids = make(4, 5, torch.float64, seed=4)

    def loss(x):
        return cwt_ext.chunk_loss(x, labels, ids, num_chunks=3, reduction=reduction, **options).loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_reference_gradient_equals_autograd_of_the_reference():
    logits, labels, ids = make(9, 13, torch.float64)
    x = logits.requires_grad_()
    want = reference.chunk_loss(x, labels, ids, label_smoothing=0.1, z_loss=0.01, softcap=6.0)
    want.loss.backward()
    close(want.grad, x.grad, 1e-12, 1e-15)
    plain = reference.chunk_loss(x, labels, ids)
    counts = (labels != -100) & (ids >= 0)
    expected = torch.nn.functional.cross_entropy(x[counts], labels[counts])
    close(plain.loss, expected, 1e-12)


def operator_args(logits, labels, ids, reduction=1, need_grad=True):
    options = (3, reduction, -100, 0.0, 0.0, 0.0, 1, True)
    return (logits, labels, ids, None, None, None, *options, need_grad, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", [1, 3])
def test_opcheck(dtype, reduction):
    logits, labels, ids = make(5, 33, dtype)
    op = torch.ops.cwt.chunk_loss.default
    torch.library.opcheck(op, operator_args(logits.requires_grad_(), labels, ids, reduction))
    torch.library.opcheck(op, operator_args(logits.detach(), labels, ids, reduction, False))
    plain = torch.ops.cwt.chunk_loss_no_autograd.default
    torch.library.opcheck(plain, operator_args(logits.detach(), labels, ids, reduction))
    weight, scale = torch.rand(5), torch.rand(()) if reduction == 1 else torch.rand(5)
    backward = torch.ops.cwt.chunk_loss_backward
    torch.library.opcheck(backward.default, (logits.detach(), weight, scale))
    inplace = torch.ops.cwt.chunk_loss_backward_.default
    torch.library.opcheck(inplace, (logits.detach().clone(), weight, scale))
    out_args = (*operator_args(logits.detach(), labels, ids)[:14], True)
    out_op = torch.ops.cwt.chunk_loss_out.default
    torch.library.opcheck(out_op, out_args, {"grad": torch.empty_like(logits.detach())})


def test_autocast_changes_nothing():
    hidden, head = torch.randn(12, 16), torch.randn(40, 16, requires_grad=True)
    labels, ids = torch.arange(12), torch.arange(12) % 3
    with torch.autocast("cpu", torch.bfloat16):
        logits = hidden @ head.T
        loss = cwt_ext.chunk_loss(logits, labels, ids).loss
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    want = reference.chunk_loss(logits, labels, ids)
    close(loss, want.loss, 1e-6)
    close(head.grad, want.grad.T @ hidden.double(), 0.02, 0.01)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_micro_batches_with_a_normalizer_equal_the_whole_batch(pieces):
    logits, labels, ids = make(40, 101)
    counted = int(((labels != -100) & (ids >= 0)).sum())
    whole, grad = run(logits, labels, ids, num_chunks=3)
    parts, grads = [], []
    for x, y, c in zip(*(t.chunk(pieces) for t in (logits, labels, ids)), strict=True):
        part, part_grad = run(x, y, c, num_chunks=3, reduction="sum", normalizer=counted)
        parts.append(part.loss)
        grads.append(part_grad)
    assert torch.equal(torch.cat(grads), grad)
    close(torch.stack(parts).sum(), whole.loss, 3e-7)


@pytest.mark.parametrize("options", [{}, {"mean_grad_norm": True}, {"softcap": 10.0}], ids=str)
def test_bit_identical_for_any_number_of_threads(options):
    inputs = make(150, 2500)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(*inputs, num_chunks=3, **options))
    finally:
        torch.set_num_threads(before)
    first, first_grad = results[0]
    for out, grad in results[1:]:
        assert torch.equal(out.loss, first.loss)
        assert torch.equal(grad, first_grad)
        for a, b in zip(out.stats, first.stats, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_equals_the_oracle(capability):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import torch, test_chunk_loss as t\n"
        "for dtype in t.DTYPES:\n"
        "    for rows, vocab in t.SHAPES: t.test_plain_loss_equals_oracle(dtype, rows, vocab)\n"
        "    for o in t.CHANGED:\n"
        "        t.test_options_change_gradients_and_their_statistics(dtype, o, 'token_mean')\n"
        "t.test_confident_rows_keep_their_digits()\n"
        "for d in (torch.bfloat16, torch.float16):\n"
        "    t.test_half_gradients_are_within_one_ulp_of_the_rounded_oracle(d)\n"
        "print('ran', t._ops.cpu_capability())\n"
    )
    run_under(capability, code)


def test_backends_lists_the_cpu():
    assert "cpu" in _ops.backends()


cases = st.tuples(st.integers(1, 12), st.integers(1, 70), st.integers(1, 4), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(cases)
def test_property_chunk_names_do_not_matter(case):
    rows, vocab, chunks, seed = case
    logits, labels, ids = make(rows, vocab, chunks=chunks, seed=seed)
    order = torch.randperm(chunks, generator=torch.Generator().manual_seed(seed))
    renamed = torch.where(ids >= 0, order[ids.clamp_min(0)], ids)
    a, grad_a = run(logits, labels, ids, num_chunks=chunks)
    b, grad_b = run(logits, labels, renamed, num_chunks=chunks)
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(grad_a, grad_b)
    assert torch.equal(a.stats.nll_sum, b.stats.nll_sum[order])


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(0, 6))
def test_property_inactive_rows_change_nothing(case, extra):
    rows, vocab, chunks, seed = case
    logits, labels, ids = make(rows, vocab, chunks=chunks, seed=seed)
    active = torch.ones(chunks + 1, dtype=torch.bool)
    active[-1] = False
    a, grad_a = run(logits, labels, ids, active=active)
    g = torch.Generator().manual_seed(seed + 1)
    at = torch.randperm(rows + extra, generator=g)[:rows].sort().values
    wide = torch.full((rows + extra, vocab), torch.nan)
    wide_labels = torch.randint(0, vocab, (rows + extra,), generator=g)
    wide_ids = torch.full((rows + extra,), chunks)
    wide[at], wide_labels[at], wide_ids[at] = logits, labels, ids
    b, grad_b = run(wide, wide_labels, wide_ids, active=active)
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(grad_b[at], grad_a)
    assert grad_b.count_nonzero() == grad_a.count_nonzero()
    assert torch.equal(a.stats.nll_sum, b.stats.nll_sum)


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(-40, 40))
def test_property_shifting_the_logits_changes_nothing(case, shift):
    rows, vocab, chunks, seed = case
    logits, labels, ids = make(rows, vocab, chunks=chunks, seed=seed)
    logits = torch.round(logits * 16) / 16  # so that the shifted logits are exact
    a, grad_a = run(logits, labels, ids, num_chunks=chunks)
    b, grad_b = run(logits + shift, labels, ids, num_chunks=chunks)
    close(a.loss, b.loss, 2e-6, 1e-9)
    close(grad_a, grad_b, 2e-6, 1e-30)


@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean", "sum", "none"])
@pytest.mark.parametrize("how", ["fresh", "inplace"])
def test_float16_gradients_meet_the_loss_scale_before_they_are_rounded(reduction, how):
    """At 8000 logits most probabilities over 2048 rows are below what float16 holds."""
    options = {"reduction": reduction, "active": torch.tensor([1.0, 0.0, 0.5])}
    rows = 2048
    if reduction in ("sum", "none"):
        rows, options["normalizer"] = 256, 2048.0
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 8000, generator=g).half()
    labels = torch.randint(0, 8000, (rows,), generator=g)
    ids = torch.arange(rows) % 3
    leaf = logits.clone().requires_grad_()
    out = cwt_ext.chunk_loss(leaf * 1, labels, ids, inplace=how == "inplace", **options)
    (got,) = torch.autograd.grad(out.loss.sum() * 65536, leaf)
    want = reference.chunk_loss(logits, labels, ids, **options)
    close(out.loss, want.loss, 1e-5, 1e-9)
    error = (got.double() / 65536 - want.grad).norm() / want.grad.norm()
    assert error < 5e-4, error  # torch's own: 2e-4
