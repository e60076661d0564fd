"""chunk_loss on bad input: every row of the contract's table."""

import re

import pytest
import torch
from chunk_loss_cases import close, compare, make

import cwt_ext
from cwt_ext import reference

LABELS = torch.tensor([1, 2, 3, 4])
IDS = torch.tensor([0, 0, 1, 1])


def logits_4x8(**options):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0), **options)


def call(**changes):
    arguments = {"logits": logits_4x8(), "labels": LABELS, "chunk_ids": IDS, **changes}
    return cwt_ext.chunk_loss(
        arguments.pop("logits"), arguments.pop("labels"), arguments.pop("chunk_ids"), **arguments
    )


meta = torch.empty(4, dtype=torch.int64, device="meta")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"logits": torch.randn(8)}, ValueError, r"logits must be \(N, V\).*got \(8,\)"),
        ({"logits": torch.randn(1, 1, 4, 8)}, ValueError, r"logits must be.*got \(1, 1, 4, 8\)"),
        ({"logits": torch.randn(4, 0)}, ValueError, r"V >= 1, got \(4, 0\)"),
        ({"logits": torch.ones(4, 8).int()}, TypeError, r"logits must be float16.*torch.int32"),
        ({"logits": [[1.0]]}, TypeError, r"logits must be a tensor, got list"),
        ({"labels": LABELS.int()}, TypeError, r"labels must be int64, got torch.int32"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have one entry per row.*\(4,\).*\(3,\)"),
        ({"labels": LABELS.view(2, 2)}, ValueError, r"labels must have.*got \(2, 2\)"),
        ({"chunk_ids": IDS.float()}, TypeError, r"chunk_ids must be int32 or int64.*float32"),
        ({"chunk_ids": IDS[:3]}, ValueError, r"chunk_ids must have one entry.*\(3,\)"),
        ({"labels": meta}, ValueError, r"labels must be on the device of logits \(cpu\), got meta"),
        (
            {"token_weight": torch.ones(3)},
            ValueError,
            r"token_weight must have one entry per row.*\(3,\)",
        ),
        (
            {"token_weight": torch.ones(4).long()},
            TypeError,
            r"token_weight must be bool or float.*int64",
        ),
        (
            {"token_weight": torch.ones(4, requires_grad=True)},
            ValueError,
            r"token_weight is a constant",
        ),
        ({"active": torch.ones(2, 1)}, ValueError, r"active must be \(C,\).*got \(2, 1\)"),
        ({"active": torch.ones(2), "num_chunks": 3}, ValueError, r"active must be \(3,\)"),
        ({"active": torch.ones(2).int()}, TypeError, r"must be bool or float.*int32"),
        ({"num_chunks": -1}, ValueError, r"num_chunks must be at least 0, got -1"),
        ({"reduction": "mean"}, ValueError, r"reduction must be one of sum.*got 'mean'"),
        ({"stats": "some"}, ValueError, r"stats must be True, False or \"all\", got 'some'"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must be in \[0, 1\), got -0.1"),
        ({"z_loss": -1.0}, ValueError, r"z_loss must be at least 0 and finite, got -1.0"),
        ({"z_loss": float("nan")}, ValueError, r"z_loss must be at least 0 and finite, got nan"),
        ({"softcap": 0.0}, ValueError, r"softcap must be above 0 and finite.*got 0.0"),
        ({"normalizer": 0}, ValueError, r"normalizer must be above 0 and finite, got 0"),
        ({"normalizer": torch.ones(2)}, ValueError, r"normalizer must be one number.*\(2,\)"),
        ({"stats": False, "mean_grad_norm": True}, ValueError, r"mean_grad_norm=True.*needs stats"),
    ],
    ids=str,
)
def test_wrong_argument_names_what_was_wanted_and_given(changes, error, match):
    with pytest.raises(error, match=match):
        call(**changes)


@pytest.mark.parametrize("bad", [8, -1, 10**12, -(2**63)])
def test_bad_label_raises_and_writes_nothing(bad):
    labels = torch.tensor([1, -100, bad, bad])
    hidden = logits_4x8(requires_grad=True)
    z = hidden * 1
    before = z.detach().clone()
    with pytest.raises(IndexError, match=rf"labels\[2\] is {re.escape(str(bad))}.*\[0, 8\)"):
        cwt_ext.chunk_loss(z, labels, IDS, inplace=True)
    assert torch.equal(z, before)


@pytest.mark.parametrize("bad", [2, -2, 10**12])
def test_bad_chunk_id_raises(bad):
    ids = torch.tensor([0, 1, bad, 0])
    with pytest.raises(IndexError, match=rf"chunk_ids\[2\] is {bad}, outside \[-1, 2\)"):
        call(chunk_ids=ids, num_chunks=2)


