"""The CUDA kernels of chunk_loss, executed on this CPU, against the float64 oracle.

tests/simt/simt.h runs every CUDA thread as a fiber in a random order; see there for what it checks.
AddressSanitizer also proves that the logits of rows that do not count are never read.
"""

import dataclasses

import pytest
import torch

from cwt_ext import _ops, reference
from tests.simt.harness import (
    IN_PLACE,
    NO_GRAD,
    SANITIZERS,
    Case,
    Output,
    Runner,
    encode,
    encode_backward,
    encode_plan,
    missing,
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"CUDA kernels on the CPU: {missing()}")

HALF, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """The three builds; they compile side by side, and each is waited for when it is first used."""
    folder = tmp_path_factory.mktemp("simt")
    builds = {name: Runner(folder, name) for name in SANITIZERS}
    yield builds
    for build in builds.values():
        build.stop()


inf = torch.inf


def make(rows, vocab, dtype=BF16, chunks=3, seed=0, scale=3.0, ignored=True, **options):
    """Returns a Case with ignored rows, rows without a chunk and ids in no order."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocab, generator=g) * scale).to(dtype)
    labels = torch.randint(0, vocab, (rows,), generator=g)
    chunk_ids = torch.randint(0, max(chunks, 1), (rows,), generator=g)
    if ignored:
        labels[torch.rand(rows, generator=g) < 0.15] = -100
        chunk_ids[torch.rand(rows, generator=g) < 0.1] = -1
    return Case(logits, labels, chunk_ids, chunks, **options)


def with_rows(case, changes):
    """Returns the case with elements replaced: {(row, column): value}."""
    logits = case.logits.clone()
    for (row, column), value in changes.items():
        logits[row, column] = value
    return dataclasses.replace(case, logits=logits)


def with_labels(case, labels=None, chunk_ids=None):
    """Returns the case with labels and ids replaced: {row: value}."""
    new = dataclasses.replace(case, labels=case.labels.clone(), chunk_ids=case.chunk_ids.clone())
    for row, value in (labels or {}).items():
        new.labels[row] = value
    for row, value in (chunk_ids or {}).items():
        new.chunk_ids[row] = value
    return new


def close(got, want, rtol, atol, what):
    torch.testing.assert_close(
        got.double(),
        want.double(),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


def expected(case):
    """Returns the oracle's results, with the contract's NaN for bad and non-finite rows."""
    v, c = case.logits.shape[-1], case.num_chunks
    y, ids = case.labels, case.chunk_ids.long()
    bad_id = (ids < -1) | (ids >= c)
    bad_label = ~bad_id & (y != case.ignore_index) & ((y < 0) | (y >= v))
    bad = bad_id | bad_label
    want = reference.chunk_loss(
        case.logits,
        torch.where(bad, case.ignore_index, y),
        torch.where(bad, -1, ids),
        active=case.active,
        token_weight=case.weight,
        reduction=case.reduction,
        normalizer=case.normalizer,
        ignore_index=case.ignore_index,
        label_smoothing=case.label_smoothing,
        z_loss=case.z_loss,
        softcap=case.softcap,
        num_chunks=c,
        stats=case.stats,
    )
    x = reference.softcapped(case.logits.double().reshape(-1, v), case.softcap)
    lse = torch.logsumexp(x, -1)
    broken = case.read() & ~(torch.isfinite(lse) & (x < torch.inf).all(-1))
    for values in want.rows.values():
        values[broken | bad] = torch.nan
    evaluated = bad_label & (ids >= 0)
    if case.stats != "all":
        a = torch.ones(c) if case.active is None else case.active
        w = torch.ones(len(y)) if case.weight is None else case.weight
        evaluated &= (w != 0) & (a[ids.clamp(0, max(c - 1, 0))] != 0 if c else False)
    errors = torch.zeros(2 + c, dtype=torch.int64)
    errors[0], errors[1] = bad_label.sum(), bad_id.sum()
    for t in torch.nonzero(broken).flatten():
        errors[2 + ids[t]] += 1
    for t in torch.nonzero(evaluated | broken).flatten():
        for name, values in want.chunks.items():
            values[ids[t]] = values[ids[t]] + int(evaluated[t]) if name == "tokens" else torch.nan
    loss = want.loss
    if bad.any():
        loss = torch.where(bad, torch.nan, loss)
        loss = loss if case.reduction == "none" else loss.sum()
    return loss, want, errors


def check(case, got):
    """Asserts that one call's results are the oracle's."""
    loss, want, errors = expected(case)
    dtype = case.logits.dtype
    tight = 1e-12 if dtype == F64 else 2e-6
    close(got["loss"], loss, tight, 1e-12, "loss")
    assert got["errors"].tolist() == errors.tolist()
    for name in ("nll", "logsumexp", "correct", "grad_norm", "entropy"):
        off = case.stats is False and name in ("grad_norm", "entropy")
        value = want.rows[name]
        if off:  # NaN marks a bad or non-finite row, whether there are statistics or not
            value = torch.where(value.isnan() & ~case.read(), torch.nan, 0.0)
        close(got["rows"][name], value, tight, 2e-6 if name == "entropy" else 1e-12, name)
    for name, value in want.chunks.items():
        if case.stats is False or (name == "mean_grad_norm" and not case.mean_grad_norm):
            value = torch.zeros_like(value)
        close(got["chunks"][name], value, tight, 3e-6, name)
    if "grad" in got:
        # Float32: (z - m) log2(e) is rounded before the power of two: 1e-7 for each nat below m, of
        # which there are 87 at most (torch rounds z - m itself, half of that).
        rtol = {HALF: 2.0**-11, BF16: 2.0**-8, F32: 1e-5, F64: 1e-12}[dtype]
        atol = {HALF: 2.0**-25, F64: 1e-30}.get(dtype, 2.0**-125)
        if case.softcap or case.z_loss or case.label_smoothing:
            atol = max(atol, float(want.grad.abs().nan_to_num(0).max()) * tight)
        close(got["grad"].reshape(want.grad.shape), want.grad, rtol, atol, "grad")


def run_all(runner, cases):
    """Runs the cases in one process and checks each."""
    stdout, stderr, status = runner.run(b"".join(encode(case) for _, case in cases))
    output = Output(stdout)
    for name, case in cases:
        assert output.at < len(stdout), f"{name}: the process ended ({status}):\n{stderr[-3000:]}"
        try:
            check(case, output.results(case))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert status == 0, stderr[-3000:]


def value_cases():
    """Name and case, each for one thing that can go wrong."""
    active = torch.tensor([True, False, True])
    shapes = {
        "one row, one logit": (1, 1),
        "shorter than a pack": (5, 7),
        "whole packs only": (6, 512),
        "ragged rows: 50257 mod 8 = 1": (6, 257),
        "more packs than a batch of loads": (4, 2600),
    }
    cases = [
        (f"{name}, {dtype}", make(n, v, dtype))
        for name, (n, v) in shapes.items()
        for dtype in (HALF, BF16, F32, F64)
    ]
    for reduction in ("token_mean", "chunk_mean", "sum", "none"):
        base = make(40, 130, F32, reduction=reduction, active=active)
        weight = torch.rand(40) * (torch.arange(40) % 3 > 0)
        heavy = torch.tensor([0.5, 0.0, 2.0], dtype=F64)
        cases += [
            (reduction, base),
            (f"{reduction}, weights", dataclasses.replace(base, weight=weight, active=heavy)),
            (f"{reduction}, normalizer", dataclasses.replace(base, normalizer=37.0)),
        ]
    wide = make(9, 140, BF16, block_threads=32, shared_bytes=4096 + 32 * 16 * 1)
    cases += [
        ("a row that shared memory holds in part", wide),
        ("no shared memory", dataclasses.replace(wide, shared_bytes=4096)),
        ("unaligned logits", make(5, 261, BF16, offset=3, grad_offset=3)),
        ("logits and gradient aligned differently", make(5, 264, BF16, offset=2)),
        ("gradient with gaps", make(5, 64, F32, grad_row_gap=8)),
        ("loss only", make(20, 200, BF16, grad_mode=NO_GRAD, active=active)),
        ("statistics off", make(20, 200, BF16, stats=False, active=active)),
        ("statistics of all rows", make(20, 200, BF16, stats="all", active=active)),
        ("in place", make(20, 203, BF16, grad_mode=IN_PLACE, active=active)),
        ("blocks of 1024 threads", make(3, 9000, BF16, block_threads=1024, schedules=2)),
        ("no rows", make(0, 16, F32)),
        ("no chunks", make(4, 16, F32, chunks=0)),
        ("nothing counts", make(6, 40, F32, active=torch.zeros(3, dtype=torch.bool))),
        ("more rows than a plan block", make(150, 24, BF16, chunks=5, schedules=2)),
    ]
    cases += [(f"confident rows, {dtype}", confident(dtype)) for dtype in (BF16, F32, F64)]
    cases += [
        (f"logits of scale {scale}, {dtype}", make(7, 257, dtype, scale=scale))
        for scale in (1e-4, 30.0, 1e4)
        for dtype in (HALF, BF16, F32)
    ]
    many = {"chunks": 2, "block_threads": 32, "schedules": 2, "active": torch.tensor([1.5, 0.5])}
    cases += [
        (f"sums in parts, {reduction}", make(4500, 24, F32, reduction=reduction, **many))
        for reduction in ("token_mean", "chunk_mean")
    ]
    narrow = make(12, 100, BF16)
    narrow.chunk_ids = narrow.chunk_ids.int()
    cases.append(("32-bit ids", narrow))
    return cases + cluster_cases() + strided_cases() + option_cases() + broken_cases()


def cluster_cases():
    """Rows in the registers of one block or of a cluster, with a gradient.

    A block has 64 threads, or 32, with 8 packs of 16 bytes each.
    """
    active = torch.tensor([True, False, True])
    cases = []
    for dtype in (HALF, BF16, F32):
        size = 16 // dtype.itemsize
        for blocks in (1, 2, 3, 4, 8, 16) if dtype == BF16 else (1, 2):
            v = 500 * blocks * size + 3  # rows off a 16-byte boundary
            case = make(4, v, dtype, active=active, schedules=2)
            cases.append((f"{blocks} blocks, {dtype}", case))
    two = make(9, 8003, BF16, active=active, schedules=2)
    one = make(9, 4003, BF16, active=active)
    for name, base in (("cluster", two), ("block", one)):
        cases += [
            (f"{name}, in place", dataclasses.replace(base, grad_mode=IN_PLACE)),
            (f"{name}, statistics of all rows", dataclasses.replace(base, stats="all")),
            (f"{name}, z-loss", dataclasses.replace(base, z_loss=1e-2, stats="all")),
            (f"{name}, loss only", dataclasses.replace(base, grad_mode=NO_GRAD)),
            (f"{name}, mean gradient", dataclasses.replace(base, mean_grad_norm=True)),
            (
                f"{name}, mean gradient in place",
                dataclasses.replace(base, mean_grad_norm=True, grad_mode=IN_PLACE),
            ),
            (f"{name}, nothing counts", dataclasses.replace(base, active=active & False)),
        ]
    cases += [
        ("no clusters", dataclasses.replace(two, clusters=False)),
        ("block, offset", make(5, 4000, BF16, offset=3, grad_offset=3, active=active)),
        ("block, aligned differently", make(5, 4000, BF16, offset=3, grad_offset=2)),
        ("half of the registers", make(5, 2000, BF16, active=active)),
        ("a small block, off a boundary", make(5, 1999, BF16, offset=5, grad_offset=5)),
        ("a cluster of small blocks", make(5, 4300, BF16, active=active)),
        ("too long a row", make(2, 66000, BF16, active=active, schedules=2)),
        ("weights of either sign", dataclasses.replace(two, weight=torch.linspace(-2, 2, 9))),
        ("block, loss and z-loss", make(9, 999, F32, grad_mode=NO_GRAD, z_loss=0.01)),
        ("block, label at either end", with_labels(one, {t: 4002 * (t % 2) for t in range(9)})),
        ("(B, T, V) without the last of each", shifted(make(12, 4080, BF16, active=active))),
    ]
    sizes = (("rows", 203, F32), ("block", 2003, F32), ("block", 4003, BF16))
    sizes += (("cluster", 4003, F32), ("cluster", 8003, BF16))
    for name, vocab, dtype in sizes:
        wide = make(12, vocab, dtype, seed=3, schedules=2)
        a, b, c, d = torch.nonzero(wide.read()).flatten().tolist()[:4]
        y = wide.labels.tolist()
        low, high = torch.finfo(dtype).min, torch.finfo(dtype).max
        masked = {(a, j): -inf for j in range(0, vocab, 2) if j != y[a]}
        masked |= {(b, j): -inf for j in range(vocab)} | {(c, y[c]): -inf, (d, 7): inf}
        extreme = {(a, 5): high, (b, 5): low, (c, y[c]): 90.0, (d, y[d]): 1e4}
        far = {(a, j): -0.9e38 if j % 3 else -1.5e38 for j in range(vocab)} | {(a, 4): -inf}
        far |= {(b, j): -1.1e38 if j % 3 else -1.6e38 for j in range(vocab)} | {(b, 4): -inf}
        far |= {(c, 4): 0.9e38, (c, 5): -1.6e38, (c, 6): -inf, (d, 4): 1.1e38, (d, 5): low}
        lowest = {(a, j): low for j in range(vocab)} | {(b, vocab - 3): torch.nan}
        large = {(t, j): v for t, v in ((a, 3e8), (b, -3e8), (c, 2.6e8), (d, 1e15)) for j in (4, 5)}
        large |= {(a, 6): 3e8 + 4096, (c, 6): 2.6e8 + 4096, (b, 7): -2.6e8}
        cases += [
            (f"{name}, {dtype}, -inf and +inf", with_rows(wide, masked)),
            (f"{name}, {dtype}, extreme logits", with_rows(wide, extreme)),
            (f"{name}, {dtype}, far apart", with_rows(wide, far)),
            (f"{name}, {dtype}, large logits", with_rows(wide, large)),
            (f"{name}, {dtype}, lowest number and NaN", with_rows(wide, lowest)),
        ]
    return cases


def shifted(case):
    """Returns the case with logits (3, 4, V)[:, :-1]: evenly spaced only within a sequence."""
    logits = case.logits.view(3, 4, -1)[:, :-1]
    rows = torch.arange(12).view(3, 4)[:, :-1].reshape(-1)
    return dataclasses.replace(
        case, logits=logits, labels=case.labels[rows], chunk_ids=case.chunk_ids[rows]
    )


def confident(dtype):
    """Returns rows whose label has nearly all the mass: 1 - p_y from 1/2 down to 1e-10."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 203, generator=g)
    labels = torch.arange(7) * 25
    gaps = torch.tensor([0.0, 8, 12, 16, 20, 23, 27])
    logits[torch.arange(7), labels] = logits.max(-1).values + gaps
    return Case(logits.to(dtype), labels, torch.zeros(7, dtype=torch.int64), 1, reduction="sum")


