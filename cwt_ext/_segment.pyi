from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

class Kind(Enum):
    embeddings = 0
    similarity = 1
    cost = 2

class Objective(Enum):
    norm = 0
    ls = 1

class Options:
    def __init__(
        self,
        kind: Kind,
        objective: Objective,
        min_len: int,
        max_len: int | None,
        min_weight: float | None,
        max_weight: float | None,
    ) -> None: ...

_Flat = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]
]

def segment(
    x: npt.NDArray[np.floating],
    k: int,
    penalty: float,
    weights: npt.NDArray[np.float64] | None,
    options: Options,
    path: bool,
) -> _Flat: ...
def segment_batch(
    xs: Sequence[npt.NDArray[np.floating]],
    ks: Sequence[int],
    penalties: Sequence[float],
    weights: Sequence[npt.NDArray[np.float64]] | None,
    options: Options,
    threads: int,
    path: bool,
) -> tuple[_Flat, list[int]]: ...
def instruction_set() -> str: ...
def proof_counts() -> tuple[int, int]: ...
