"""What users of other fused losses suffer from, one named test each (and how torch traces ours)."""

import signal

import guarded_memory
import pytest
import torch
from chunk_loss_cases import close, make

import cwt_ext
from cwt_ext import reference


def gradient(logits, labels, ids, upstream=None, **options):
    x = logits.detach().clone().requires_grad_()
    loss = cwt_ext.chunk_loss(x, labels, ids, **options).loss
    loss.backward(upstream)
    return x.grad


def test_gradient_accumulation_is_not_a_mean_of_means():  # Liger-Kernel#802, LLaMA-Factory#7443
    logits, labels, ids = make(30, 50, ignored=False)
    labels[:9] = -100  # the first micro-batch has few tokens
    whole = gradient(logits, labels, ids)
    parts = [
        gradient(logits[s], labels[s], ids[s], num_chunks=3, reduction="sum", normalizer=21)
        for s in (slice(0, 10), slice(10, 30))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_normalizer_may_be_a_tensor():
    logits, labels, ids = make(12, 50)
    a = gradient(logits, labels, ids, reduction="sum", normalizer=9)
    for normalizer in (torch.tensor(9), torch.tensor([9.0]), torch.tensor(9.0).double()):
        assert torch.equal(gradient(logits, labels, ids, reduction="sum", normalizer=normalizer), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_not_overwritten_unless_asked(dtype):  # Liger-Kernel#343, unsloth#5002
    logits, labels, ids = make(9, 1100, dtype)
    before = logits.clone()
    z = logits.requires_grad_() * 1
    cwt_ext.chunk_loss(z, labels, ids).loss.backward()
    assert torch.equal(z, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"softcap": 7.0, "mean_grad_norm": True}], ids=str)
def test_inplace_equals_out_of_place_and_autograd_notices(dtype, options):
    logits, labels, ids = make(8, 1500, dtype)
    want = gradient(logits, labels, ids, **options)
    leaf = logits.clone().requires_grad_()
    z = leaf * 1
    version, address = z._version, z.data_ptr()
    loss = cwt_ext.chunk_loss(z, labels, ids, inplace=True, **options).loss
    assert z._version > version
    seen = []
    z.register_hook(lambda g: seen.append(g.data_ptr()))
    loss.backward()
    assert seen == [address]  # no second buffer
    assert torch.equal(leaf.grad, want)

    z = leaf * 1
    other = z.pow(2).sum()  # saves z
    loss = cwt_ext.chunk_loss(z, labels, ids, inplace=True, **options).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_inplace_on_a_view_of_longer_logits():
    leaf = torch.randn(2, 5, 40, requires_grad=True)
    labels, ids = torch.arange(8).view(2, 4), torch.arange(8).view(2, 4) % 2
    cwt_ext.chunk_loss((leaf * 1)[:, :-1], labels, ids, inplace=True).loss.backward()
    want = gradient(leaf[:, :-1], labels, ids)
    assert torch.equal(leaf.grad[:, :-1], want)
    assert (leaf.grad[:, -1] == 0).all()