def strided_cases():
    base = make(24, 96, F32)
    three = base.logits.view(4, 6, 96).transpose(0, 1)  # (6, 4, 96), rows out of order
    every_second = make(10, 200, BF16)
    return [
        ("(B, T, V) transposed", dataclasses.replace(base, logits=three)),
        (
            "logits[:, :-1] of odd rows, a gradient of their strides",
            dataclasses.replace(shifted(make(12, 261, BF16)), grad_mode=IN_PLACE),
        ),
        ("one row for all", dataclasses.replace(base, logits=base.logits[:1].expand(24, 96))),
        (
            "vocabulary stride 2",
            dataclasses.replace(
                every_second,
                logits=every_second.logits[:, ::2],
                labels=every_second.labels.clamp(max=99),
            ),
        ),
    ]


def option_cases():
    options = {
        "label smoothing": {"label_smoothing": 0.1},
        "z-loss": {"z_loss": 1e-3},
        "softcap": {"softcap": 5.0},
        "everything": {"label_smoothing": 0.2, "z_loss": 1e-2, "softcap": 8.0},
    }
    active = torch.tensor([True, False, True])
    cases = []
    for name, given in options.items():
        for dtype in (BF16, F64):
            case = make(15, 140, dtype, active=active, stats="all", mean_grad_norm=True, **given)
            cases.append((f"{name}, {dtype}", case))
        cases.append((f"{name}, loss only", make(8, 140, F32, grad_mode=NO_GRAD, **given)))
    for dtype in (HALF, BF16, F32, F64):
        case = make(60, 203, dtype, mean_grad_norm=True, active=active)
        cases.append((f"mean gradient, {dtype}", case))
    cases += [
        ("mean gradient in place", make(30, 90, F32, mean_grad_norm=True, grad_mode=IN_PLACE)),
        (
            "mean gradient, more than one batch of rows and one tile",
            make(300, 2100, BF16, chunks=1, mean_grad_norm=True, grad_mode=NO_GRAD, schedules=2),
        ),
    ]
    return cases


