"""cwt::chunk_loss_plan: which rows are read, and with what weight they count; reads no logit."""

import pytest
import torch
from chunk_loss_cases import close, make

import cwt_ext
from cwt_ext import _ops, reference

SKIPPED, STATS_ONLY, COUNTS, BAD_LABEL, BAD_CHUNK = range(5)
ACTIVE = [
    None,
    torch.tensor([True, False, True]),
    torch.tensor([0.5, 0.0, 2.0]),
]


def plan(labels, ids, active=None, token_weight=None, normalizer=None, reduction="sum", stats=True):
    return _ops.chunk_loss_plan(
        labels,
        ids,
        active,
        token_weight,
        None if normalizer is None else torch.tensor(normalizer),
        3,
        50,
        _ops.REDUCTIONS[reduction],
        -100,
        _ops.STATS_MODES[stats],
    )


@pytest.mark.parametrize("reduction", list(_ops.REDUCTIONS))
@pytest.mark.parametrize("active", ACTIVE, ids=["all", "bool", "float"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalizer", [None, 7.5])
def test_weights_equal_the_oracle_and_those_of_chunk_loss(reduction, active, weighted, normalizer):
    logits, labels, ids = make(23, 50, torch.float64)
    token_weight = torch.rand(23) * (torch.arange(23) % 5 > 0) if weighted else None
    row_weight, state = plan(labels, ids, active, token_weight, normalizer, reduction)
    counts = state == COUNTS
    a = torch.ones(3) if active is None else active
    w = torch.ones(23) if token_weight is None else token_weight
    assert torch.equal(counts, (labels != -100) & (ids >= 0) & (w != 0) & (a[ids] != 0))
    want = reference.row_weights(counts, ids, a.double(), w.double(), reduction, normalizer)
    close(row_weight, want, 1e-15)
    # The loss of one row is its weight times its nll: the same weights, to the last bit.
    loss = cwt_ext.chunk_loss(
        logits,
        labels,
        ids,
        active=active,
        token_weight=token_weight,
        normalizer=normalizer,
        reduction=reduction,
    )
    own = loss.loss if reduction == "none" else (row_weight * loss.rows.nll).sum()
    close(own, row_weight * loss.rows.nll if reduction == "none" else loss.loss, 1e-14)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_states_of_all_kinds_of_rows(ids_dtype):
    labels = torch.tensor([1, -100, 2, 3, 4, 50, -1, 5])
    ids = torch.tensor([0, 0, -1, 1, 2, 0, -1, 3], dtype=ids_dtype)
    weights = torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 1])
    active = torch.tensor([True, False, True])
    kinds = [COUNTS, SKIPPED, SKIPPED, SKIPPED, SKIPPED, BAD_LABEL, BAD_LABEL, BAD_CHUNK]
    row_weight, state = plan(labels, ids, active, weights)
    assert state.tolist() == kinds
    assert row_weight.isnan().tolist() == [kind >= _ops.FIRST_BAD_STATE for kind in kinds]
    assert row_weight[:5].tolist() == [1, 0, 0, 0, 0]
    kinds[3] = kinds[4] = STATS_ONLY
    row_weight, state = plan(labels, ids, active, weights, stats="all")
    assert state.tolist() == kinds
    assert row_weight[:5].tolist() == [1, 0, 0, 0, 0]


def test_weights_that_cancel_are_not_silent():
    labels, ids = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1])
    row_weight, _ = plan(labels, ids, None, torch.tensor([1.0, -1.0, 0.0]), None, "token_mean")
    assert not row_weight[:2].isfinite().any()


def test_no_rows_and_no_chunks():
    empty = torch.zeros(0, dtype=torch.int64)
    row_weight, state = plan(empty, empty, reduction="chunk_mean")
    assert (row_weight.shape, row_weight.dtype) == ((0,), torch.float64)
    assert (state.shape, state.dtype) == ((0,), torch.int8)


def test_opcheck():
    _, labels, ids = make(9, 50)
    op = torch.ops.cwt.chunk_loss_plan.default
    torch.library.opcheck(op, (labels, ids, None, None, None, 3, 50, 1, -100, 1))
    weights = (torch.rand(3), torch.rand(9), torch.tensor(4.0))
    torch.library.opcheck(op, (labels, ids.int(), *weights, 3, 50, 2, -100, 2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: torch.zeros(2, 2).long()}, r"labels must be \(N,\), got \(2, 2\)"),
        ({0: torch.zeros(4).int()}, "labels must be int64"),
        ({1: torch.zeros(3).long()}, r"chunk_ids must be \(N,\) = \(4,\), got \(3,\)"),
        ({1: torch.zeros(4)}, "chunk_ids must be int32 or int64"),
        ({2: torch.ones(2)}, r"active must be \(C,\) = \(3,\), got \(2,\)"),
        ({3: torch.ones(4).half()}, "token_weight must be float32 or float64"),
        ({4: torch.ones(2)}, "normalizer must be one float32 or float64 number"),
        ({6: 0}, "vocab must be at least 1, got 0"),
        ({7: 4}, "unknown reduction 4"),
        ({9: 3}, "unknown stats mode 3"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(change, match):
    labels = torch.zeros(4, dtype=torch.int64)
    args = [labels, labels, None, None, None, 3, 50, 1, -100, 1]
    for place, value in change.items():
        args[place] = value
    with pytest.raises(ValueError, match=match):
        _ops.chunk_loss_plan(*args)