def test_reused_buffer_holds_the_gradient_of_each_step():
    buffer = torch.full((40, 300), torch.nan)
    for seed in range(3):
        logits, labels, ids = make(40, 300, seed=seed)
        x = logits.requires_grad_()
        loss = cwt_ext.chunk_loss(x, labels, ids, grad_buffer=buffer).loss
        (grad,) = torch.autograd.grad(loss, x)
        assert grad.data_ptr() == buffer.data_ptr()
        assert torch.equal(grad, gradient(logits, labels, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_upstream_gradient_with_reduction_none(dtype):  # Liger-Kernel#968, TransformerEngine#2139
    logits, labels, ids = make(11, 90, dtype)
    upstream = torch.randn(11, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    got = gradient(logits, labels, ids, upstream, reduction="none")
    want = reference.chunk_loss(logits, labels, ids, reduction="none").grad * upstream[:, None]
    # Two roundings: the gradient is formed in the logits' type, then scaled.
    close(got, want, {torch.bfloat16: 2.0**-7, torch.float32: 1e-6}.get(dtype, 1e-12), 1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0, 0.0, 65536.0])
def test_upstream_gradient_of_a_mean(scale):
    logits, labels, ids = make(11, 90)
    got = gradient(logits, labels, ids, torch.tensor(scale))
    close(got, gradient(logits, labels, ids) * scale, 1e-6)


def test_rows_that_do_not_count_keep_gradient_zero_under_an_infinite_upstream():
    logits, labels, ids = make(11, 90)
    got = gradient(logits, labels, ids, torch.tensor(torch.inf))
    silent = (labels == -100) | (ids < 0)
    assert (got[silent] == 0).all()
    assert not got[~silent].isfinite().any()


def test_second_backward_through_a_kept_graph():
    logits, labels, ids = make(6, 50)
    for inplace in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = cwt_ext.chunk_loss(leaf * 1, labels, ids, inplace=inplace).loss * 2
        loss.backward(retain_graph=True)
        first = leaf.grad.clone()
        loss.backward()
        close(leaf.grad, 2 * first, 1e-7)


def test_per_token_weights():  # Liger-Kernel#404
    logits, labels, ids = make(11, 90)
    weight = torch.rand(11)
    got = cwt_ext.chunk_loss(logits, labels, ids, token_weight=weight)
    close(got.loss, reference.chunk_loss(logits, labels, ids, token_weight=weight).loss, 1e-6)


def test_entropy_and_accuracy_without_holding_logits():  # Liger-Kernel#873, trl#4730
    logits, labels, ids = make(50, 20, scale=1.0, ignored=False)
    labels[::2] = logits[::2].argmax(-1)
    stats = cwt_ext.chunk_loss(logits, labels, ids, mean_grad_norm=True).stats
    for c in range(3):
        rows = ids == c
        p = torch.softmax(logits[rows].double(), -1)
        close(stats.accuracy[c], (p.argmax(-1) == labels[rows]).double().mean(), 1e-6)
        close(stats.entropy_sum[c], -(p * p.log()).sum(), 1e-5)
        g = p - torch.nn.functional.one_hot(labels[rows], 20)
        close(stats.over_smoothing[c], g.mean(0).norm() / g.norm(dim=-1).mean(), 1e-5)
        close(stats.nll[c], torch.nn.functional.cross_entropy(logits[rows], labels[rows]), 1e-5)
    close(stats.grad_share.sum(), torch.ones(()), 1e-6)


def test_over_smoothing_needs_the_mean_gradient():
    stats = cwt_ext.chunk_loss(*make(5, 9)).stats
    with pytest.raises(ValueError, match="mean_grad_norm=True"):
        _ = stats.over_smoothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [4.0, 7.0, 12.0])
def test_confident_half_precision_tokens(dtype, gap):  # Liger-Kernel#1329
    logits = torch.zeros(1, 64, dtype=dtype)
    logits[0, 5] = gap
    got = gradient(logits, torch.tensor([5]), torch.tensor([0]))
    q = 1 - torch.softmax(logits.double(), -1)[0, 5]
    close(got[0, 5], -q, 2.0**-8, 2.0**-25)


def compiled_inputs(rows, vocab, seed):
    logits, labels, ids = make(rows, vocab, seed=seed)
    return logits.requires_grad_(), labels, ids, torch.tensor([True, False, True])


def step(x, labels, ids, active):
    out = cwt_ext.chunk_loss(x * 2, labels, ids, active=active, mean_grad_norm=True)
    return out.loss, out.stats.grad_norm_sum


def check_compiled(backend):  # Liger-Kernel#1338
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for seed, (rows, vocab) in enumerate([(9, 50), (14, 50), (23, 77)]):
        with torch.compiler.set_stance("fail_on_recompile" if seed > 1 else "default"):
            x, *rest = compiled_inputs(rows, vocab, seed)
            loss, norms = compiled(x, *rest)
            loss.backward()
        y, *rest = compiled_inputs(rows, vocab, seed)
        want, want_norms = step(y, *rest)
        want.backward()
        assert torch.equal(loss, want)
        assert torch.equal(norms, want_norms)
        close(x.grad, y.grad, 1e-6, 1e-12)


def test_compile_fullgraph_with_ignored_rows_and_changing_shapes():
    check_compiled("aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compile_fullgraph_with_inductor():
    check_compiled("inductor")


def test_compile_ignores_inplace_and_buffers():
    def loss(x, labels, ids):
        z = x * 2
        out = cwt_ext.chunk_loss(z, labels, ids, num_chunks=3, inplace=True).loss
        return out + z.sum() * 0

    logits, labels, ids = make(6, 30)
    torch._dynamo.reset()
    x = logits.requires_grad_()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x, labels, ids).backward()
    close(x.grad, 2 * gradient(2 * logits, labels, ids), 1e-6, 1e-9)


def test_more_than_two_to_the_31_logits():  # trl#7266, pytorch#90793
    rows, vocab = 65_600, 32_768
    logits = torch.empty(rows, vocab, dtype=torch.bfloat16)  # only the last row is ever touched
    logits[-1] = 0
    logits[-1, -1] = 12.0
    ids = torch.full((rows,), -1)
    ids[-1] = 0
    out = cwt_ext.chunk_loss(logits.requires_grad_(), ids * 0 + vocab - 1, ids, num_chunks=1)
    (grad,) = torch.autograd.grad(out.loss, logits)
    want = torch.log1p((vocab - 1) * torch.exp(torch.tensor(-12.0).double()))
    close(out.loss, want, 1e-6)
    close(grad[-1, -1], torch.expm1(-want), 2.0**-8)
    assert (grad[-3:-1] == 0).all()
    assert (grad[:3] == 0).all()


@pytest.mark.parametrize("vocab", [1, 15, 1023, 1025, 50257])  # verl#2899, unsloth#10616
def test_padded_lanes_are_not_counted(vocab):
    x = torch.zeros(2, vocab)
    out = cwt_ext.chunk_loss(x, torch.tensor([0, vocab - 1]), torch.tensor([0, 0]))
    log_v = torch.full((2,), float(vocab)).double().log()
    close(out.rows.nll, log_v, 1e-6)
    close(out.rows.entropy, log_v, 1e-6, 1e-9)
    close(out.rows.grad_norm, torch.full((2,), 1 - 1 / vocab).double().sqrt(), 1e-6)


def test_all_labels_ignored_gives_zero_with_a_graph():  # Liger-Kernel#177, torchtune#2341
    x = torch.randn(4, 9, requires_grad=True)
    loss = cwt_ext.chunk_loss(x, torch.full((4,), -100), torch.zeros(4).long()).loss
    assert loss.requires_grad
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("stats", [True, False])
def test_rows_that_do_not_count_are_not_read(stats):
    logits, labels, ids = make(40, 500, ignored=False)
    labels[3], ids[7] = -100, -1
    active = torch.tensor([True, False, True])
    weight = torch.ones(40)
    weight[11] = 0
    silent = ~active[ids] | (labels == -100) | (ids < 0) | (weight == 0)
    poisoned = logits.clone()
    poisoned[silent] = torch.nan
    options = {"active": active, "token_weight": weight, "stats": stats}
    a = cwt_ext.chunk_loss(logits, labels, ids, **options)
    b = cwt_ext.chunk_loss(poisoned, labels, ids, **options)
    assert torch.equal(a.loss, b.loss)
    assert b.loss.isfinite()
    assert torch.equal(
        gradient(logits, labels, ids, **options), gradient(poisoned, labels, ids, **options)
    )
    if stats:
        assert b.stats.nonfinite.sum() == 0


CLOSED_ROWS = """
import torch
import cwt_ext
from guarded_memory import Pages, resident_pages

ROWS, VOCAB, HUGE = 1024, {vocab}, 2 << 20
row_bytes = VOCAB * torch.{dtype}.itemsize
half = ROWS // 2 * row_bytes
pages = Pages(2 * half)
logits = torch.frombuffer(pages.buffer, dtype=torch.{dtype}).view(ROWS, VOCAB).requires_grad_()
labels, ids = torch.zeros(ROWS).long(), torch.arange(ROWS) // (ROWS // 2)
if {closed}:
    pages.protect(half, 2 * half, closed=True)
active = torch.tensor([True, {active}])
loss = cwt_ext.chunk_loss(logits, labels, ids, active=active, stats={stats}).loss
(grad,) = torch.autograd.grad(loss, logits)
# Huge pages reach over the edge of the half that is written.
inner = (grad.data_ptr() + half + HUGE + 4095) // 4096 * 4096
print("resident:", resident_pages(inner, half - 2 * HUGE))
assert not grad[-1].any() or {active}
"""


@pytest.mark.skipif(bool(guarded_memory.MISSING), reason=guarded_memory.MISSING)
@pytest.mark.parametrize(("dtype", "vocab"), [("float32", 8192), ("bfloat16", 16384)])
@pytest.mark.parametrize("stats", [True, False])
def test_rows_that_do_not_count_cost_nothing(dtype, vocab, stats):
    """Not one byte of their logits is read, not one of their gradient written, back or forth."""
    given = {"dtype": dtype, "vocab": vocab, "stats": stats, "closed": True, "active": False}
    done = guarded_memory.run_apart(CLOSED_ROWS.format(**given), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "resident: 0\n"


@pytest.mark.skipif(bool(guarded_memory.MISSING), reason=guarded_memory.MISSING)
def test_the_proof_that_idle_rows_cost_nothing_can_fail():
    given = {"dtype": "float32", "vocab": 8192, "stats": True, "active": True}
    done = guarded_memory.run_apart(CLOSED_ROWS.format(**given, closed=True), timeout=120)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    done = guarded_memory.run_apart(CLOSED_ROWS.format(**given, closed=False), timeout=120)
    assert done.stdout == f"resident: {12 * 2**20 // guarded_memory.PAGE}\n", done.stderr


def test_shift_labels():
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert cwt_ext.shift_labels(labels).tolist() == [[2, 3, -100], [5, 6, -100]]
    assert cwt_ext.shift_labels(labels[0], -1).tolist() == [2, 3, -1]
    assert labels.tolist() == [[1, 2, 3], [4, 5, 6]]