def broken_cases():
    nan = torch.nan
    base = make(12, 100, F32, seed=3)
    counting = torch.nonzero(base.read()).flatten().tolist()
    a, b, c, d = counting[:4]
    y = base.labels.tolist()
    masked = {(a, j): -inf for j in range(0, 100, 2) if j != y[a]}
    all_masked = {(d, j): -inf for j in range(100)}
    extreme = {(a, 5): 3.4e38, (b, 5): -3.4e38, (c, y[c]): 90.0, (d, y[d]): 1e4}
    lowest = {(a, j): torch.finfo(F32).min for j in range(100)}
    bad = with_labels(base, {a: 100, b: -1, 11: 2**40}, {c: 3, d: -2})
    cases = [
        ("-inf logits", with_rows(base, masked)),
        ("a label of -inf", with_rows(base, {(a, y[a]): -inf})),
        ("NaN, +inf, nothing but -inf", with_rows(base, {(a, 7): nan, (b, 9): inf} | all_masked)),
        ("NaN and +inf at the label", with_rows(base, {(a, y[a]): nan, (b, y[b]): inf})),
        ("extreme logits", with_rows(base, extreme)),
        ("a row of the lowest finite number", with_rows(base, lowest)),
        ("bad labels and ids", bad),
        ("bad labels and ids, none", dataclasses.replace(bad, reduction="none", stats=False)),
    ]
    off = dataclasses.replace(base, active=torch.tensor([False, True, True]), stats="all")
    first = next(t for t in counting if base.chunk_ids[t] == 0)
    cases.append(("NaN in a row that only has statistics", with_rows(off, {(first, 3): nan})))
    return cases


