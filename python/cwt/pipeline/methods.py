"""The rows of the table, as data: what each trains, from which student, and what it is for.

A new row is one entry of METHODS; stages, reports, sweeps and the command line read it from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cwt.config import RunConfig
from cwt.errors import UserError
from cwt.training.recipe import BudgetUnit, ChunkMethod, Schedule, Target, Weigh

PARENT = "parent"  # stands for the row that config.train.parent names
CONTINUED = "continued"  # the row that trains the parent on for as long, nothing skipped

BatchSize = Literal["batch_size", "small_batch_size", "chunk_batch_size"]
SkipSource = Literal[
    "judge", "none", "literal", "oracle", "random", "truncation", "perplexity", "entropy", "upset",
    "surprisal", "sampled", "schedule", "like", "marked",
]  # fmt: skip
_MATCHED = {
    "random", "truncation", "perplexity", "entropy", "upset", "surprisal", "schedule",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: name of the row, and of its student's folder.
        label: what it is, in one line.
        target: what bears the loss.
        batch: the option of `train` that says how many samples a step has.
        budget_unit: what its budget counts; None: as configured.
        schedule: order of chunks in chunk-wise training; None: as configured.
        chunking: how units become chunks; None: as configured.
        dropout: whether middle units are left out at random, at the configured rate.
        parent: the row whose student it goes on from; None: the given student.
        skips: who decides which units are left out of the rationales it goes on with: a `judge`
            (in rounds that alternate with training), `none`, or a control. `schedule` leaves out
            more in every round, `like` what the matched row does, `marked` the same with a mark,
            `sampled` has the student write the rationales.
        ratify: in every other round the student confirms the judge's decisions, where configured.
        may_decline: whether it can wait until the student is ready to judge, and ends with the row
            `continued`, or its parent, where its own rounds are behind them.
        matches: the row whose number of skips per example it copies.
        mix_full: share of the full rationales that is added; None: as configured.
        weigh: what weighs the same in the loss of a step: every token, or every chunk.
        stage_marks: whether the number of its stage stands before each chunk.
        rechunk: how the chunks are searched anew at the beginning of every epoch; None: never.
        needs_roles: whether it needs generated examples, which say what each unit is.
        in_default: whether it runs where `methods` is `all`.
        diagnosed: whether a sweep diagnoses its student.
        compared_with: rows that a sweep compares it with.
    """

    name: str
    label: str
    target: Target = "rationale"
    batch: BatchSize = "batch_size"
    budget_unit: BudgetUnit | None = None
    schedule: Schedule | None = None
    chunking: ChunkMethod | None = None
    dropout: bool = False
    parent: str | None = None
    skips: SkipSource | None = None
    ratify: bool = True
    may_decline: bool = False
    matches: str | None = None
    mix_full: float | None = None
    weigh: Weigh = "token"
    stage_marks: bool = False
    rechunk: ChunkMethod | None = None
    needs_roles: bool = False
    in_default: bool = True
    diagnosed: bool = False
    compared_with: tuple[str, ...] = ()

    @property
    def in_rounds(self) -> bool:
        """Whether it alternates between deciding and training."""
        return self.skips in ("judge", "schedule")

    @property
    def is_matched(self) -> bool:
        """Whether it leaves out as many units as another row does, or a given share."""
        return self.skips in _MATCHED

    @property
    def may_be_parent(self) -> bool:
        """Whether skip-thinking training can go on from it."""
        return self.parent is None and self.target != "answer"


def _chunk_wise(name: str, label: str, **options: Any) -> Method:
    return Method(name, label, target="chunk", batch="chunk_batch_size", **options)


def _variant(name: str, label: str, **options: Any) -> Method:
    """Chunk-wise training with other chunks or another schedule than configured."""
    return _chunk_wise(name, label, in_default=False, **options)


