"""What a judge asks before it lets a unit go, and the decision that it comes to."""

from dataclasses import dataclass
from typing import Any, Literal

from cwt.errors import UserError

JudgeName = Literal["forward", "literal"]
Granularity = Literal["unit", "chunk"]


@dataclass(frozen=True)
class SkipCriterion:
    """When a unit may be left out.

    A reference pass over the units that stay tells which later tokens the student is sure of: they
    are its first choice (the arg-max) with a probability of at least min_probability. A unit is
    left out if none of those tokens is upset without it, and the answer stays as likely.

    Attributes:
        judge: forward asks about every later token that the student is sure of. literal asks only
            whether the answer survives with all other units in place; later units repeat the
            result, so it deletes steps that are needed.
        min_probability: least probability, in the reference pass, of a token that a skip must not
            upset.
        check_unit_starts: the first token of a unit counts too. It mostly says which sentence comes
            next, so by default it does not.
        min_probability_after: a token is upset when it stops being the first choice, or when its
            probability falls below this; 0 asks for the first choice alone.
        max_answer_nll_rise: keep the unit if leaving it out raises the answer's negative
            log-likelihood (NLL) by more than this, in nats.
        cumulative: judge left to right, with the units already left out gone; otherwise each with
            all others in place.
        granularity: what is left out as one: a unit, or a chunk with all its units.
        lookahead_tokens: of ratified rounds: at most so many opening tokens of a unit are compared
            with those of the next one.
    """

    judge: JudgeName = "forward"
    min_probability: float = 0.9
    check_unit_starts: bool = False
    min_probability_after: float = 0.0
    max_answer_nll_rise: float = 0.5
    cumulative: bool = True
    granularity: Granularity = "unit"
    lookahead_tokens: int = 12

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


@dataclass(frozen=True)
class Decision:
    """Whether one unit was left out, and on what evidence.

    Attributes:
        id: of the example.
        unit: its index in the example.
        text: of the unit.
        skipped: whether it was left out.
        flipped: the later tokens that were upset: text, unit, and the probability with and without
            the unit; none where the decision was ratified.
        answer_rise: how much the NLL of the answer's value rises without the unit, in nats.
        write_nll: where it was ratified, the NLL of the unit's opening at its place, in nats.
        pass_nll: the same of the opening of the unit that follows it.
    """

    id: str
    unit: int
    text: str
    skipped: bool
    flipped: list[dict[str, Any]]
    answer_rise: float
    write_nll: float | None = None
    pass_nll: float | None = None
