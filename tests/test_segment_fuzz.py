"""Arbitrary arguments: a right answer or a ValueError/TypeError, never anything else.

`test_segment_sanitizers.py` runs this file again on a module built with sanitizers.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from segment_oracle import all_optima, cost_table, forbid, penalised_optimum

from cwt_ext import _segment, segment, segment_batch

SIDE = st.integers(0, 14)
FINITE = {"allow_nan": False, "allow_infinity": False}
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def matrices(draw, kind, **elements):
    n = draw(SIDE)
    shape = (n, draw(st.integers(0, 9))) if kind == "embeddings" else (n, n)
    dtype = draw(DTYPES)
    width = 32 if dtype == np.float32 else 64
    values = st.floats(-100, 100, width=width) if elements == FINITE else st.floats(width=width)
    return draw(hnp.arrays(dtype, shape, elements=values))


def limits(n):
    number = st.one_of(st.none(), st.integers(-1, 20))
    weight = st.one_of(st.none(), st.floats(0, 30))
    return st.fixed_dictionaries(
        {"objective": st.sampled_from(["norm", "ls"])},
        optional={
            "min_len": st.integers(-1, 5),
            "max_len": number,
            "weights": st.lists(st.integers(-1, 9), min_size=n, max_size=n + (n % 5 == 0)),
            "min_weight": weight,
            "max_weight": weight,
        },
    )


def assert_valid(found, n, arguments):
    b = found.boundaries
    assert b[0] == 0
    assert b[-1] == n
    length = np.diff(b)
    assert length.min() >= arguments.get("min_len", 1)
    assert length.max() <= (arguments.get("max_len") or n)
    if "weights" in arguments:
        load = np.add.reduceat(np.asarray(arguments["weights"]), b[:-1])
        assert load.min() >= (arguments.get("min_weight") or 0)
        assert load.max() <= (np.inf if (w := arguments.get("max_weight")) is None else w)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["embeddings", "similarity", "cost"]))
def test_anything_goes_in_only_answers_and_errors_come_out(data, kind):
    x = data.draw(matrices(kind))
    n = max(0, len(x) - (kind == "cost"))
    arguments = data.draw(limits(n))
    aim = data.draw(
        st.one_of(
            st.fixed_dictionaries({"k": st.integers(-1, 16)}, optional={"path": st.booleans()}),
            st.fixed_dictionaries({"penalty": st.one_of(st.floats(), st.just("auto"))}),
        )
    )
    try:
        found = segment(x, kind=kind, **aim, **arguments)
    except ValueError as error:
        assert str(error).startswith("segment: ")  # noqa: PT017
        if "path" not in aim:
            if "weights" in arguments:
                arguments["weights"] = [arguments["weights"]]
            with pytest.raises(ValueError, match=r"^segment_batch: "):
                segment_batch([x], kind=kind, **aim, **arguments)
        return
    assert_valid(found, n, arguments)
    assert aim.get("k") in (None, found.k)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["embeddings", "similarity", "cost"]))
def test_finite_input_gives_the_optimum(data, kind):
    x = data.draw(matrices(kind, **FINITE))
    n = len(x) - (kind == "cost")
    assume(n > 0 and x.size)
    objective = data.draw(st.sampled_from(["norm", "ls"]))
    arguments = {"min_len": data.draw(st.integers(1, 3)), "max_len": data.draw(st.integers(3, 20))}
    table = forbid(cost_table(x, kind, objective), **arguments)
    scale = max(1.0, float(np.abs(table[np.isfinite(table)]).max(initial=0)))
    # Opposite vectors cancel: the root of a rounding error of 1e-16 is 1e-8.
    tolerance = (1e-7 if kind != "cost" and objective == "norm" else 1e-9) * scale * n
    for k, optimum in enumerate(all_optima(table), 1):
        if optimum is not None:
            found = segment(x, k=k, kind=kind, objective=objective, **arguments)
            assert abs(found.cost - optimum[0]) <= tolerance
    expected = penalised_optimum(table, 0.5)
    if np.isfinite(expected):
        found = segment(x, penalty=0.5, kind=kind, objective=objective, **arguments)
        assert abs(found.cost + 0.5 * found.k - expected) <= tolerance


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        hnp.arrays(
            st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.complex_number_dtypes()),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        st.none(),
        st.text(max_size=3),
    )
)
def test_the_native_module_refuses_what_is_not_a_matrix_of_floats(x):
    options = _segment.Options(
        _segment.Kind.embeddings, _segment.Objective.norm, 1, None, None, None
    )
    good = (
        isinstance(x, np.ndarray)
        and x.ndim == 2
        and x.dtype in (np.dtype(np.float32), np.dtype(np.float64))
        and x.size > 0
        and np.isfinite(x).all()
        and np.abs(x).max() < 1e150
    )
    if good:
        assert _segment.segment(x, 1, 0.0, None, options, False)[0].tolist() == [0, len(x)]
        return
    with pytest.raises((TypeError, ValueError)):
        _segment.segment(x, 1, 0.0, None, options, False)
