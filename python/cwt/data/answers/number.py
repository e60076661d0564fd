"""Compares numbers and ranges: which number a text settles on, and whether it is the wanted one."""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from cwt.data.answers.formula import LATEX, same_formula
from cwt.data.answers.quantities import Quantity, quantities

# Searched in the text before a word: does it deny the word?
DENIAL = re.compile(
    r"(?:\bnot|n't|\bnever|\bno longer|\bneither|\brather than|\binstead of)\s(?:[a-z]+\s)?"
    r"\W{0,2}$",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\sthan|[<>≤≥±]|\\pm)\s?$",
    re.IGNORECASE,
)
_WORDS = r"\s?(?:%|°|€|£|(?:[A-Za-z]{1,20}\s?){0,3}?)"
_JOINED = re.compile(
    rf"{_WORDS}(?:[\s,;&/]{{0,3}}(?:and|or|to|,|;|&|/|-)(?:\s?(?:and|or|then))?[\s$€£]{{0,3}}|\s{{1,3}})",
    re.IGNORECASE,
)
_NOT_JOINED = re.compile(r"\b(?:of|out|in|per|for|at|by|than|from|is|are|was)\b")
_RANGE = re.compile(r"[$€£]?\d(?:[\d.,]*\d)?\s?%?\s?(?:-|to|\.\.)\s?[$€£]?\d[\d.,]*\s?[A-Za-z%]*")
_VARIABLE = re.compile(r"[abcnpqrtuvwxyz](?![A-Za-z])")  # 5x is no amount
_NO_THINGS = set("in all total of the left more less each per a an altogether remaining".split())
_LONGEST_GAP = 50  # characters between two numbers of a list
_AFTER_NUMBER = re.compile(r"\s?(?:%|°\s?[CF]?|[€£]|(?:[A-Za-z/]{1,20}(?:\^[23])?[ .-]?){0,4})")


def is_number(text: str) -> bool:
    """Returns whether a `plain` text is one amount and nothing else: 12, $5, 19 pounds, 3 1/2."""
    found = quantities(text)
    if not found or (len(found) > 1 and not _is_compound(text, found)):
        return False
    rest = text[found[-1].end :]
    if text[: found[0].start].strip() or _VARIABLE.match(rest):
        return False
    return len(rest) <= _LONGEST_GAP and _AFTER_NUMBER.fullmatch(rest) is not None


def is_range(text: str) -> bool:
    """Returns whether a `plain` text is a range and nothing else: 3-5, $10 to $20."""
    return _RANGE.fullmatch(text) is not None and len(quantities(text)) == 2


def same_number(given: str, wanted: str) -> bool | None:
    """Returns whether two texts are the same number, None where one of them is no number."""
    if not (is_number(given) and is_number(wanted)):
        return None
    ours, gold = quantities(given), quantities(wanted)
    return len(ours) == len(gold) == 1 and _same_quantity(ours[0], gold[0])


def grade_number(given: str, wanted: str) -> bool:
    gold = quantities(wanted)
    if len(gold) != 1:  # 2 hours and 30 minutes
        return _compound(given, wanted)
    text = _first_with_number(_without_asides(_without_unit_powers(given)))
    found = quantities(text)
    if _is_formula(text, found):
        return same_formula(_right_side(given), wanted)
    if not found:
        return False
    if len(found) > 1 and "=" not in text and _is_compound(text, found):
        return _same_total(found, gold[0])
    chosen = _chosen(text, found)
    return chosen is not None and _same_quantity(chosen, gold[0])


def _without_unit_powers(text: str) -> str:
    return re.sub(r"(?<=[A-Za-z]{2})\s?\^\{?[23]\}?|(?<=\bm)\^\{?[23]\}?", "", text)


def _without_asides(text: str) -> str:
    """Returns "12 (3 * 5 - 3 = 12)" as "12", if a number stands outside the brackets."""
    rest = re.sub(r"(?:^|(?<=\s))\([^()]*\)", "", text)
    return rest if quantities(rest) else text


def _first_with_number(text: str) -> str:
    """Returns the first sentence that holds a number: "8. 8 puppies are adopted" states 8."""
    for part in re.split(r"(?<=[^\s.])\.\s|[!?]\s|\n", text):
        if quantities(part):
            return part
    return text


def _is_formula(text: str, found: Sequence[Quantity]) -> bool:
    """Returns whether the text must be evaluated, rather than read."""
    rest = text
    for quantity in reversed(found):
        rest = rest[: quantity.start] + "0" + rest[quantity.end :]
    rest = re.sub(r"0\^|[A-Za-z]+\s?=\s?", "0", rest) if found and "^" not in rest else rest
    if LATEX.search(rest) or re.search(r"0\s?!|0[abcnpqrtuvwxyz]\b|\bsqrt\b|\bpi\b", rest):
        return True
    sums = re.fullmatch(r"[-+*/()0\s]+", rest.replace("=", "+"))
    return bool(sums) and len(found) > 1 and "=" not in text and bool(re.search(r"[+*/]", rest))


