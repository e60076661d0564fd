"""A small call costs what it runs: its operators, and its statistics as views."""

import pytest
import torch
from chunk_loss_cases import close, make
from torch.utils._python_dispatch import TorchDispatchMode

import cwt_ext
from cwt_ext import _ops


class Operators(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("stats", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"num_chunks": 3}, {"active": torch.tensor([True, True, False])}], ids=str
)
def test_chunk_loss_runs_one_operator_and_one_for_its_statistics(stats, options):
    logits, labels, ids = make(6, 33)
    with Operators() as forward:
        out = cwt_ext.chunk_loss(logits.requires_grad_(), labels, ids, stats=stats, **options)
    statistics = ["cwt::chunk_loss_stats"] if stats else []
    assert forward.names == ["cwt::chunk_loss_no_autograd", *statistics]
    with Operators() as backward:
        out.loss.backward()
    assert not [name for name in backward.names if name.startswith("cwt")]  # the factor is 1


def test_linear_chunk_loss_runs_three_operators():
    hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    labels, ids = torch.arange(6), torch.arange(6) // 2
    with Operators() as forward:
        cwt_ext.linear_chunk_loss(hidden, head, labels, ids)
    assert [name for name in forward.names if name.startswith("cwt")] == [
        "cwt::chunk_loss_plan",
        "cwt::linear_chunk_loss",
        "cwt::chunk_loss_stats",
    ]
    assert len(forward.names) == 4  # and a view of hidden


def tables(rows, chunks):
    row_stats = torch.randn(_ops.NUM_ROW_STATS, rows)
    chunk_stats = torch.randn(_ops.NUM_CHUNK_STATS, chunks)
    return row_stats, chunk_stats, torch.arange(_ops.NUM_ERROR_COUNTS + chunks)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("chunks", [3, 1, 0])
def test_statistics_are_views_of_the_tables(shape, chunks):
    labels = torch.zeros(shape, dtype=torch.int64)
    row_stats, chunk_stats, errors = tables(labels.numel(), chunks)
    named = _ops.chunk_loss_stats(row_stats, chunk_stats, errors, labels)
    want = [*row_stats.view(5, *shape), *chunk_stats, errors[2:], errors[0], errors[1]]
    assert [x.shape for x in named] == [x.shape for x in want]
    for got, expected in zip(named, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        if got.numel():
            assert got.data_ptr() == expected.data_ptr()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: torch.zeros(4, 6)}, r"row_stats must be contiguous \(5, N\), N = 6, got \(4, 6\)"),
        ({0: torch.zeros(6, 5).t()}, "row_stats must be contiguous"),
        ({1: torch.zeros(7)}, r"chunk_stats must be contiguous \(7, C\), got \(7,\)"),
        ({2: torch.zeros(4).long()}, r"errors must be contiguous \(5,\), got \(4,\)"),
        ({3: torch.zeros(1, 1, 2, 3)}, "at most three dimensions, got"),
    ],
    ids=str,
)
def test_wrong_tables_are_refused(change, match):
    args = [*tables(6, 3), torch.zeros(6, dtype=torch.int64)]
    for place, value in change.items():
        args[place] = value
    with pytest.raises(ValueError, match=match):
        _ops.chunk_loss_stats(*args)


@pytest.mark.parametrize("rows", [64, 65])  # counted as a list, and by an operator
def test_chunks_are_counted_from_few_ids_and_from_many(rows):
    logits, labels, _ = make(rows, 9, ignored=False)
    ids = torch.full((rows,), -1, dtype=torch.int32)
    assert cwt_ext.chunk_loss(logits, labels, ids).stats.tokens.shape == (0,)
    ids[rows // 2] = 4
    tokens = cwt_ext.chunk_loss(logits, labels, ids).stats.tokens
    close(tokens, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]), 0)


@pytest.mark.filterwarnings("ignore:.*performance drop.*:UserWarning")  # vmap calls once a sample
def test_vmap_equals_one_call_a_sample():
    samples = [make(4, 9, seed=seed) for seed in range(3)]

    def numbers(logits, labels, ids):
        out = cwt_ext.chunk_loss(logits, labels, ids, num_chunks=3)
        return out.loss, out.stats.nll_sum, out.stats.nonfinite, out.rows.nll

    together = torch.vmap(numbers)(*(torch.stack(x) for x in zip(*samples, strict=True)))
    for i, sample in enumerate(samples):
        for got, want in zip(together, numbers(*sample), strict=True):
            close(got[i], want, 0)
