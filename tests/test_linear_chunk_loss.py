"""linear_chunk_loss against the float64 oracle and against chunk_loss of the whole logits."""

import pytest
import torch
from chunk_loss_cases import SUMS, close

import cwt_ext
from cwt_ext import reference

N, D, V = 37, 16, 211


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


@pytest.mark.parametrize("what", ["head", "hidden"])
def test_frozen_parts_cost_nothing(what, monkeypatch):  # Liger-Kernel#1441
    hidden, head, labels, ids, _ = problem(torch.float32)
    calls = []
    addmm = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor, "addmm_", lambda self, *a: (calls.append(1), addmm(self, *a))[1]
    )
    frozen = {"head": head, "hidden": hidden}[what]
    frozen.requires_grad_(False)
    out = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, num_chunks=3)
    out.loss.backward()
    assert frozen.grad is None
    assert bool(calls) == (what == "hidden")
    assert (out.hidden is None) == (what == "hidden")


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
    out = cwt_ext.linear_chunk_loss(hidden, head, labels, ids, num_chunks=3, block_rows=5)
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