def test_values_and_schedules(runners):
    """Every case equals the oracle, and is the same to the last bit under every schedule."""
    run_all(runners["plain"], value_cases())


def test_bitwise_equal_over_20_schedules(runners):
    active = torch.tensor([True, False, True, True])
    many = make(50, 203, BF16, chunks=4, active=active, mean_grad_norm=True, schedules=20)
    none = make(50, 203, BF16, chunks=4, active=active, reduction="chunk_mean", schedules=20)
    run_all(runners["plain"], [("20 schedules", many), ("20 schedules, chunk_mean", none)])


@pytest.mark.ci
def test_every_case_is_bitwise_equal_over_20_schedules(runners):
    run_all(runners["plain"], [(n, dataclasses.replace(c, schedules=20)) for n, c in value_cases()])


def sanitized_cases():
    """Fewer rows and schedules: a sanitizer costs a factor of ten."""
    small = {"schedules": 2}
    active = torch.tensor([True, False, True])
    wide = {"block_threads": 32, "shared_bytes": 4096 + 32 * 16}
    return [
        ("gradient", make(12, 130, BF16, active=active, **small)),
        ("gradient, part cached", make(6, 141, BF16, active=active, **wide, **small)),
        ("loss only", make(8, 77, F32, active=active, grad_mode=NO_GRAD, **small)),
        ("options", make(8, 77, F32, label_smoothing=0.1, softcap=9.0, z_loss=1e-3, **small)),
        ("float64", make(5, 33, F64, **small)),
        ("in place", make(8, 66, HALF, grad_mode=IN_PLACE, mean_grad_norm=True, chunks=2, **small)),
        ("mean gradient", make(40, 90, BF16, mean_grad_norm=True, reduction="chunk_mean", **small)),
        *((name, dataclasses.replace(c, **small)) for name, c in broken_cases()[:7]),
        *((name, dataclasses.replace(c, **small)) for name, c in strided_cases()),
        ("unaligned", make(5, 261, BF16, offset=3, grad_offset=3, **small)),
        ("no rows", make(0, 16, F32, **small)),
        ("cluster", make(7, 8003, BF16, active=active, offset=1, grad_offset=1, **small)),
        ("block, in place", make(7, 7600, F32, grad_mode=IN_PLACE, mean_grad_norm=True, **small)),
        ("sums in parts", make(2100, 24, F32, chunks=1, reduction="chunk_mean", **small)),
    ]


