"""When a unit may be left out, as data, and the decision on one unit with its evidence."""

from dataclasses import dataclass
from typing import Any, Literal

from cwt.errors import UserError

JudgeName = Literal["forward", "literal"]
Granularity = Literal["unit", "chunk"]


@dataclass(frozen=True)
class SkipCriterion:
    """When a unit may be left out.

    A reference pass over the units that stay finds the later tokens that the student is sure of:
    its first choice (the arg-max), with a probability of at least min_probability. A unit is left
    out if without it each of those tokens is still predicted, and the answer is still likely.

    Attributes:
        judge: forward asks about every later token that the student is sure of. literal asks only
            whether the answer survives with all other units in place; later units repeat the
            result, so it deletes steps that are needed.
        min_probability: the student is sure of a token from this probability on, in the reference
            pass.
        check_unit_starts: count the first token of each unit too. It mostly says which sentence
            comes next, so by default it does not count.
        min_probability_after: a token is no longer predicted if it is not the first choice, or if
            its probability is below this; 0 asks only for the first choice.
        max_answer_nll_rise: keep the unit if leaving it out raises the answer's negative
            log-likelihood (NLL) by more than this, in nats.
        cumulative: judge units from left to right, without those already left out; otherwise
            judge each with all others in place.
        granularity: what is decided as one: a unit, or a chunk with all its units.
        lookahead_tokens: in ratified rounds, how many opening tokens of a unit are compared with
            those of the next unit, at most.
        search_passes: tokens that the search of an example may read, as a multiple of its own
            tokens; the units after that are not searched: they stay as they are, and are counted.
            0: no limit.
    """

    judge: JudgeName = "forward"
    min_probability: float = 0.9
    check_unit_starts: bool = False
    min_probability_after: float = 0.0
    max_answer_nll_rise: float = 0.5
    cumulative: bool = True
    granularity: Granularity = "unit"
    lookahead_tokens: int = 12
    search_passes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_probability", "min_probability_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if not self.max_answer_nll_rise >= 0:
            raise UserError(
                f"max_answer_nll_rise must be at least 0, got {self.max_answer_nll_rise}."
            )
        if self.lookahead_tokens < 1:
            raise UserError(f"lookahead_tokens must be at least 1, got {self.lookahead_tokens}.")
        if not self.search_passes >= 0:
            raise UserError(f"search_passes must be at least 0, got {self.search_passes}.")


@dataclass(frozen=True)
class Decision:
    """Whether one unit was left out, and on what evidence.

    Attributes:
        id: of the example.
        unit: its index in the example.
        text: of the unit.
        skipped: whether it was left out.
        flipped: the later tokens that are no longer predicted without the unit: text, unit, and
            the probability with and without it; empty in ratified rounds. In a long rationale they
            are those that were read until the decision was clear.
        answer_rise: how much the NLL of the answer's value rises without the unit, in nats; None
            where the judge does not ask, or had decided before it came to the answer.
        write_nll: in ratified rounds, the NLL of the unit's opening at its place, in nats.
        pass_nll: in ratified rounds, the NLL of the next unit's opening at that place, in nats.
        score: what a rival judge ranks the unit by, in nats: its step entropy, or what it costs to
            leave it out; None where it was never ranked.
        searched: whether the unit was decided at all: not where search_passes were spent.
    """

    id: str
    unit: int
    text: str
    skipped: bool
    flipped: list[dict[str, Any]]
    answer_rise: float | None
    write_nll: float | None = None
    pass_nll: float | None = None
    score: float | None = None
    searched: bool = True
