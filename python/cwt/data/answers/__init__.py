"""Reads the answer out of a text and judges whether two answers are the same."""

from cwt.data.answers.graders import Kind, grade, kind_of
from cwt.data.answers.quantities import plain
from cwt.data.answers.statement import last_statement

MARKER = "The answer is "
_LONGEST = 2000  # characters of an answer that are read


def extract_answer(text: str) -> str | None:
    """Returns what a text states as its answer, or None where it states none.

    The last statement wins; `statement.last_statement` lists what is understood. The answer is
    returned as it is written: "$9$", "**42**" and "12 cm" are for `same_answer` to read.

    Example:
        >>> extract_answer("18 in all. Wait, I forgot to halve it. So the answer is 9, as 18 / 2.")
        '9'
    """
    statement = last_statement(text)
    return statement.answer if statement else None


def same_answer(given: str | None, wanted: str, kind: Kind | None = None) -> bool:
    """Returns whether a given answer equals the wanted one.

    The kind of the wanted answer decides how they are compared, see `cwt.data.answers.graders`.
    Numbers are compared exactly, in any spelling ("1,200" is "1200.0", "3 1/2" is "3.5", "-3" is
    not "3"), a letter is found in "(C) 05/01/2021", yes in "yes, it is"; formulas go to
    math-verify. Whatever the texts say, the verdict comes in bounded time (`formula.SECONDS` for a
    formula), in any thread or process, and no text raises an error.

    Args:
        given: what was answered; None is never right.
        wanted: the gold answer.
        kind: how to compare; by default what `answer_kind` finds in the gold answer.

    Raises:
        UserError: a formula has to be compared and math-verify cannot be started.
    """
    if given is None:
        return False
    a, b = plain(given[:_LONGEST]), plain(wanted[:_LONGEST])
    if not a or not b:
        return False
    if a == b or ("\\" not in b and a.casefold() == b.casefold()):
        return True
    return grade(kind or kind_of(b), a, b)


def answer_kind(wanted: str) -> Kind:
    """Returns the kind of a gold answer: number, range, choice, yes_no, date, time, math, string.

    Example:
        >>> [answer_kind(gold) for gold in ("$1,200", "(C)", "yes", "05/01/2021", "red")]
        ['number', 'choice', 'yes_no', 'date', 'string']
    """
    return kind_of(plain(wanted[:_LONGEST]))
