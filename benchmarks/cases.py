"""What is measured, as data: features, their rivals, shapes, dtypes and kinds of work.

pytest-benchmark (conftest.py), the hand-made harness (`main` of each bench_<feature>.py) and the
check that every case was measured (check_measured.py) read their cases from here. How a rival is
called is in bench_<feature>.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FORWARD = "forward"  # the loss without a graph, as in evaluation
BACKWARD = "backward"  # from a loss with its graph, made before the clock starts
BOTH = "both"  # the loss and its gradients
CALL = "call"
STEP = "step"  # forward, backward, clipping, optimizer
LOSS_WORKS = (FORWARD, BACKWARD, BOTH)
CHUNKS = 8


@dataclass(frozen=True)
class Rival:
    """One row of a feature's table.

    Attributes:
        name: as printed.
        works: what is measured of it.
        against: which of ours it is compared with.
    """

    name: str
    works: tuple[str, ...] = LOSS_WORKS
    against: str = "ours"


@dataclass(frozen=True)
class Grid:
    """Shapes x dtypes x works; `without` names rivals that have no meaning there."""

    shapes: tuple[tuple[int | str, ...], ...]
    dtypes: tuple[str, ...] = ("float32",)
    works: tuple[str, ...] = LOSS_WORKS
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One measurement."""

    feature: str
    shape: tuple[int | str, ...]
    dtype: str
    work: str
    rival: Rival

    @property
    def title(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"

    @property
    def id(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.feature}-{shape}-{self.dtype}-{self.work}-{self.rival.name}"


@dataclass(frozen=True)
class Feature:
    """One table.

    Attributes:
        rivals: its rows, ours first.
        published: what `main` measures for benchmarks/README.md; the first shape with --quick.
        full: what `make bench` measures.
        quick: what `make bench QUICK=1` measures.
    """

    name: str
    rivals: tuple[Rival, ...]
    published: Grid
    full: tuple[Grid, ...]
    quick: tuple[Grid, ...]

    @property
    def works(self) -> tuple[str, ...]:
        """Every kind of work, in the order of the table's columns."""
        used = {work for grid in self.full for work in grid.works}
        return tuple(work for work in (*LOSS_WORKS, CALL, STEP) if work in used)

    def cases(self, quick: bool) -> Iterator[Case]:
        """Yields the cases of pytest-benchmark, those of one shape and dtype together."""
        for grid in self.quick if quick else self.full:
            yield from self.grid_cases(grid)

    def grid_cases(self, grid: Grid) -> Iterator[Case]:
        for shape in grid.shapes:
            for dtype in grid.dtypes:
                for work in grid.works:
                    for rival in self.rivals:
                        if work in rival.works and rival.name not in grid.without:
                            yield Case(self.name, shape, dtype, work, rival)


BOTH_DTYPES = ("float32", "bfloat16")
_CHUNK_LOSS_SHAPES = ((512, 49152), (2048, 32000))  # rows, vocabulary
CHUNK_LOSS = Feature(
    "chunk_loss",
    (
        Rival("ours"),
        Rival("ours, no statistics", (BOTH,)),
        Rival("ours, mean_grad_norm", (BOTH,)),
        Rival("ours, in place", (BOTH,)),
        Rival("ours, fresh", (BOTH,)),
        Rival("ours, fresh, 1 of 8", (BOTH,)),
        Rival("copy_", (BOTH,)),
        Rival("copy_, fresh", (BOTH,)),
        Rival("eager"),
        Rival("eager, statistics", (BOTH,)),
        Rival("eager, statistics, mean", (BOTH,), "ours, mean_grad_norm"),
        Rival("eager, cheapest statistics", (BOTH,)),
        Rival("naive chunk loop"),
        Rival("torch.compile"),
        Rival("Liger", (BOTH,)),
        Rival("quack", (BOTH,)),
    ),
    published=Grid(_CHUNK_LOSS_SHAPES, BOTH_DTYPES, (BOTH,)),
    full=(
        Grid(_CHUNK_LOSS_SHAPES[:1], BOTH_DTYPES),
        Grid(_CHUNK_LOSS_SHAPES[1:], BOTH_DTYPES, (BOTH,)),
    ),
    quick=(Grid(((128, 8192),)), Grid(((128, 8192),), ("bfloat16",), (BOTH,), ("torch.compile",))),
)

LINEAR_CHUNK_LOSS = Feature(
    "linear_chunk_loss",
    (
        Rival("ours"),
        Rival("ours, 1 of 8"),
        Rival("chunk_loss(h @ w.T, inplace)", (BOTH,)),
        Rival("eager"),
        Rival("eager, rows of 1 of 8", LOSS_WORKS, "ours, 1 of 8"),
        Rival("naive chunk loop"),
        Rival("torch.compile"),
        Rival("F.linear_cross_entropy"),
        Rival("F.linear_cross_entropy, options"),
        Rival("TRL"),
        Rival("Liger", (BOTH,)),
        Rival("quack", (BOTH,)),
    ),
    published=Grid(
        ((1024, 256, 32000), (1024, 576, 49152), (2048, 768, 50257), (512, 2048, 128256)),
        works=(BOTH,),
    ),
    full=(
        Grid(((512, 576, 49152),), works=(FORWARD, BOTH)),  # rows, width, vocabulary
        Grid(((256, 256, 32000),)),
        # On a CPU the chunks' bfloat16 products take 30 times as long as all others together.
        Grid(
            ((256, 256, 32000),),
            ("bfloat16",),
            (FORWARD, BOTH),
            without=("F.linear_cross_entropy, options",),
        ),
    ),
    quick=(Grid(((128, 64, 8192),)),),
)

SEGMENT = Feature(
    "segment",
    (
        Rival("ours", (CALL,)),
        Rival("ours, norm", (CALL,)),
        Rival("ours, 2 threads", (CALL,)),
        Rival("ruptures KernelCPD", (CALL,)),
    ),
    published=Grid((), works=(CALL,)),  # bench_segment.py has a table of its own
    full=(
        Grid((("rationales", 1000),), works=(CALL,)),  # that many, of 12..40 units
        Grid(((200, 10), (1000, 20)), works=(CALL,), without=("ours, 2 threads",)),  # n, K
    ),
    quick=(
        Grid((("rationales", 100),), works=(CALL,)),
        Grid(((200, 10),), works=(CALL,), without=("ours, 2 threads",)),
    ),
)

_STEP_MODELS = (("llama-49k", 4, 256), ("gpt2-50k", 4, 256), ("tiny", 8, 256))
_STEP_KINDS = ("CWT", "FTT")  # loss on one chunk of eight, or on the whole rationale


def _steps(models: tuple[tuple[str, int, int], ...]) -> Grid:
    """Returns a grid of models, sequences and tokens of each, with both kinds of batches."""
    shapes = ((name, kind, *size) for name, *size in models for kind in _STEP_KINDS)
    return Grid(tuple(shapes), works=(STEP,))


TRAINING_STEP = Feature(
    "training_step",
    (
        Rival("ours", (STEP,)),
        Rival("ours, chunk_loss on all logits", (STEP,)),
        Rival("plain loop, all logits", (STEP,)),
        Rival("plain loop, masked rows", (STEP,)),
        Rival("TRL", (STEP,)),
    ),
    published=_steps((*_STEP_MODELS, ("smollm2-135m", 4, 256))),
    full=(_steps(_STEP_MODELS),),
    quick=(_steps((("llama-49k", 1, 64), ("tiny", 4, 64))),),
)

FEATURES = {
    feature.name: feature for feature in (CHUNK_LOSS, LINEAR_CHUNK_LOSS, SEGMENT, TRAINING_STEP)
}


def declared(quick: bool) -> list[Case]:
    """Returns every case that `make bench` has to measure, or to skip with a reason."""
    return [case for feature in FEATURES.values() for case in feature.cases(quick)]
