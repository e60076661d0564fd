"""chunk_loss on a GPU: values, gradients, the compiler, CUDA graphs, no host synchronisation.

    pytest -m gpu tests/test_cuda_gpu.py
    compute-sanitizer --tool memcheck   python -m pytest -m gpu tests/test_cuda_gpu.py -k oracle
    compute-sanitizer --tool racecheck  python -m pytest -m gpu tests/test_cuda_gpu.py -k oracle
    compute-sanitizer --tool synccheck  python -m pytest -m gpu tests/test_cuda_gpu.py -k oracle

Skips without a GPU; CWT_REQUIRE_CUDA=1 makes that a failure.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from chunk_loss_cases import close, compare, make

import cwt_ext
from cwt_ext import _ops, reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [  # rows, vocabulary
    (1, 1),
    (5, 7),  # below one pack
    (13, 1031),  # packs and a prime tail
    (1500, 8191),  # more rows than blocks, of 64 threads
    (7, 50257),  # rows that start off a 16-byte boundary
    (900, 32000),  # more rows than blocks, of 256 threads
    (500, 33001),  # more rows than clusters
    (5, 128256),  # longer than shared memory
    (200, 151936),  # five blocks a cluster
    (3, 262144),  # eight; 16 in float32
    (2, 524288),  # 16; in float32 no cluster, then mostly re-read from the L2 cache
]
CHANGED = [
    {"label_smoothing": 0.1},
    {"z_loss": 1e-3},
    {"softcap": 5.0},
    {"label_smoothing": 0.2, "z_loss": 1e-2, "softcap": 8.0},
]


@pytest.fixture(autouse=True)
def _needs_gpu():
    reason = ""
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is no CUDA build"
    elif not torch.cuda.is_available():
        reason = "there is no CUDA device"
    elif "cuda" not in _ops.backends():
        reason = "cwt_ext was built without CUDA"
    if reason and os.environ.get("CWT_REQUIRE_CUDA") == "1":
        pytest.fail(f"CWT_REQUIRE_CUDA=1, but {reason}")
    if reason:
        pytest.skip(reason)


def run(logits, labels, ids, **options):
    x = logits.detach().clone().cuda().requires_grad_()
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    out = cwt_ext.chunk_loss(x, labels.cuda(), ids.cuda(), **moved)
    out.loss.sum().backward()
    return out, x.grad


def on_cpu(out, grad):
    """Returns the results as chunk_loss_cases.compare wants them."""
    stats = out.stats and type(out.stats)(*(None if s is None else s.cpu() for s in out.stats))
    rows = out.rows and type(out.rows)(*(r.cpu() for r in out.rows))
    return type(out)(out.loss.cpu(), stats, rows), grad.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_plain_loss_equals_oracle(dtype, rows, vocab):
    inputs = make(rows, vocab, dtype, ignored=rows > 1)
    out = on_cpu(*run(*inputs, num_chunks=3, mean_grad_norm=True))
    compare(*out, *inputs, rtol=3e-6, num_chunks=3, mean_grad_norm=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, *CHANGED], ids=str)
def test_options_equal_oracle(dtype, reduction, options):
    inputs = make(40, 1301, dtype)
    options = {
        **options,
        "reduction": reduction,
        "active": torch.tensor([0.5, 0.0, 2.0]),
        "token_weight": torch.rand(40, generator=torch.Generator().manual_seed(1)),
        "stats": "all",
        "mean_grad_norm": True,
    }
    out = on_cpu(*run(*inputs, **options))
    compare(*out, *inputs, rtol=5e-6, **options)


def test_backward_with_any_grad_output_equals_oracle():
    logits, labels, ids = make(30, 999, torch.float32)
    x = logits.cuda().requires_grad_()
    loss = cwt_ext.chunk_loss(x, labels.cuda(), ids.cuda(), reduction="none", num_chunks=3).loss
    factor = torch.randn(30)
    loss.backward(factor.cuda())
    want = reference.chunk_loss(logits, labels, ids, reduction="none", num_chunks=3).grad
    close(x.grad.cpu(), want * factor[:, None].double(), 3e-6, 1e-12)


@pytest.mark.parametrize("vocab", [4001, 50257])
def test_a_view_without_the_last_tokens_equals_oracle(vocab):
    """The usual shift, (B, T, V)[:, :-1]: the rows are evenly spaced within a sequence only."""
    logits, labels, ids = make(3 * 9, vocab, torch.bfloat16)
    x = logits.view(3, 9, vocab).cuda().requires_grad_()
    labels, ids = (t.view(3, 9)[:, :-1].reshape(-1) for t in (labels, ids))
    out = cwt_ext.chunk_loss(x[:, :-1], labels.cuda(), ids.cuda(), num_chunks=3)
    (grad,) = torch.autograd.grad(out.loss, x)
    assert not grad[:, -1].any()
    used = logits.view(3, 9, vocab)[:, :-1].reshape(-1, vocab)
    compare(*on_cpu(out, grad[:, :-1]), used, labels, ids, rtol=3e-6, num_chunks=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(64, 5003), (300, 50257)])
def test_in_place_equals_out_of_place(dtype, rows, vocab):
    logits, labels, ids = make(rows, vocab, dtype)
    results = []
    for inplace in (False, True):
        leaf = logits.cuda().requires_grad_()
        out = cwt_ext.chunk_loss(
            leaf * 1, labels.cuda(), ids.cuda(), num_chunks=3, mean_grad_norm=True, inplace=inplace
        )
        out.loss.backward()
        results.append((out.loss, out.stats.mean_grad_norm, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


LINEAR_LOSS_RTOL = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def distance(got, want):
    """Returns ||got - want|| / ||want||."""
    return float((got.detach().cpu().double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", LINEAR_LOSS_RTOL)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=str)
def test_linear_chunk_loss_is_as_near_the_oracle_as_eager_torch(dtype, bias, options):
    g = torch.Generator().manual_seed(0)
    rows, width, vocab = 300, 64, 5003
    inputs = [torch.randn(rows, width, generator=g), torch.randn(vocab, width, generator=g) / 8]
    inputs += [torch.randn(vocab, generator=g)] if bias else []
    inputs = [x.to(dtype) for x in inputs]
    _, labels, ids = make(rows, vocab)
    exact = [x.double().requires_grad_() for x in inputs]
    reference_loss = reference.chunk_loss(F.linear(*exact), labels, ids, num_chunks=3, **options)
    want = torch.autograd.grad(reference_loss.loss, exact)

    leaves = [x.cuda().requires_grad_() for x in inputs]
    out = cwt_ext.linear_chunk_loss(
        *leaves[:2], labels.cuda(), ids.cuda(), *leaves[2:], num_chunks=3, **options
    )
    close(out.loss.cpu(), reference_loss.loss, LINEAR_LOSS_RTOL[dtype])
    counts = (labels != -100) & (ids >= 0)
    logits = F.linear(*leaves).float()[counts.cuda()]
    eager = F.cross_entropy(
        logits, labels[counts].cuda(), label_smoothing=options.get("label_smoothing", 0.0)
    )
    eager = eager + options.get("z_loss", 0.0) * logits.logsumexp(-1).square().mean()
    ours, theirs = (torch.autograd.grad(loss, leaves) for loss in (out.loss, eager))
    for a, b, c in zip(ours, theirs, want, strict=True):
        assert a.dtype == dtype
        assert distance(a, c) <= 2 * distance(b, c) + 1e-6


def test_runs_are_bitwise_equal():
    logits, labels, ids = make(2000, 4001, torch.bfloat16, chunks=7)
    first, grad = run(logits, labels, ids, num_chunks=7, mean_grad_norm=True)
    for _ in range(5):
        again, grad_again = run(logits, labels, ids, num_chunks=7, mean_grad_norm=True)
        assert torch.equal(first.loss, again.loss)
        assert torch.equal(grad, grad_again)
        for a, b in zip(first.stats, again.stats, strict=True):
            assert torch.equal(a, b)


def test_bad_rows_are_flagged_without_validate_and_raise_with_it():
    logits, labels, ids = make(12, 50, ignored=False)
    labels[3], ids[5] = 50, 9
    out = cwt_ext.chunk_loss(logits.cuda(), labels.cuda(), ids.cuda(), num_chunks=3)
    assert out.loss.isnan()
    assert out.stats.bad_labels == 1
    assert out.stats.bad_chunk_ids == 1
    assert out.rows.nll.isnan().nonzero().flatten().tolist() == [3, 5]
    with pytest.raises(IndexError, match=r"labels\[3\] is 50, which is neither in \[0, 50\)"):
        cwt_ext.chunk_loss(logits.cuda(), labels.cuda(), ids.cuda(), num_chunks=3, validate=True)


def test_no_host_synchronisation():
    logits, labels, ids = (x.cuda() for x in make(100, 4096, torch.bfloat16))
    x = logits.requires_grad_()
    cwt_ext.chunk_loss(x, labels, ids, num_chunks=3).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        cwt_ext.chunk_loss(x, labels, ids, num_chunks=3, mean_grad_norm=True).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_replays_with_new_data():
    first, second = (tuple(x.cuda() for x in make(64, 3001, seed=seed)) for seed in (0, 1))
    buffers = [x.clone() for x in first]

    def step():
        x = buffers[0].detach().requires_grad_()
        out = cwt_ext.chunk_loss(x, *buffers[1:], num_chunks=3)
        (grad,) = torch.autograd.grad(out.loss, x)
        return out.loss, grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for buffer, value in zip(buffers, second, strict=True):
        buffer.copy_(value)
    graph.replay()
    want = step()
    assert torch.equal(captured[0], want[0])
    assert torch.equal(captured[1], want[1])


def test_current_stream_is_used():
    """Inputs that are written late on a side stream: another stream would read them too early."""
    logits, labels, ids = (x.cuda() for x in make(64, 3001))
    target = torch.full_like(logits, torch.nan)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        target.copy_(logits)
        late = cwt_ext.chunk_loss(target, labels, ids, num_chunks=3).loss
    torch.cuda.synchronize()
    assert torch.equal(late, cwt_ext.chunk_loss(logits, labels, ids, num_chunks=3).loss)


def test_rows_that_do_not_count_are_not_read():
    """They hold NaN, which any read would spread; tests/test_cuda_simt.py proves it to the byte."""
    logits, labels, ids = make(40, 2000, torch.bfloat16, ignored=False)
    active = torch.tensor([True, False, False])
    want, grad = run(logits, labels, ids, active=active)
    logits[ids != 0] = torch.nan
    got, grad_got = run(logits, labels, ids, active=active)
    assert torch.equal(want.loss, got.loss)
    assert torch.equal(grad, grad_got)


def test_more_than_2_to_the_31_logits():
    free, _ = torch.cuda.mem_get_info()
    if free < 14 << 30:
        pytest.skip(f"needs 14 GiB of GPU memory, {free >> 30} are free")
    rows, vocab = 16800, 128256
    x = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    labels = torch.full((rows,), vocab - 1, device="cuda")
    ids = torch.zeros(rows, dtype=torch.int64, device="cuda")
    out = cwt_ext.chunk_loss(x, labels, ids, num_chunks=1, reduction="sum")
    out.loss.backward()
    close(out.loss.cpu(), rows * torch.tensor(float(vocab)).double().log(), 1e-5)
    close(x.grad[-1, -1].cpu(), torch.tensor(1 / vocab - 1), 2.0**-8)
    close(x.grad[-1, 0].cpu(), torch.tensor(1 / vocab), 2.0**-8)


@pytest.mark.parametrize("options", [{}, *CHANGED], ids=str)
def test_gradcheck(options):
    logits, labels, ids = (x.cuda() for x in make(4, 5, torch.float64, seed=4))

    def loss(x):
        return cwt_ext.chunk_loss(x, labels, ids, num_chunks=3, **options).loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_(), nondet_tol=0.0)


def test_opcheck():
    logits, labels, ids = (x.cuda() for x in make(5, 33))
    options = (3, 1, -100, 0.0, 0.0, 0.0, 1, True, True, False)
    args = (logits.requires_grad_(), labels, ids, None, None, None, *options)
    torch.library.opcheck(torch.ops.cwt.chunk_loss.default, args)
    plan = (labels, ids, None, None, None, 3, 33, 1, -100, 1)
    torch.library.opcheck(torch.ops.cwt.chunk_loss_plan.default, plan)
    weight, scale = torch.rand(5, device="cuda"), torch.rand((), device="cuda")
    backward = torch.ops.cwt.chunk_loss_backward.default
    torch.library.opcheck(backward, (logits.detach(), weight, scale))


@pytest.mark.parametrize("reduction", [0, 1, 2, 3])
def test_plan_is_that_of_the_cpu(reduction):
    """The same states; the same weights but for the order in which the denominator is added up."""
    _, labels, ids = make(500, 33)
    labels[7], ids[9] = 33, -2
    weights = torch.rand(500) * (torch.arange(500) % 3 > 0)
    active = torch.tensor([0.5, 0.0, 2.0])
    options = (3, 33, reduction, -100, 2)
    plan = torch.ops.cwt.chunk_loss_plan
    want_weight, want_state = plan(labels, ids, active, weights, None, *options)
    on_gpu = (x.cuda() for x in (labels, ids, active, weights))
    row_weight, state = plan(*on_gpu, None, *options)
    assert torch.equal(state.cpu(), want_state)
    torch.testing.assert_close(row_weight.cpu(), want_weight, rtol=1e-14, atol=0.0, equal_nan=True)


def test_compiles_without_a_graph_break():
    logits, labels, ids = (x.cuda() for x in make(16, 515, torch.bfloat16))

    def loss(x):
        return cwt_ext.chunk_loss(x * 2, labels, ids, num_chunks=3).loss

    eager, compiled = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True)(compiled).backward()
    assert torch.equal(eager.grad, compiled.grad)
