"""Exact segmentation of a sequence of units (sentences, lines, steps) into coherent chunks."""

import itertools
import math
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cwt_ext import _segment

__all__ = ["Segmentation", "cost_matrix", "segment", "segment_batch"]

ArrayLike = npt.NDArray[np.floating] | torch.Tensor
Kind = Literal["embeddings", "similarity", "cost"]
Objective = Literal["norm", "ls"]

_DTYPES = "float16, bfloat16, float32 or float64"
_TABLE_BYTES_PER_ENTRY = 12  # a cost in double, a back-pointer in int32, for each (unit, chunk)
_MAX_TABLE_BYTES = 8 << 30


class Segmentation(NamedTuple):
    """One segmentation of n units into k chunks.

    Attributes:
        boundaries: (k+1,) int64, 0 = b_0 < ... < b_k = n; chunk m is `units[b[m]:b[m+1]]`.
        cost: the sum of the chunk costs, without any penalty.
        chunk_costs: (k,) float64, recomputed in double precision from the input; of vectors that
            nearly cancel they keep about 1e-9 of a unit vector's length.
        path: with `path=True` the optimum for each feasible number of chunks 1..k in that order,
            the last being this one; otherwise empty.
    """

    boundaries: npt.NDArray[np.int64]
    cost: float
    chunk_costs: npt.NDArray[np.float64]
    path: tuple["Segmentation", ...] = ()

    @property
    def k(self) -> int:
        """The number of chunks."""
        return len(self.chunk_costs)


def segment(
    x: ArrayLike,
    *,
    k: int | None = None,
    penalty: float | Literal["auto"] | None = None,
    kind: Kind = "embeddings",
    objective: Objective = "norm",
    min_len: int = 1,
    max_len: int | None = None,
    weights: npt.ArrayLike | None = None,
    min_weight: float | None = None,
    max_weight: float | None = None,
    path: bool = False,
) -> Segmentation:
    r"""Returns the segmentation of least total cost, exactly.

    A chunk i..j (half-open) of unit-length embeddings e costs

        norm:  -||e_i + ... + e_{j-1}||
        ls:    (number of non-zero rows) - ||e_i + ... + e_{j-1}||^2 / (j - i)

    `ls` is the cost of ruptures' KernelCPD(kernel="cosine"); a zero row stays zero in both. With
    kind="similarity" and a matrix S, ||e_i + ...||^2 is the sum of S[i:j, i:j] (for `norm` not
    below 0) and the number of rows its trace. Exactly one of `k` and `penalty` is given. All sums
    are double precision. Of equally good segmentations the one whose last chunk starts first is
    returned (then the one whose last but one starts first, and so on).

    Args:
        x: by `kind`, float32 or float64, NumPy or CPU tensor, contiguous or not (copied if not);
            float16 and bfloat16 are widened to float32, which changes no value:
            embeddings: (n, d), scaled to unit length here, row norms below 1e154; a row
                shorter than 1e-150 counts as zero.
            similarity: (n, n), any kernel; of an asymmetric one the mean with its transpose counts.
            cost: (n+1, n+1), x[i, j] with 0 <= i < j <= n is the cost of the chunk i..j, the units
            i, ..., j-1. The rest, j <= i, is never read, nor are chunks that the limits rule out.
        k: the number of chunks, a whole number, 1 <= k <= n.
        penalty: added for each chunk, finite and >= 0; the number of chunks is then free. "auto" is
            0.08 sqrt(n ln n), for the norm of embeddings or similarities.
        kind: what x is.
        objective: the cost of a chunk; of no effect with kind="cost".
        min_len: fewest units of a chunk.
        max_len: most units of a chunk.
        weights: (n,) weight of each unit, >= 0 (tokens, say). Compared as differences of prefix
            sums in double precision, hence exact for whole numbers.
        min_weight: least total weight of a chunk.
        max_weight: greatest total weight of a chunk.
        path: also return the optimum for every smaller number of chunks; needs `k`.

    Returns:
        A `Segmentation`. Time is O(n w (d + k)) and memory O(n k + w d), with w the widest reach of
        a chunk in units (`max_len`, n by default).

    Raises:
        ValueError: an argument is out of range, x is not finite (names the row), no segmentation
            satisfies the limits (names n, k and the limits), or the tables of n and k, 12 (n + 1) k
            bytes, exceed 8 GiB.
        TypeError: x is neither a NumPy array nor a tensor, or of another dtype, or k is not a whole
            number.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1, 0], [1, 0.1], [0, 1], [0, 1]], dtype=np.float32)
        >>> segment(x, k=2).boundaries.tolist()
        [0, 2, 4]
    """
    try:
        matrix = _matrix(x, kind)
        n = len(matrix) - (kind == "cost")
        if path and k is None:
            raise ValueError("path=True needs k, the largest number of chunks")
        limits = _limits(kind, objective, min_len, max_len, weights, min_weight, max_weight)
        chunks, price = _aim(k, penalty, n, kind, objective)
        loads = None if weights is None else _weights(weights, n)
        flat = _segment.segment(matrix, chunks, price, loads, limits, path)
    except (ValueError, TypeError) as error:
        raise _named("segment", error) from None
    found = _unflatten(*flat)
    return found[-1]._replace(path=tuple(found)) if path else found[-1]


