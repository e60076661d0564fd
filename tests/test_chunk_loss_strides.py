"""The gradient of logits[:, :-1] has their strides: rows begin alike within 16 bytes."""

import pytest
import torch
from chunk_loss_cases import make
from test_chunk_loss import operator_args

import cwt_ext

V = 257  # odd, as 50257 is


def shifted(dtype=torch.float32):
    """Returns logits (3, 8, V), cut from (3, 9, V), and their labels and ids."""
    logits, labels, ids = make(27, V, dtype)
    labels, ids = (t.view(3, 9)[:, :-1].reshape(-1) for t in (labels, ids))
    return logits.view(3, 9, V)[:, :-1], labels, ids


def gradient(x, labels, ids, factor=1.0, **options):
    """Returns the gradient that autograd gets for x, and that of a second backward pass."""
    x = x.detach().requires_grad_()
    loss = factor * cwt_ext.chunk_loss(x, labels, ids, num_chunks=3, **options).loss
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    return first, torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("options", [{}, {"softcap": 9.0}, {"mean_grad_norm": True}], ids=str)
def test_it_has_the_strides_and_the_bits(dtype, factor, options):
    x, labels, ids = shifted(dtype)
    for found, expected in zip(
        gradient(x, labels, ids, factor, **options),
        gradient(x.contiguous(), labels, ids, factor, **options),
        strict=True,
    ):
        assert found.stride() == x.stride() == (9 * V, V, 1)
        assert torch.equal(found, expected)


def test_other_views_have_a_contiguous_gradient():
    """Where too much memory would lie idle, or rows do not follow each other."""
    logits, labels, ids = make(12, V)
    for x in (
        logits.view(3, 4, V).transpose(0, 1),
        make(36, V)[0].view(3, 12, V)[:, :4],
        make(12, V + 1)[0].view(3, 4, V + 1)[..., :-1],
    ):
        assert gradient(x, labels, ids)[0].is_contiguous()


def test_memory_that_the_gradient_leaves_out_is_no_part_of_a_leafs_gradient():
    leaf = make(27, V)[0].view(3, 9, V).requires_grad_()
    _, labels, ids = shifted()
    cwt_ext.chunk_loss(leaf[:, :-1], labels, ids, num_chunks=3).loss.backward()
    assert torch.equal(leaf.grad[:, :-1], gradient(leaf[:, :-1], labels, ids)[0])
    assert leaf.grad[:, -1].abs().max() == 0


def test_the_compiler_is_told():
    x, labels, ids = shifted()
    op = torch.ops.cwt.chunk_loss.default
    torch.library.opcheck(op, operator_args(x.detach().requires_grad_(), labels, ids, 1))
    backward = torch.ops.cwt.chunk_loss_backward.default
    torch.library.opcheck(backward, (x.detach(), torch.rand(24), torch.rand(())))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    _, labels, ids = shifted()
    leaf = make(27, V)[0].view(3, 9, V).requires_grad_()

    def loss(y):
        return 2.5 * cwt_ext.chunk_loss((y * 1.5)[:, :-1], labels, ids, num_chunks=3).loss

    (eager,) = torch.autograd.grad(loss(leaf), leaf)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(leaf), leaf)[0], eager)
