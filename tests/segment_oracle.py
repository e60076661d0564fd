"""What `cwt_ext.segment` must return, from the definitions: slow, obvious, no shared code."""

import itertools

import numpy as np


def cost_table(x, kind, objective):
    """Returns the (n+1, n+1) table of chunk costs, +inf where j <= i."""
    x = np.asarray(x, dtype=np.float64)
    if kind == "cost":
        return np.where(np.tri(len(x), dtype=bool), np.inf, x)
    n = len(x)
    table = np.full((n + 1, n + 1), np.inf)
    if kind == "embeddings":
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, length, out=np.zeros_like(x), where=length > 1e-150)  # shorter is zero
    for i in range(n):
        if kind == "embeddings":
            resultants = np.linalg.norm(np.cumsum(x[i:], axis=0), axis=1) ** 2
            traces = np.cumsum((x[i:] ** 2).sum(1))
        else:
            resultants = np.array([x[i:j, i:j].sum() for j in range(i + 1, n + 1)])
            traces = np.array([np.trace(x[i:j, i:j]) for j in range(i + 1, n + 1)])
        if objective == "norm":
            table[i, i + 1 :] = -np.sqrt(np.maximum(resultants, 0))
        else:
            table[i, i + 1 :] = traces - resultants / np.arange(1, n - i + 1)
    return table


def forbid(table, min_len=1, max_len=None, weights=None, min_weight=None, max_weight=None):
    """Returns the table with +inf for every chunk that the limits rule out."""
    n = len(table) - 1
    table = table.copy()
    for i, j in itertools.combinations(range(n + 1), 2):
        load = 0 if weights is None else sum(weights[i:j])
        if (
            j - i < min_len
            or j - i > (max_len or n)
            or (min_weight is not None and load < min_weight)
            or (max_weight is not None and load > max_weight)
        ):
            table[i, j] = np.inf
    return table


def all_optima(table):
    """Returns [(cost, boundaries) or None] for k = 1..n; of equal costs the first predecessor."""
    n = len(table) - 1
    best, froms, found = table[0].copy(), [], []
    for k in range(1, n + 1):
        if k > 1:
            offers = best[:, None] + table
            froms.append(offers.argmin(0))
            best = offers.min(0)
        if not np.isfinite(best[n]):
            found.append(None)
            continue
        boundaries = [n]
        for back in reversed(froms):
            boundaries.append(int(back[boundaries[-1]]))
        found.append((best[n], [*([0] if k >= 1 else []), *reversed(boundaries)]))
    return found


def penalised_optimum(table, penalty):
    """Returns the least cost + penalty * k over all segmentations, +inf if there is none."""
    n = len(table) - 1
    best = np.full(n + 1, np.inf)
    best[0] = 0
    for t in range(1, n + 1):
        best[t] = (best[:t] + table[:t, t]).min() + penalty
    return best[n]


def brute_force(table, k):
    """Returns the least cost over every way to cut the units into k chunks."""
    n = len(table) - 1
    return min(
        sum(table[i, j] for i, j in itertools.pairwise((0, *cuts, n)))
        for cuts in itertools.combinations(range(1, n), k - 1)
    )
