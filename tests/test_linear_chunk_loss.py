"""linear_chunk_loss against the float64 oracle and against chunk_loss of the whole logits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chunk_loss_cases import SUMS, close

import cwt_ext
from cwt_ext import reference

N, D, V = 37, 16, 211


def count_products(run):
    """Returns how many matrix products `run` makes."""
    with torch.autograd.profiler.profile() as profile:
        run()
    return sum(
        e.name in ("aten::mm", "aten::addmm", "aten::addmm_") for e in profile.function_events
    )


def problem(dtype=torch.float64, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(V, D, generator=g) * 0.5).to(dtype).requires_grad_()
    offset = torch.randn(V, generator=g).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(0, V, (N,), generator=g)
    labels[torch.rand(N, generator=g) < 0.2] = -100
    ids = torch.randint(-1, 3, (N,), generator=g)
    return hidden, head, labels, ids, offset


OPTIONS = [
    {},
    {"reduction": "sum", "normalizer": 5.0},
    {"reduction": "chunk_mean"},
    {"reduction": "chunk_mean", "active": torch.tensor([0.5, 0.0, 2.0])},
    {"reduction": "none"},
    {"active": torch.tensor([True, False, True]), "stats": "all"},
    {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 6.0},
    {"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 6.0},
    {"token_weight": torch.linspace(0, 2, N)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_rows", [1, 7, None])
def test_equals_the_oracle(options, bias, block_rows):
    hidden, head, labels, ids, offset = problem(bias=bias)
    options = {"num_chunks": 3, **options}
    got = cwt_ext.linear_chunk_loss(
        hidden, head, labels, ids, offset, block_rows=block_rows, **options
    )
    logits = hidden @ head.T if offset is None else hidden @ head.T + offset
    want = reference.chunk_loss(logits, labels, ids, **options)
    close(got.loss, want.loss, 1e-11, 1e-14)
    for name in SUMS:
        close(getattr(got.stats, name), want.chunks[name], 1e-11, 1e-12)
    for name in ("nll", "grad_norm", "entropy", "correct", "logsumexp"):
        close(getattr(got.rows, name), want.rows[name], 1e-11, 1e-12)
    inputs = [x for x in (hidden, head, offset) if x is not None]
    upstream = torch.linspace(-1, 2, N).double() if options.get("reduction") == "none" else None
    grads = torch.autograd.grad(got.loss, inputs, upstream)
    for a, b in zip(grads, torch.autograd.grad(want.loss, inputs, upstream), strict=True):
        close(a, b, 1e-10, 1e-13)


def test_gradcheck():
    hidden, head, labels, ids, offset = problem()
    hidden = hidden.detach()[:3].requires_grad_()
    head = head.detach()[:5].requires_grad_()
    offset = offset.detach()[:5].requires_grad_()
    labels, ids = labels[:3].clamp(max=4), ids[:3].clamp_min(0)
    for reduction in ("token_mean", "none"):
        assert torch.autograd.gradcheck(
            lambda *x, r=reduction: (
                cwt_ext.linear_chunk_loss(
                    x[0], x[1], labels, ids, x[2], num_chunks=3, reduction=r
                ).loss
            ),
            (hidden, head, offset),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_equals_chunk_loss_of_the_logits(dtype):
    hidden, head, labels, ids, _ = problem(dtype, bias=False)
    got = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, num_chunks=3, block_rows=8)
    logits = hidden @ head.T
    want = cwt_ext.chunk_loss(logits, labels, ids, num_chunks=3)
    # A product over fewer rows may add in another order.
    rtol = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    close(got.loss, want.loss, rtol)
    for a, b in zip(
        torch.autograd.grad(got.loss, (hidden, head)),
        torch.autograd.grad(want.loss, (hidden, head)),
        strict=True,
    ):
        assert a.dtype == dtype
        close(a, b, rtol, rtol * b.abs().max().item())


def test_weight_gradient_is_accumulated_in_float32():  # Liger-Kernel#512, ml-cross-entropy#14
    rows = 4096
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 8, generator=g).abs().bfloat16()
    head = torch.zeros(3, 8, dtype=torch.bfloat16, requires_grad=True)
    labels, ids = torch.zeros(rows).long(), torch.zeros(rows).long()
    loss = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, block_rows=16).loss
    (got,) = torch.autograd.grad(loss, head)
    exact = reference.chunk_loss((hidden.double() @ head.double().T), labels, ids).grad
    # One rounding of each logit gradient, one of the result; bfloat16 sums would be 10 % off.
    close(got, exact.T @ hidden.double(), 2.0**-7)


@pytest.mark.parametrize("frozen", ["head", "hidden", "both"])
def test_frozen_parts_cost_nothing(frozen):  # Liger-Kernel#1441
    hidden, head, labels, ids, _ = problem(torch.float32)
    hidden.requires_grad_(frozen == "head")
    head.requires_grad_(frozen == "hidden")

    def run():
        loss = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, num_chunks=3).loss
        assert loss.requires_grad == (frozen != "both")

    assert count_products(run) == {"head": 2, "hidden": 2, "both": 1}[frozen]


def test_no_grad_costs_one_product():
    hidden, head, labels, ids, _ = problem(torch.float32)
    with torch.no_grad():
        assert count_products(lambda: cwt_ext.linear_chunk_loss(hidden, head, labels, ids)) == 1


def test_masked_tokens_do_not_enter_the_product():  # trl#5575
    hidden, head, labels, ids, _ = problem()
    active = torch.tensor([False, True, False])
    poisoned = hidden.detach().clone()
    silent = (labels == -100) | (ids != 1)
    poisoned[silent] = torch.nan
    a = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, active=active)
    b = cwt_ext.linear_chunk_loss(poisoned.requires_grad_(), head, labels, ids, active=active)
    assert torch.equal(a.loss, b.loss)
    (grad,) = torch.autograd.grad(b.loss, poisoned)
    assert (grad[silent] == 0).all()
    assert torch.equal(grad, torch.autograd.grad(a.loss, hidden)[0])


def test_statistics_of_the_hidden_gradient():
    hidden, head, labels, ids, _ = problem(bias=False)
    out = cwt_ext.linear_chunk_loss(
        hidden, head, labels, ids, num_chunks=3, block_rows=5, hidden_stats=True
    )
    (d,) = torch.autograd.grad(out.loss, hidden)
    for c in range(3):
        rows = d[(ids == c) & (labels != -100)]
        close(out.hidden.grad_norm_sum[c], rows.norm(dim=1).sum(), 1e-12)
        close(out.hidden.grad_sq_sum[c], (rows * rows).sum(), 1e-12)
        close(out.hidden.sum_grad_norm[c], rows.sum(0).norm(), 1e-12)


def test_batched_hidden_states():
    hidden, head, labels, ids, _ = problem()
    want = cwt_ext.linear_chunk_loss(hidden[:36], head, labels[:36], ids[:36], num_chunks=3)
    got = cwt_ext.linear_chunk_loss(
        hidden[:36].view(4, 9, D), head, labels[:36].view(4, 9), ids[:36].view(4, 9), num_chunks=3
    )
    assert torch.equal(got.loss, want.loss)
    assert got.rows.nll.shape == (4, 9)


@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean", "none"])
def test_nothing_counts(reduction):
    hidden, head, labels, ids, offset = problem()
    out = cwt_ext.linear_chunk_loss(
        hidden, head, labels * 0 - 100, ids, offset, num_chunks=3, reduction=reduction
    )
    assert (out.loss == 0).all()
    for grad in torch.autograd.grad(out.loss.sum(), (hidden, head, offset)):
        assert (grad == 0).all()


def test_bad_input():
    hidden, head, labels, ids, offset = problem()
    call = cwt_ext.linear_chunk_loss
    with pytest.raises(ValueError, match=r"weight must be \(V, 16\), got \(211, 15\)"):
        call(hidden, head[:, 1:], labels, ids)
    with pytest.raises(ValueError, match=r"hidden must be \(N, D\) or \(B, T, D\) .* got \(16,\)"):
        call(hidden[0], head, labels, ids)
    with pytest.raises(ValueError, match=r"bias must be \(211,\), got \(210,\)"):
        call(hidden, head, labels, ids, offset[1:])
    with pytest.raises(TypeError, match=r"dtype of hidden \(torch.float64\), got torch.float32"):
        call(hidden, head.float(), labels, ids)
    with pytest.raises(ValueError, match="block_rows must be at least 1, got 0"):
        call(hidden, head, labels, ids, block_rows=0)
    with pytest.raises(ValueError, match=r"linear_chunk_loss: labels must have.*\(5,\)"):
        call(hidden, head, labels[:5], ids)
    with pytest.raises(ValueError, match=r"^linear_chunk_loss: num_chunks must be .* got -1"):
        call(hidden, head, labels, ids, num_chunks=-1)
    with pytest.raises(ValueError, match=r"^linear_chunk_loss: active must be \(4,\).*\(3,\)"):
        call(hidden, head, labels, ids, active=torch.ones(3), num_chunks=4)
    with pytest.raises(TypeError, match=r"^linear_chunk_loss: token_weight must be .*int64"):
        call(hidden, head, labels, ids, token_weight=torch.ones(len(ids)).long())
    with pytest.raises(ValueError, match=r"^linear_chunk_loss: normalizer must be above 0"):
        call(hidden, head, labels, ids, normalizer=0)
    labels[20] = V
    with pytest.raises(IndexError, match=rf"^linear_chunk_loss: row 20 has label {V} .*\[0, {V}\)"):
        call(hidden, head, labels, ids, num_chunks=3)
    out = call(hidden, head, labels, ids, num_chunks=3, validate=False)
    assert out.loss.isnan()
    assert out.stats.bad_labels == 1


def test_double_backward_is_a_clear_error():
    hidden, head, labels, ids, _ = problem()
    loss = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, num_chunks=3).loss
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("spare", [0, 5])
def test_a_static_capacity_changes_nothing(options, spare):
    hidden, head, labels, ids, offset = problem()
    options = {"num_chunks": 3, **options}
    upstream = torch.linspace(-1, 2, N).double() if options.get("reduction") == "none" else None
    inputs = (hidden, head, offset)
    want = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, offset, **options)
    wanted = torch.autograd.grad(want.loss, inputs, upstream)
    evaluated = (want.rows.logsumexp != 0).sum().item()
    with torch.no_grad():  # what fills the capacity is not looked at
        hidden[want.rows.logsumexp == 0] = torch.nan
    got = cwt_ext.linear_chunk_loss(
        hidden, head, labels, ids, offset, max_rows=evaluated + spare, **options
    )
    close(got.loss, want.loss, 1e-13)
    for a, b in zip(torch.autograd.grad(got.loss, inputs, upstream), wanted, strict=True):
        close(a, b, 1e-12, 1e-14)
    for a, b in zip(got.rows, want.rows, strict=True):
        close(a, b, 1e-13)
    short = cwt_ext.linear_chunk_loss(
        hidden, head, labels, ids, offset, max_rows=evaluated - 1, **options
    )
    assert short.loss.isnan().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["token_mean", "none"])
def test_autocast_does_as_linear_does(kind, reduction):
    hidden, head, labels, ids, offset = problem(torch.float32)
    inputs = (hidden, head, offset)

    def grads(loss_of):
        with torch.autocast("cpu", dtype=kind):
            loss = loss_of()
        assert loss.dtype == torch.float32
        return loss, torch.autograd.grad(loss.sum(), inputs)

    options = {"num_chunks": 3, "reduction": reduction}
    got = grads(
        lambda: cwt_ext.linear_chunk_loss(hidden, head, labels, ids, offset, **options).loss
    )
    want = grads(
        lambda: cwt_ext.chunk_loss(F.linear(hidden, head, offset), labels, ids, **options).loss
    )
    close(got[0], want[0], 1e-2, 1e-3)
    for a, b in zip(got[1], want[1], strict=True):
        assert a.dtype == b.dtype == torch.float32
        close(a, b, 3e-2, 3e-2 * b.abs().max().item())


def test_hidden_states_in_autocast_dtype_and_a_float32_head():
    hidden, head, labels, ids, _ = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = cwt_ext.linear_chunk_loss(hidden.bfloat16(), head, labels, ids, num_chunks=3)
    out.loss.backward()
    assert head.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("reduction", ["token_mean", "none"])
def test_float16_gradients_meet_the_loss_scale_before_they_are_rounded(reduction):
    rows, width, vocab = 2048, 32, 4000
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=g).half().requires_grad_()
    head = (torch.randn(vocab, width, generator=g) * 0.2).half().requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=g)
    ids = torch.zeros(rows, dtype=torch.int64)
    options = {"reduction": reduction, "normalizer": float(rows)}
    loss = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, **options).loss.sum()
    got = torch.autograd.grad(65536 * loss, (hidden, head))
    exact_hidden, exact_head = (x.detach().double().requires_grad_() for x in (hidden, head))
    exact = F.cross_entropy(exact_hidden @ exact_head.T, labels)
    for a, b in zip(got, torch.autograd.grad(exact, (exact_hidden, exact_head)), strict=True):
        assert a.isfinite().all()
        error = (a.double() / 65536 - b).norm() / b.norm()
        assert error < 5e-4, error  # torch's own: 2e-4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiles_without_a_graph_break():
    hidden, head, labels, ids, offset = problem(torch.float32)
    inputs = (hidden, head, offset)

    def loss(hidden, head, offset):
        return cwt_ext.linear_chunk_loss(hidden * 2, head, labels, ids, offset, num_chunks=3).loss

    want = torch.autograd.grad(loss(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*inputs), inputs)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-6)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("max_rows", [-1, 30])
def test_opcheck(reduce, max_rows):
    hidden, head, labels, ids, offset = problem(torch.float32)
    plan = torch.ops.cwt.chunk_loss_plan
    row_weight, state = plan(labels, ids, None, None, None, 3, V, 1, -100, 1)
    args = (hidden, head, offset, labels, ids, row_weight, state, 3, reduce)
    options = (-100, 0.1, 1e-3, 5.0, 1, reduce, True, 8, max_rows, [True, True, True])
    torch.library.opcheck(torch.ops.cwt.linear_chunk_loss.default, (*args, *options))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func's own
def test_forward_mode_is_refused():
    hidden, head, labels, ids, _ = problem()
    loss = lambda h: cwt_ext.linear_chunk_loss(h, head, labels, ids, num_chunks=3).loss  # noqa: E731
    with pytest.raises(RuntimeError, match=r"forward-mode derivatives .* are not supported"):
        torch.func.jvp(loss, (hidden.detach(),), (torch.ones_like(hidden),))


def test_a_bad_row_spoils_the_statistics_of_its_chunk():
    hidden, head, labels, ids, _ = problem()
    labels[:], ids[:] = 1, torch.arange(N) % 3
    labels[4] = V  # of chunk 1
    active = torch.tensor([True, True, False])
    out = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, active=active, validate=False)
    want = cwt_ext.chunk_loss(hidden @ head.T, labels, ids, active=active, validate=False)
    assert out.stats.nll_sum.isnan().tolist() == [False, True, False]
    for name in SUMS:
        close(getattr(out.stats, name), getattr(want.stats, name), 1e-12)


def test_options_that_exclude_each_other():
    hidden, head, labels, ids, _ = problem()
    call = cwt_ext.linear_chunk_loss
    with pytest.raises(ValueError, match="block_rows or block_bytes, not both"):
        call(hidden, head, labels, ids, block_rows=1, block_bytes=1)
    with pytest.raises(ValueError, match="block_bytes must be at least 1, got 0"):
        call(hidden, head, labels, ids, block_bytes=0)
    with pytest.raises(ValueError, match="max_rows must be at least 0, got -2"):
        call(hidden, head, labels, ids, max_rows=-2)
    with pytest.raises(ValueError, match='hidden_stats=True needs a reduction other than "none"'):
        call(hidden, head, labels, ids, hidden_stats=True, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_of_several_tiles_and_blocks_of_many_rows(dtype, bias):
    g = torch.Generator().manual_seed(1)
    rows, vocab = 300, 9001  # two tiles of the head and more, blocks of 128 rows and a last one
    hidden = torch.randn(rows, 8, generator=g).to(dtype).requires_grad_()
    head = torch.randn(vocab, 8, generator=g).to(dtype).requires_grad_()
    offset = torch.randn(vocab, generator=g).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(0, vocab, (rows,), generator=g)
    ids = torch.randint(-1, 3, (rows,), generator=g)
    inputs = [x for x in (hidden, head, offset) if x is not None]
    got = cwt_ext.linear_chunk_loss(
        hidden, head, labels, ids, offset, num_chunks=3, block_rows=150
    ).loss
    wide = [x.detach().double().requires_grad_() for x in inputs]
    counts = ids >= 0
    want = F.cross_entropy(F.linear(*wide)[counts], labels[counts])
    grads = zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, wide), inputs, strict=True
    )
    rtol = 1e-9 if dtype == torch.float64 else 1e-2
    close(got, want, rtol=rtol)
    for mine, true, given in grads:
        assert mine.dtype == given.dtype
        assert (mine.double() - true).norm() <= rtol * true.norm()


MEMORY_PROGRAM = """
import torch
import cwt_ext

def status(field):
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(field)) / 1024

def gradients(rows, vocab):
    hidden = torch.randn(rows, 8, requires_grad=True)
    head = torch.randn(vocab, 8, requires_grad=True)
    labels = torch.arange(rows) % vocab
    before = status("VmRSS")
    loss = cwt_ext.linear_chunk_loss(hidden, head, labels, labels % 8, num_chunks=8).loss
    grads = torch.autograd.grad(loss, (hidden, head))
    return before + sum(g.nbytes for g in grads) / 2**20

gradients(64, 100)  # libraries and threads
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
known = gradients(2048, 50257)
print(status("VmHWM") - known)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs"
)
def test_it_holds_112_mebibytes_beyond_inputs_and_gradients():
    command = [sys.executable, "-c", MEMORY_PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 64 < float(done.stdout) < 122, done  # all logits would be 393