def _right_side(text: str) -> str:
    parts = [p for p in text.split("=") if any(c.isalnum() for c in p)]
    return parts[-1].strip() if parts and len(text) < 500 else text


def _chosen(text: str, found: Sequence[Quantity]) -> Quantity | None:
    """Returns the number that a text settles on, None where it settles on none."""
    equals = max(text.rfind("="), text.rfind("≈"))
    if equals >= 0:
        after = [q for q in found if q.start > equals]
        if len(after) == 1:
            return after[0]
        found = after or list(found)
    first = found[0]
    before = text[max(0, first.start - 30) : first.start]
    if _BOUND.search(before):
        return None
    if DENIAL.search(before):  # "not 5 but 7"
        return found[1] if len(found) == 2 else None
    if len(found) == 1:
        return first
    between = text[first.end : found[1].start]
    if between.strip() and all(q.value == first.value for q in found):
        return first
    listed = len(between) <= _LONGEST_GAP and _JOINED.fullmatch(between)
    return None if listed and not _NOT_JOINED.search(between) else first


def _is_compound(text: str, found: Sequence[Quantity]) -> bool:
    """Returns whether all numbers are one amount: 2 hours and 30 minutes, 5 feet 6 inches."""
    if not 1 < len(found) <= 3:
        return False
    units = [q.unit for q in found]
    known = [u for u in units if u is not None]
    falling = all(a[0] == b[0] and a[1] > b[1] for a, b in itertools.pairwise(known))
    gaps = [text[a.end : b.start] for a, b in itertools.pairwise(found)]
    near = all(re.fullmatch(r"\s?[A-Za-z]+,?\s(?:and\s)?", gap) for gap in gaps)
    return len(known) == len(units) and falling and near


def _total(found: Sequence[Quantity]) -> tuple[str, Fraction]:
    units = [q.unit for q in found]
    sizes = [u for u in units if u is not None]
    return sizes[0][0], sum((q.value * u[1] for q, u in zip(found, sizes, strict=True)), Fraction())


def _same_total(found: Sequence[Quantity], gold: Quantity) -> bool:
    dimension, total = _total(found)
    if gold.unit is not None:
        return gold.unit[0] == dimension and total == gold.value * gold.unit[1]
    return any(q.unit is not None and total == gold.value * q.unit[1] for q in found)


def _compound(given: str, wanted: str) -> bool:
    gold, found = quantities(wanted), quantities(given)
    if not found or not _is_compound(wanted, gold):
        return False
    if not (len(found) == 1 or _is_compound(given, found)):
        return False
    if len(found) == 1:
        return _same_total(gold, found[0])
    return _total(found) == _total(gold)


def _same_quantity(given: Quantity, wanted: Quantity) -> bool:
    values = {v for v in (given.value, given.other) if v is not None}
    golds = {v for v in (wanted.value, wanted.other) if v is not None}
    if given.percent != wanted.percent:
        values |= {v / 100 for v in values} if given.percent else {v * 100 for v in values}
    elif given.unit and wanted.unit and given.unit != wanted.unit:
        if given.unit[0] != wanted.unit[0]:
            return False
        values = {v * given.unit[1] / wanted.unit[1] for v in values}
    elif not (given.unit or wanted.unit) and _of_other_things(given.words, wanted.words):
        return False
    return any(_close(a, b) for a in values for b in golds)


def _of_other_things(given: Sequence[str], wanted: Sequence[str]) -> bool:
    """Returns whether both name what they count, and it is not the same: 5 apples, 5 pears."""
    ours, gold = set(given) - _NO_THINGS, set(wanted) - _NO_THINGS
    return bool(ours and gold) and not ours & gold


def _close(given: Fraction, wanted: Fraction) -> bool:
    """Exact, but for the last digits of a binary fraction: 0.30000000000000004 is 0.3."""
    return given == wanted or abs(given - wanted) <= abs(wanted) * Fraction(1, 10**12)


def grade_range(given: str, wanted: str) -> bool:
    gold = _ends(wanted)
    return gold is not None and _ends(given) == gold


def _ends(text: str) -> tuple[Fraction, Fraction] | None:
    text = re.sub(r"^.*?\b(?:between|from)\b", "", text.replace(" and ", " to "))
    found = quantities(re.sub(r"(?<=[\d%])\s?(?:-|\.\.)\s?(?=[$€£\d])", " to ", text))
    return (found[0].value, found[1].value) if len(found) == 2 else None
