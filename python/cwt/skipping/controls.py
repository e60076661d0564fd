"""Control skips, which no student decides, and the share of units that is left out."""

import random
from collections import Counter
from collections.abc import Sequence

from cwt.data.example import Example
from cwt.data.tasks import ANSWER, CORE

_NEEDED = (CORE, ANSWER)


def oracle_skips(examples: Sequence[Example]) -> list[Example]:
    """Returns generated examples that keep only the first unit, the core steps and the answer.

    Raises:
        ValueError: an example has no roles.
    """
    for example in examples:
        if example.roles is None:
            raise ValueError(f"example {example.id} has no roles: only generated examples do.")
    return [
        e.keeping(frozenset(u for u, r in enumerate(e.roles or ()) if u == 0 or r in _NEEDED))
        for e in examples
    ]


def random_skips(examples: Sequence[Example], seed: int, counts: Sequence[int]) -> list[Example]:
    """Returns the examples with so many middle units left out of each, drawn at random."""
    rng = random.Random(f"random-skips-{seed}")
    drawn = []
    for e, n in zip(examples, counts, strict=True):
        gone = rng.sample(list(e.middle_units), n)
        drawn.append(e.keeping(frozenset(range(len(e.units))) - frozenset(gone)))
    return drawn


def skipped_share(examples: Sequence[Example]) -> float:
    """Returns the share of middle units that are left out, in [0, 1]."""
    total = sum(len(e.middle_units) for e in examples)
    gone = sum(len(e.units) - len(e.kept) for e in examples)
    return gone / total if total else 0.0


def removal_rates(examples: Sequence[Example]) -> dict[str, float]:
    """Returns the share of middle units left out, for each role of the generated examples."""
    gone: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for e in examples:
        for u in e.middle_units if e.roles else ():
            total[e.roles[u]] += 1  # type: ignore[index]
            gone[e.roles[u]] += u not in e.kept  # type: ignore[index]
    return {role: gone[role] / n for role, n in sorted(total.items())}