def _matched(name: str, label: str, skips: SkipSource, **options: Any) -> Method:
    """A rival of STT: trains as long, on rationales that something else has shortened."""
    return Method(
        name, label, parent=PARENT, skips=skips, matches="STT", in_default=False,
        compared_with=("STT", "random-skips"), **options,
    )  # fmt: skip


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "answer-only",
            "question and answer, without the rationale; its budget counts processed tokens",
            target="answer",
            # An answer has only a few tokens. The whole budget in loss tokens would be tens of
            # times as many passes over the questions, so here it counts processed tokens.
            budget_unit="processed_tokens",
        ),
        Method("FTT", "full-thinking training: the whole rationale", diagnosed=True),
        Method(
            "FTT-small-batch",
            "the same in smaller batches: the control for the many small steps of CWT",
            batch="small_batch_size",
            diagnosed=True,
        ),
        Method(
            "FTT-sentence-dropout",
            "FTT-small-batch with each middle sentence left out at random, anew at every visit",
            batch="small_batch_size",
            dropout=True,
            compared_with=("FTT-small-batch",),
        ),
        _chunk_wise(
            "CWT",
            "chunk-wise training: one chunk a sample, everything before it as context",
            diagnosed=True,
            compared_with=("FTT", "FTT-small-batch"),
        ),
        _variant(
            "CWT-sbc",
            "CWT with chunks by search-based chunking (SBC), the greedy search",
            chunking="sbc",
            compared_with=("CWT",),
        ),
        _variant("CWT-sbc-exact", "CWT with the exact optimum of SBC", chunking="sbc-exact"),
        _variant("CWT-dp", "CWT with the most coherent chunks (DP)", chunking="dp"),
        _variant(
            "CWT-by-index",
            "CWT in which all samples of a step share one chunk index",
            schedule="by-index",
            compared_with=("CWT",),
        ),
        _variant(
            "CWT-adaptive",
            "CWT that draws chunks by the size of their gradients",
            schedule="adaptive",
            compared_with=("CWT",),
        ),
        _chunk_wise(
            "CWT-sentence-dropout",
            "CWT with each middle sentence left out at random",
            dropout=True,
            compared_with=("CWT",),
        ),
        Method(
            "CWT-one-pass",
            "the whole rationale in one pass, every chunk with the same weight in the loss",
            batch="small_batch_size",
            weigh="chunk",
            in_default=False,
            compared_with=("CWT", "FTT-small-batch"),
        ),
        _variant(
            "CWT-sbc-repeated",
            "CWT whose chunks are searched anew every epoch (SBC), after readers' notes on the "
            "paper",
            rechunk="sbc",
            compared_with=("CWT", "CWT-sbc"),
        ),
        _variant(
            "CWT-sbc-exact-repeated",
            "the same with the exact optimum of SBC",
            rechunk="sbc-exact",
            compared_with=("CWT", "CWT-sbc-repeated"),
        ),
        _variant(
            "CWT-sbc-repeated-marks",
            "CWT-sbc-repeated with the number of its stage before each chunk",
            rechunk="sbc",
            stage_marks=True,
            compared_with=("CWT", "CWT-sbc-repeated"),
        ),
        _variant(
            "CWT-stage-marks",
            "CWT with the number of its stage before each chunk, after readers' notes on the paper",
            stage_marks=True,
            compared_with=("CWT",),
        ),
        Method(
            CONTINUED,
            "the parent trained on for as long as STT, nothing skipped",
            parent=PARENT,
            skips="none",
        ),
        Method(
            "STT",
            "skip-thinking training: judge and student decide in turn; the best round is kept, or "
            "a student that skips nothing",
            parent=PARENT,
            skips="judge",
            may_decline=True,
            compared_with=(
                PARENT,
                CONTINUED,
                "STT-at-once",
                "STT-as-judged",
                "FTT-sentence-dropout",
                "oracle-skips",
            ),
        ),
        Method(
            "STT-at-once",
            "STT that always begins at once, and must end with one of its rounds",
            parent=PARENT,
            skips="judge",
            in_default=False,
            compared_with=(PARENT, CONTINUED),
        ),
        Method(
            "STT-as-judged",
            "STT-at-once without the rounds in which the student confirms the judge's decisions",
            parent=PARENT,
            skips="judge",
            ratify=False,
            in_default=False,
        ),
        Method(
            "literal-skips",
            "as long as STT, without what the `literal` judge lets go",
            parent=PARENT,
            skips="literal",
            compared_with=("random-skips",),
        ),
        Method(
            "random-skips",
            "as long as STT, without as many sentences as STT leaves out, drawn at random",
            parent=PARENT,
            skips="random",
            matches="STT",
        ),
        _matched(
            "truncation-skips",
            "as long as STT, the last sentences before the answer left out, as many as in STT",
            "truncation",
        ),
        _matched(
            "perplexity-skips",
            "the same, without those whose absence raises the answer's perplexity least",
            "perplexity",
        ),
        _matched(
            "entropy-skips",
            "the same, without those of the lowest step entropy",
            "entropy",
        ),
        _matched(
            "forward-skips",
            "the same, without those that what follows misses least: one judged round",
            "upset",
        ),
        _matched(
            "surprisal-tokens",
            "the same in tokens: without those that surprise the student least",
            "surprisal",
        ),
        _matched(
            "internalised",
            "the same, the first sentences left out, more a round (stepwise internalisation)",
            "schedule",
        ),
        Method(
            "shortest-correct",
            "as long as STT, on the shortest right rationale of some that the parent samples",
            parent=PARENT,
            skips="sampled",
            in_default=False,
            compared_with=("STT", CONTINUED),
        ),
        _matched(
            "STT-in-one-piece",
            "as long as STT, on what its chosen round was trained on, from the parent on",
            "like",
        ),
        _matched(
            "STT-mixed",
            "the same, with a quarter as many whole rationales added (long and short mixed)",
            "like",
            mix_full=0.25,
        ),
        _matched(
            "STT-skip-marks",
            "the same as STT-in-one-piece, with a mark where sentences are left out, after "
            "readers' notes on the paper",
            "marked",
        ),
        Method(
            "oracle-skips",
            "as long as STT, with the needed steps alone (generated tasks label them)",
            parent=PARENT,
            skips="oracle",
            needs_roles=True,
        ),
    )
}


