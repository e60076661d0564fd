"""Draws train, validation and test of imported examples: by question, with a seed."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cwt.data.example import Example
from cwt.data.readers.raw import question_key
from cwt.errors import UserError


@dataclass
class Splits:
    """The examples of a run, and those that stand in no part.

    Attributes:
        train: samples to train on; a question may have several.
        validation: one sample a question.
        test: one sample a question.
        dropped: (example, reason) of every other one of `examples`.
        not_asked: (example, reason) of every other one of `eval_examples`.
    """

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    dropped: list[tuple[Example, str]] = field(default_factory=list)
    not_asked: list[tuple[Example, str]] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How many examples were dropped for each reason."""
        return Counter(reason for _, reason in (*self.dropped, *self.not_asked))


def draw_splits(
    examples: Sequence[Example],
    eval_examples: Sequence[Example] | None,
    sizes: tuple[int, int, int],
    seed: int,
) -> Splits:
    """Returns a seeded draw of three parts, no two of which share a question.

    Two questions are the same when they differ in white space and case only. All samples of a
    question stay together. Validation, and a test without `eval_examples`, take at most a quarter
    of the questions each.

    Args:
        examples: rationales to train on.
        eval_examples: test questions from a file of their own, drawn from and not taken in order
            (files are sorted); their questions leave the training part. None: the test comes
            from `examples`.
        sizes: wanted number of training samples, of validation questions and of test questions.
        seed: of the draw; the same seed and the same order give the same parts.

    Raises:
        UserError: a part would be empty.

    Example:
        >>> some = [Example(str(i), f"Q{i}", ("a.", " The answer is 1"), "1") for i in range(8)]
        >>> parts = draw_splits(some, None, (10, 1, 1), seed=0)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (6, 1, 1)
    """
    want_train, want_validation, want_test = sizes
    rng = random.Random(f"split-{seed}")
    splits = Splits()
    groups = _by_question(examples)
    limit = len(groups) // 4
    if eval_examples is None:
        asked = _draw(groups, rng, min(want_test, limit))
        splits.test, splits.dropped = _one_each(asked, "another sample of a test question")
    else:
        questions = _by_question(eval_examples)
        asked = _draw(questions, rng, want_test)
        splits.test, splits.not_asked = _one_each(asked, "repeated test question")
        splits.not_asked += [(e, "test question not drawn") for g in questions.values() for e in g]
        splits.dropped = [(e, "question of the test") for k in asked for e in groups.pop(k, ())]
        limit = len(groups) // 4
    chosen = _draw(groups, rng, min(want_validation, limit))
    splits.validation, others = _one_each(chosen, "another sample of a validation question")
    rest = [e for group in _draw(groups, rng, len(groups)).values() for e in group]
    splits.train = rest[:want_train]
    splits.dropped += others
    splits.dropped += [(e, "beyond the wanted training samples") for e in rest[want_train:]]
    if not (splits.train and splits.validation and splits.test):
        raise UserError(
            f"{len(examples)} usable rationales of {len(_by_question(examples))} questions are too "
            f"few to train, choose and test on (got {len(splits.train)} to train on, "
            f"{len(splits.validation)} to validate, {len(splits.test)} to test)."
        )
    return splits


def _by_question(examples: Iterable[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(question_key(example.question), []).append(example)
    return groups


def _draw(
    groups: dict[str, list[Example]], rng: random.Random, number: int
) -> dict[str, list[Example]]:
    """Takes a number of groups out of all; returns them."""
    keys = rng.sample(list(groups), min(number, len(groups)))
    return {key: groups.pop(key) for key in keys}


def _one_each(
    groups: dict[str, list[Example]], reason: str
) -> tuple[list[Example], list[tuple[Example, str]]]:
    """Returns the first sample of each question, and the others with the reason."""
    others = [(e, reason) for group in groups.values() for e in group[1:]]
    return [group[0] for group in groups.values()], others