@pytest.mark.parametrize("reduction", ["none", "token_mean"])
def test_bad_rows_without_validation_are_nan_and_counted(reduction):
    labels = torch.tensor([1, 8, 3, -5])
    ids = torch.tensor([0, 1, 7, 0])
    x = logits_4x8(requires_grad=True)
    out = cwt_ext.chunk_loss(
        x, labels, ids, num_chunks=3, reduction=reduction, validate=False, mean_grad_norm=True
    )
    assert out.stats.bad_labels == 2
    assert out.stats.bad_chunk_ids == 1
    if reduction == "none":
        assert out.loss.isnan().tolist() == [False, True, True, True]
        close(out.loss[0], out.rows.nll[0], 1e-6)
    else:
        assert out.loss.isnan()
    assert out.stats.nll_sum.isnan().tolist() == [True, True, False]
    out.loss.sum().backward()
    assert (x.grad[1:] == 0).all()
    want = torch.softmax(x.detach()[0], -1)
    want[1] -= 1
    close(x.grad[0], want, 1e-5, 1e-7)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("column", [0, 3, 36])  # 3 is the label
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"label_smoothing": 0.1}], ids=str)
def test_poisoned_row_stays_alone(poison, dtype, column, options):
    logits, _, _ = make(6, 37, dtype)
    labels, ids = torch.full((6,), 3), torch.tensor([0, 0, 1, 1, 2, 2])
    logits[2, column] = poison
    x = logits.clone().requires_grad_()
    out = cwt_ext.chunk_loss(x, labels, ids, reduction="none", mean_grad_norm=True, **options)
    assert out.loss.isnan().tolist() == [False, False, True, False, False, False]
    assert out.stats.nonfinite.tolist() == [0, 1, 0]
    out.loss.sum().backward()
    assert x.grad[2].isnan().all()
    keep = torch.tensor([0, 1, 3, 4, 5])
    want = reference.chunk_loss(logits[keep], labels[keep], ids[keep], reduction="none", **options)
    close(x.grad[keep], want.grad, 2.0**-8 if dtype != torch.float64 else 1e-12, 1e-5)
    for name in ("nll_sum", "grad_norm_sum", "entropy_sum", "mean_grad_norm"):
        got = getattr(out.stats, name)
        assert got.isnan().tolist() == [False, True, False]
        close(got[[0, 2]], want.chunks[name][[0, 2]], 1e-5)
    assert out.stats.tokens.tolist() == [2, 2, 2]


def test_row_of_minus_infinity_only_is_nan_and_counted():
    logits = logits_4x8()
    logits[1] = -torch.inf
    out = call(logits=logits, reduction="none")
    assert out.loss.isnan().tolist() == [False, True, False, False]
    assert out.stats.nonfinite.tolist() == [1, 0]


@pytest.mark.parametrize("reduction", ["token_mean", "chunk_mean", "sum"])
@pytest.mark.parametrize(
    ("rows", "chunks", "label"), [(0, 3, 0), (4, 3, -100), (4, 0, 1)], ids=["N=0", "ignored", "C=0"]
)
def test_nothing_counts(reduction, rows, chunks, label):
    x = torch.full((rows, 8), torch.nan, requires_grad=True)  # NaN: nothing may be read
    labels = torch.full((rows,), label)
    ids = torch.zeros(rows, dtype=torch.int64) if chunks else torch.full((rows,), -1)
    out = cwt_ext.chunk_loss(x, labels, ids, num_chunks=chunks, reduction=reduction)
    assert out.loss == 0
    out.loss.backward()
    assert (x.grad == 0).all()
    assert x.grad.shape == x.shape
    for field in out.stats[:6]:
        assert field.shape == (chunks,)
        assert (field == 0).all()


def test_nothing_counts_and_nobody_says_how_many_chunks():
    empty = torch.zeros(0, dtype=torch.int64)
    assert cwt_ext.chunk_loss(torch.zeros(0, 5), empty, empty).loss == 0
    assert call(chunk_ids=torch.full((4,), -1)).stats.tokens.shape == (0,)


@pytest.mark.parametrize("reduction", ["token_mean", "none"])
def test_double_backward_is_a_clear_error(reduction):
    x = logits_4x8(requires_grad=True)
    loss = cwt_ext.chunk_loss(x, LABELS, IDS, reduction=reduction).loss.sum() ** 2
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_inplace_refuses_leaves_and_two_buffers():
    x = logits_4x8(requires_grad=True)
    with pytest.raises(ValueError, match="inplace=True would overwrite a leaf"):
        cwt_ext.chunk_loss(x, LABELS, IDS, inplace=True)
    with pytest.raises(ValueError, match="inplace=True or a grad_buffer, not both"):
        cwt_ext.chunk_loss(x * 1, LABELS, IDS, inplace=True, grad_buffer=torch.empty(4, 8))
    with pytest.raises(ValueError, match=r"grad_buffer must be a torch.float32 tensor \(4, 8\)"):
        cwt_ext.chunk_loss(x, LABELS, IDS, grad_buffer=torch.empty(4, 7))
    with pytest.raises(ValueError, match="unit stride along the vocabulary"):
        cwt_ext.chunk_loss(x, LABELS, IDS, grad_buffer=torch.empty(8, 4).T)
    with pytest.raises(ValueError, match="rows of the gradient buffer must not overlap"):
        cwt_ext.chunk_loss(x, LABELS, IDS, grad_buffer=torch.empty(1, 8).expand(4, 8))