@pytest.mark.ci
def test_address_and_undefined_behaviour_sanitizers_find_nothing(runners):
    run_all(runners["asan"], sanitized_cases())


@pytest.mark.ci
def test_thread_sanitizer_finds_nothing(runners):
    """One schedule is enough: ThreadSanitizer judges by what is ordered, not by what happened."""
    few = [c for c in sanitized_cases() if c[0] in RACE_CASES]
    assert len(few) == len(RACE_CASES)
    run_all(runners["tsan"], [(n, dataclasses.replace(c, schedules=1)) for n, c in few])


RACE_CASES = ("gradient, part cached", "loss only", "options", "in place", "unaligned")
RACE_CASES += ("cluster", "block, in place", "sums in parts")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_the_large_sweep(runners, sanitizer):
    cases = [(n, dataclasses.replace(c, schedules=min(c.schedules, 2))) for n, c in value_cases()]
    run_all(runners[sanitizer], cases)


@pytest.mark.parametrize(
    "sanitizer", [pytest.param(s, marks=pytest.mark.ci if s == "tsan" else ()) for s in SANITIZERS]
)
def test_plan_is_that_of_the_cpu(runners, sanitizer):
    """chunk_loss_plan: the CPU's states, and its weights but for the order of the sums."""
    base = make(150, 24, F32, schedules=3)
    base = with_labels(base, {3: 24, 40: -1}, {7: 3, 99: -2})
    weight = torch.rand(150) * (torch.arange(150) % 3 > 0)
    heavy = torch.tensor([0.5, 0.0, 2.0], dtype=F64)
    cases = [
        dataclasses.replace(base, reduction=reduction, normalizer=normalizer, stats=stats, **given)
        for reduction in ("token_mean", "chunk_mean", "sum", "none")
        for normalizer, stats in ((None, True), (37.0, "all"))
        for given in ({}, {"weight": weight, "active": heavy, "chunk_ids": base.chunk_ids.int()})
    ]
    cases += [make(0, 16, F32), make(4, 16, F32, chunks=0)]
    stdout, stderr, status = runners[sanitizer].run(b"".join(map(encode_plan, cases)))
    assert status == 0, stderr[-3000:]
    output = Output(stdout)
    for case in cases:
        assert output.error() == ""
        want_weight, want_state = torch.ops.cwt.chunk_loss_plan(
            case.labels,
            case.chunk_ids,
            case.active,
            case.weight,
            None if case.normalizer is None else torch.tensor(case.normalizer),
            case.num_chunks,
            case.logits.shape[-1],
            _ops.REDUCTIONS[case.reduction],
            case.ignore_index,
            _ops.STATS_MODES[case.stats],
        )
        close(output.take((case.rows(),), F64), want_weight, 1e-14, 0, "row_weight")
        assert torch.equal(output.take((case.rows(),), torch.int8), want_state)


