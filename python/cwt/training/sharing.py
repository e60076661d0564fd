"""Chunks of one example that meet in a step are read once: rows that begin others go into them."""

from collections.abc import Sequence
from dataclasses import replace

from cwt.students.tokenized import TokenSequence


def share_prefixes(samples: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Returns fewer rows with the same loss tokens, each of which sees the same tokens before it.

    A model that reads from left to right predicts a token from those before it alone. So a row
    whose tokens begin another one's needs no pass of its own: its loss tokens are marked there. The
    summed loss and its gradient are the same, to rounding (without dropout in the model, which
    would draw other numbers). Two rows that train the same token stay apart.

    Args:
        samples: of one step; those of one example are compared.

    Example:
        >>> first = TokenSequence([5, 6, 7], [-1, 0, 0], prompt=1, example="a")
        >>> second = TokenSequence([5, 6, 7, 8], [-1, -1, -1, 1], prompt=1, example="a")
        >>> [(row.ids, row.chunks) for row in share_prefixes([first, second])]
        [([5, 6, 7, 8], [-1, 0, 0, 1])]
    """
    longest_first = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    rows: dict[int, TokenSequence] = {}
    of_example: dict[str, list[int]] = {}
    for i in longest_first:
        sample = samples[i]
        places = of_example.setdefault(sample.example, [])
        host = next((p for p in places if _begins(sample, rows[p])), None)
        if host is None:
            rows[i] = sample
            places.append(i)
        else:
            rows[host] = _joined(sample, rows[host])
    return [rows[i] for i in sorted(rows)]


def _begins(sample: TokenSequence, row: TokenSequence) -> bool:
    """Returns whether a row begins with a sample, and trains none of its loss tokens."""
    n = len(sample.ids)
    if sample.prompt != row.prompt or sample.ids != row.ids[:n]:
        return False
    return not any(a >= 0 and b >= 0 for a, b in zip(sample.chunks, row.chunks, strict=False))


def _joined(sample: TokenSequence, row: TokenSequence) -> TokenSequence:
    own = zip(sample.chunks, row.chunks, strict=False)
    begin = [max(pair) for pair in own]  # at most one of them is a chunk, the other -1
    return replace(row, chunks=begin + row.chunks[len(sample.chunks) :])