def test_weights_that_cancel_are_not_silent():
    out = call(token_weight=torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert not out.loss.isfinite()


def test_integers_of_both_widths_and_half_weights():
    logits, labels, ids = make(9, 20)
    weight = torch.rand(9).half()
    for ids_of_type in (ids, ids.int()):
        out = cwt_ext.chunk_loss(logits, labels, ids_of_type, num_chunks=3, token_weight=weight)
        compare(out, None, logits, labels, ids, num_chunks=3, token_weight=weight)


def test_a_buffer_that_overlaps_the_logits_in_part_is_refused():
    storage = torch.randn(200)
    logits = storage[:32].view(4, 8).requires_grad_()
    for begin in (8, 24, 31):
        buffer = storage.detach()[begin : begin + 32].view(4, 8)
        with pytest.raises(
            ValueError, match=rf"overlaps the logits in part .*{4 * begin} bytes af"
        ):
            cwt_ext.chunk_loss(logits, LABELS, IDS, grad_buffer=buffer)
    later = storage[8:40].view(4, 8).requires_grad_()
    with pytest.raises(ValueError, match=r"overlaps the logits in part .*-32 bytes after"):
        cwt_ext.chunk_loss(later, LABELS, IDS, grad_buffer=storage.detach()[:32].view(4, 8))
    wide = storage[:80].view(4, 20)  # rows interleaved, sharing columns
    with pytest.raises(ValueError, match="overlaps the logits in part"):
        cwt_ext.chunk_loss(
            wide[:, :8].requires_grad_(), LABELS, IDS, grad_buffer=wide.detach()[:, 7:15]
        )
    transposed = storage[:32].view(8, 4).T.requires_grad_()  # the whole, in another order
    with pytest.raises(ValueError, match="overlaps the logits in part"):
        cwt_ext.chunk_loss(transposed, LABELS, IDS, grad_buffer=storage.detach()[:32].view(4, 8))


def test_a_buffer_beside_the_logits_in_one_memory_is_fine():
    wide = torch.randn(4, 20)
    logits, buffer = wide[:, :8].requires_grad_(), wide.detach()[:, 8:16]
    (want,) = torch.autograd.grad(call(logits=logits).loss, logits)
    (got,) = torch.autograd.grad(call(logits=logits, grad_buffer=buffer).loss, logits)
    assert torch.equal(got, want)
    assert torch.equal(buffer, want)


def test_a_buffer_that_is_the_logits_is_inplace():
    leaf = logits_4x8(requires_grad=True)
    with pytest.raises(ValueError, match=r"grad_buffer is the memory of the logits, a leaf"):
        call(logits=leaf, grad_buffer=leaf.detach())
    (want,) = torch.autograd.grad(call(logits=leaf).loss, leaf)
    z = leaf * 1
    version = z._version
    loss = call(logits=z, grad_buffer=z.data).loss
    assert z._version > version  # autograd notices, as with inplace=True
    assert torch.equal(z.detach(), want)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], want)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
def test_forward_mode_is_refused():
    """torch.func.jvp gave 0 for 9.53."""
    x, v = logits_4x8(), torch.ones(4, 8)
    with pytest.raises(RuntimeError, match=r"chunk_loss: forward-mode.*not supported.*reference"):
        torch.func.jvp(lambda z: call(logits=z).loss, (x,), (v,))
    with torch.autograd.forward_ad.dual_level():
        for leaf in (x, x.clone().requires_grad_()):
            dual = torch.autograd.forward_ad.make_dual(leaf, v)
            with pytest.raises(RuntimeError, match="chunk_loss: forward-mode"):
                call(logits=dual)
        assert call(logits=x).loss.isfinite()  # another tensor's tangent is no concern


@pytest.mark.parametrize("options", [{}, {"inplace": True}], ids=str)
@pytest.mark.parametrize("transform", ["grad", "jacrev"])
def test_gradients_of_torch_func_say_what_to_do(transform, options):
    function = getattr(torch.func, transform)(lambda z: call(logits=z * 1, **options).loss)
    with pytest.raises(RuntimeError, match=r"chunk_loss: .*not supported.*torch.autograd.grad"):
        function(logits_4x8())