def test_backward_scales_rows_and_leaves_empty_ones(runners):
    """Functional and in place; a factor of 1 in place moves nothing, empty rows stay 0."""
    calls, wanted = [], []
    for dtype in (HALF, BF16, F32, F64):
        acc = F64 if dtype == F64 else F32
        g = torch.Generator().manual_seed(1)
        grad = torch.randn(7, 75, generator=g).to(dtype)
        weight = torch.tensor([1, 0, 2, 0.5, 0, 1, torch.nan], dtype=acc)
        grad[weight == 0] = 0
        factors = torch.tensor([1, 5, -2, 1, torch.nan, 0.25, 3.0], dtype=acc)
        for factor in (torch.tensor(3.0, dtype=acc), torch.tensor(1.0, dtype=acc), factors):
            scale = factor.reshape(-1, 1).expand(7, 1)
            want = torch.where((weight == 0)[:, None], 0.0, grad.to(acc) * scale).to(dtype)
            for in_place in (False, True):
                calls.append(encode_backward(grad, weight, factor, in_place))
                wanted.append(want)
    stdout, stderr, status = runners["plain"].run(b"".join(calls))
    assert status == 0, stderr
    output = Output(stdout)
    for want in wanted:
        assert output.error() == ""
        close(output.take(tuple(want.shape), want.dtype), want, 0, 0, "scaled gradient")


def test_asan_sees_a_read_of_a_row_that_does_not_count(runners):
    """The proof that idle rows cost no bytes can fail: forbid a row that does count."""
    case = make(6, 64, BF16)
    data = bytearray(encode(case))
    row = int(torch.nonzero(case.read()).flatten()[0])
    data[len(data) - case.rows() + row] = 1  # the flags of forbidden rows come last
    _, stderr, status = runners["asan"].run(bytes(data))
    assert status != 0
    assert "use-after-poison" in stderr