def segment_batch(
    xs: Sequence[ArrayLike],
    *,
    k: int | Sequence[int] | None = None,
    penalty: float | Literal["auto"] | Sequence[float] | None = None,
    kind: Kind = "embeddings",
    objective: Objective = "norm",
    min_len: int = 1,
    max_len: int | None = None,
    weights: Sequence[npt.ArrayLike] | None = None,
    min_weight: float | None = None,
    max_weight: float | None = None,
    threads: int | None = None,
    path: bool = False,
) -> list[Segmentation]:
    """Returns `[segment(x, ...) for x in xs]`, computed on several threads without the GIL.

    Args:
        xs: matrices as `segment` takes them, of any lengths.
        k: one number of chunks for all, or one per item.
        penalty: one for all ("auto" depends on the item's n), or one per item.
        kind: see `segment`.
        objective: see `segment`.
        min_len: see `segment`.
        max_len: see `segment`.
        weights: one (n,) array per item.
        min_weight: see `segment`.
        max_weight: see `segment`.
        threads: how many to use, by default one per core this process may run on. The results do
            not depend on it.
        path: see `segment`.

    Returns:
        One `Segmentation` per item, in order, to the last bit what `segment` returns.

    Raises:
        ValueError: as `segment`; the message names the first item at fault.
        TypeError: as `segment`.

    Example:
        >>> import numpy as np
        >>> rows = np.eye(3)[[0, 0, 1, 2]]
        >>> [s.boundaries.tolist() for s in segment_batch([rows, rows[:3]], k=[3, 2])]
        [[0, 2, 3, 4], [0, 2, 3]]
    """
    item = None  # the one being looked at
    try:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if path and k is None:
            raise ValueError("path=True needs k, the largest number of chunks")
        ks, penalties = _per_item(k, len(xs), "k"), _per_item(penalty, len(xs), "penalty")
        loads = _per_item(weights, len(xs), "weights")
        limits = _limits(kind, objective, min_len, max_len, weights, min_weight, max_weight)
        matrices, chunks, prices, checked = [], [], [], []
        for item, x in enumerate(xs):
            matrix = _matrix(x, kind)
            n = len(matrix) - (kind == "cost")
            count, price = _aim(ks[item], penalties[item], n, kind, objective)
            if weights is not None:
                checked.append(_weights(loads[item], n))
            matrices.append(matrix)
            chunks.append(count)
            prices.append(price)
        item = None
        own = None if weights is None else checked
        threads = threads or available_cores()
        flat, counts = _segment.segment_batch(matrices, chunks, prices, own, limits, threads, path)
    except (ValueError, TypeError) as error:
        where = "segment_batch" if item is None else f"segment_batch: item {item}"
        raise _named(where, error) from None
    found = iter(_unflatten(*flat))
    items = [tuple(itertools.islice(found, count)) for count in counts]
    return [item[-1]._replace(path=item) if path else item[-1] for item in items]


def cost_matrix(
    cost: Callable[[int, int], float], n: int, *, min_len: int = 1, max_len: int | None = None
) -> npt.NDArray[np.float64]:
    """Returns the costs of all chunks of n units, as `segment(..., kind="cost")` takes them.

    Args:
        cost: cost(i, j) of the chunk of the units i, ..., j-1; called once for each.
        n: number of units.
        min_len: shorter chunks are not asked for; give `segment` the same.
        max_len: longer chunks are not asked for; give `segment` the same.

    Returns:
        (n+1, n+1) float64, NaN where nothing was asked for.

    Raises:
        ValueError: n or min_len below 1, or max_len below min_len.

    Example:
        >>> costs = cost_matrix(lambda i, j: (j - i - 2) ** 2, 6)
        >>> segment(costs, kind="cost", penalty=0.5).boundaries.tolist()
        [0, 2, 4, 6]
    """
    longest = n if max_len is None else max_len
    if n < 1 or not 1 <= min_len <= longest:
        raise ValueError(
            "cost_matrix: n and min_len must be at least 1 and max_len at least min_len, got "
            f"{n=}, {min_len=}, {max_len=}."
        )
    table = np.full((n + 1, n + 1), np.nan)
    for i in range(n):
        for j in range(i + min_len, min(n, i + longest) + 1):
            table[i, j] = cost(i, j)
    return table