def method_named(name: str) -> Method:
    """Returns a row of the table.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"method: wanted one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def parent_of(method: Method, config: RunConfig) -> str | None:
    """Returns the row whose student a method goes on from, None for the given student.

    Raises:
        UserError: the configured parent cannot be one.
    """
    if method.parent != PARENT:
        return method.parent
    name = config.train.parent
    if name not in METHODS or not METHODS[name].may_be_parent:
        known = ", ".join(m.name for m in METHODS.values() if m.may_be_parent)
        raise UserError(f"train.parent: wanted one of {known}, got {name!r}.")
    return name


def matched_row(method: Method, config: RunConfig) -> str | None:
    """Returns the row whose number of skips a method copies; None where a share is configured."""
    return None if method.is_matched and config.skip.matched_share else method.matches


def needs(method: Method, config: RunConfig) -> list[str]:
    """Returns the rows that must be trained before a method."""
    continued = CONTINUED if method.may_decline else None
    return [
        name for name in (parent_of(method, config), matched_row(method, config), continued) if name
    ]


def selected_methods(config: RunConfig) -> list[str]:
    """Returns the rows that a configuration asks for and those that they need, in table order.

    Raises:
        UserError: a row that does not exist, or that the data cannot have.
    """
    asked = [name.strip() for name in config.methods.split(",") if name.strip()]
    if asked == ["all"]:
        asked = [m.name for m in METHODS.values() if m.in_default]
        if config.data.file:
            asked = [name for name in asked if not METHODS[name].needs_roles]
    for name in asked:
        if name not in METHODS:
            raise UserError(f"methods: wanted some of {', '.join(METHODS)}, got {name!r}.")
        if METHODS[name].needs_roles and config.data.file:
            raise UserError(f"methods: {name} needs generated data, whose core steps are labelled.")
    wanted = list(asked)
    for name in wanted:
        wanted += [n for n in needs(METHODS[name], config) if n not in wanted]
    return [name for name in METHODS if name in wanted]


def chunkings(config: RunConfig) -> list[ChunkMethod]:
    """Returns the chunking methods that a run computes, in a fixed order."""
    every: tuple[ChunkMethod, ...] = get_args(ChunkMethod)
    if config.chunk.compare:
        return list(every)
    rows = [METHODS[name].chunking for name in selected_methods(config)]
    return [method for method in every if method in (config.chunk.method, *rows)]


def round_names(method: str, rounds: int) -> list[str]:
    """Returns the names of the students of the rounds of a row, in order."""
    return [f"{method}-round-{r}" for r in range(1, rounds + 1)]


def lineage(method: Method, config: RunConfig, student: str) -> list[str]:
    """Returns the students that were trained one after the other to get a student of a row."""
    parent = parent_of(method, config)
    if not parent:
        return [student]
    if not method.in_rounds:
        return [parent, student]
    rounds = round_names(method.name, config.skip.rounds)
    if student not in rounds:
        return list(dict.fromkeys([parent, student]))
    return [parent, *rounds[: rounds.index(student) + 1]]


def trained_for(method: Method, config: RunConfig, student: str) -> list[str]:
    """Returns all students that may have been trained for a row, with those that were not kept."""
    parent = parent_of(method, config)
    if parent and method.in_rounds:
        continued = [CONTINUED] if method.may_decline else []
        return [parent, *round_names(method.name, config.skip.rounds), *continued]
    return lineage(method, config, student)


def comparisons(config: RunConfig, names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs (a, b) that a sweep compares, among the rows that it has."""
    pairs = [
        (method.name, config.train.parent if other == PARENT else other)
        for method in METHODS.values()
        for other in method.compared_with
    ]
    return [(a, b) for a, b in dict.fromkeys(pairs) if a in names and b in names]