def _named(where: str, error: Exception) -> Exception:
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{where}: {error}.")


def _matrix(x: ArrayLike, kind: str) -> npt.NDArray[np.floating]:
    if not isinstance(x, np.ndarray):
        x = _from_tensor(x)
    if x.dtype.type is np.float16:
        x = x.astype(np.float32)
    if x.dtype.type not in (np.float32, np.float64):
        raise TypeError(f"x must be {_DTYPES}, got {x.dtype}")
    if x.ndim != 2 or (kind != "embeddings" and x.shape[0] != x.shape[1]):
        wanted = {"embeddings": "(n, d)", "similarity": "(n, n)", "cost": "(n+1, n+1)"}.get(kind)
        raise ValueError(f"x must be {wanted} for kind={kind!r}, got shape {x.shape}")
    flags = x.flags
    if flags.c_contiguous and flags.aligned and x.dtype.isnative:
        return x
    return x.astype(x.dtype.newbyteorder("="), order="C")


def _from_tensor(x: object) -> npt.NDArray[Any]:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a NumPy array or a tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise TypeError(f"x must be on the CPU, got a tensor on {x.device}")
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be {_DTYPES}, got {x.dtype}")
    return x.detach().numpy()


def _limits(
    kind: str,
    objective: str,
    min_len: int,
    max_len: int | None,
    weights: Any,
    min_weight: float | None,
    max_weight: float | None,
) -> _segment.Options:
    if kind not in _segment.Kind.__members__:
        raise ValueError(f"kind must be 'embeddings', 'similarity' or 'cost', got {kind!r}")
    if objective not in _segment.Objective.__members__:
        raise ValueError(f"objective must be 'norm' or 'ls', got {objective!r}")
    if weights is None and (min_weight is not None or max_weight is not None):
        raise ValueError("min_weight and max_weight need weights")
    return _segment.Options(
        _segment.Kind.__members__[kind],
        _segment.Objective.__members__[objective],
        min_len,
        max_len,
        min_weight,
        max_weight,
    )


def _aim(k: Any, penalty: Any, n: int, kind: str, objective: str) -> tuple[int, float]:
    """Returns (k, 0.0), or (0, penalty) where k is free."""
    if (k is None) == (penalty is None):
        raise ValueError(f"exactly one of k and penalty is needed, got {k=}, {penalty=}")
    if k is not None:
        try:
            k = operator.index(k)
        except TypeError:
            raise TypeError(f"k must be a whole number, got {k!r}") from None
        if k < 1:
            raise ValueError(f"k must be between 1 and n, got n={n}, k={k}")
        size = _TABLE_BYTES_PER_ENTRY * (n + 1) * k
        if k <= n and size > _MAX_TABLE_BYTES:
            raise ValueError(
                f"n={n} and k={k} need tables of 12 (n + 1) k bytes, {size / 2**30:.1f} GiB, more "
                f"than {_MAX_TABLE_BYTES >> 30} GiB; give a penalty, which needs one column, or "
                "segment parts of x"
            )
        return k, 0.0
    if penalty != "auto":
        return 0, float(penalty)
    if kind == "cost" or objective != "norm":
        raise ValueError(
            "penalty='auto' is for the norm of embeddings or similarities, "
            f"got {kind=}, {objective=}"
        )
    return 0, 0.08 * math.sqrt(n * math.log(max(n, 1)))


def _weights(weights: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
    array = np.ascontiguousarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"weights must be ({n},), got shape {array.shape}")
    return array


def _per_item(value: Any, count: int, name: str) -> list[Any]:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one per item, {count}, got {len(value)}")
    return list(value)


def available_cores() -> int:
    """Returns how many cores this process may run on (where the system tells: else all)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _unflatten(
    boundaries: npt.NDArray[np.int64],
    chunk_costs: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    totals: npt.NDArray[np.float64],
) -> list[Segmentation]:
    found = []
    c = 0
    for i, (k, total) in enumerate(zip(counts.tolist(), totals.tolist(), strict=True)):
        end = c + k
        own = boundaries[c + i : end + i + 1]  # one boundary more than chunks
        found.append(Segmentation._make((own, total, chunk_costs[c:end], ())))
        c = end
    return found
