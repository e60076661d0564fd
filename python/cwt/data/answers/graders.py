# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""One grader a kind of answer. The gold answer decides the kind, see `kind_of`.

kind     gold answers                        what is compared
number   12, $1,234.50, 3 1/2, 1.2e3, 5 cm   the value, exactly; a unit only where both have one
range    3-5, 10 to 20                       both ends, in order
choice   C, (C), (C) 05/01/2021              the letter that the answer settles on
yes_no   yes, no, True, False                the first yes/no/true/false, a "not" before it counts
date     05/01/2021, May 1, 2021             the day
time     12:30, 7 p.m., 2:3                  the time of day, or the ratio
math     \\sqrt{2}, x^2+1, (1, 2), {1, 2}     the elements, then math-verify in bounded time
string   everything else                     the words, without case, quotes and what follows

A grader gets both answers as `plain` made them, and never raises.
"""

import re
from collections.abc import Callable
from typing import Literal, get_args

from cwt.data.answers.dates import (
    day_first,
    find_date,
    find_ratio,
    find_time,
    is_date,
    is_ratio,
    is_time,
)
from cwt.data.answers.formula import LATEX
from cwt.data.answers.mathematics import grade_math
from cwt.data.answers.number import DENIAL, grade_number, grade_range, is_number, is_range

Kind = Literal["number", "range", "choice", "yes_no", "date", "time", "math", "string"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_POLAR = {"yes": True, "true": True, "no": False, "false": False}
_POLAR_WORD = re.compile(r"(?P<word>yes|no|true|false)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"\.\s|[!?;\n]|\s\(|\s(?:because|since)\s"
    r"|,\s(?=(?:which|because|since|as|so|it|he|she|they|the|this|that|not|who|where)\b)"
)
_DETERMINER = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|with|of|in|by|makes?|gives?|there|that|find)$", re.I
)
_LEADS_TO = re.compile(
    r"\b(?:is|was|be|says?|that|it's|answers?|likely|probably|possibly|definitely|certainly|clearly|"
    r"simply|generally|technically|trivially|obviously|almost|really|still|also|so|then|both|mostly|"
    r"not|never)$",
    re.IGNORECASE,
)
_NOUN = re.compile(r"\s(?!(?:to|because|since|as|and|but|they|it|he|she|the|you|we|i|a)\b)[a-z]")
_LETTER_GOLD = re.compile(r"\(?([A-J])[).:]?|\(([A-Ja-j])\)(?:\s.*)?|([A-J])[).:]\s.+", re.DOTALL)
_ALGEBRA = re.compile(
    r"(?=.*(?:[-+*/=<>^()\[\],]|\d[a-z]))(?:[-+*/=<>^()\[\]{}|!.,\s\d]|sqrt|sin|cos|tan|log|ln|exp|pi"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)
_TWO_NUMBERS = re.compile(r"-?\d+,-?\d{1,2}")  # in a gold answer: 2,3 is two numbers
_NUMBER_LIST = re.compile(r"[-+\d.$/]+(?:\s?(?:,\s?(?:and\s)?|\sand\s)\s?[-+\d.$/]+)+")


def kind_of(wanted: str) -> Kind:
    """Returns the kind of a gold answer (as `plain` made it)."""
    if wanted.casefold() in _POLAR:
        return "yes_no"
    if _LETTER_GOLD.fullmatch(wanted):
        return "choice"
    if is_date(wanted):
        return "date"
    if is_time(wanted) or is_ratio(wanted):
        return "time"
    if is_range(wanted):
        return "range"
    if is_number(wanted) and not _TWO_NUMBERS.fullmatch(wanted):
        return "number"
    if LATEX.search(wanted) or _NUMBER_LIST.fullmatch(wanted):
        return "math"
    if any(c.isdigit() or c in "=+*^(" for c in wanted) and _ALGEBRA.fullmatch(wanted):
        return "math"
    return "string"


def grade(kind: Kind, given: str, wanted: str) -> bool:
    """Returns whether a given answer equals the wanted one, both as `plain` made them."""
    return _GRADERS[kind](given, wanted)


def _choice(given: str, wanted: str) -> bool:
    match = _LETTER_GOLD.fullmatch(wanted)
    if match is None:
        return False
    letter = next(g for g in match.groups() if g).upper()
    found = settled_letter(given)
    if found is None:
        text = re.sub(r"^\(?[A-Ja-j][).:]?\s*", "", wanted)
        return bool(text) and grade(kind_of(text), given, text)
    return found == letter


def settled_letter(text: str) -> str | None:
    """Returns the choice that a text settles on: "(C) 05/01/2021", "C.", "option C", or None."""
    if re.fullmatch(r"\(?([A-Ja-j])\)?[).:]?", text):
        return text.strip("().:").upper()
    patterns = (
        r"\(([A-Ja-j])\)",
        r"^([A-J])(?=[).:,]|\s?[-–—]\s|\s[^a-z\s])",
        r"^([B-HJ])(?=\s)",
        r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)\s([A-J])\b",
        r"(?<![\w'’])([B-HJ])(?![\w'’])",
    )
    for pattern in patterns:
        found = list(re.finditer(pattern, text))
        kept = [m for m in found if not DENIAL.search(text[: m.start()])]
        letters = [m.group(1).upper() for m in kept]
        if letters:
            both = len(set(letters)) > 1 and re.search(
                rf"{re.escape(kept[0].group())}\s?(?:,|and|or|&|/)\s?(?:option\s|choice\s)?"
                rf"{re.escape(kept[1].group())}|\bboth\b",
                text,
            )
            also = re.match(r"[A-J]\s?(?:and|or|&|/|,)\s?\(?[A-J]\b", text[kept[0].start() :])
            return None if both or also else letters[0]
        if found:
            return None
    return None


def _yes_no(given: str, wanted: str) -> bool:
    gold = polarity(wanted)
    return gold is not None and polarity(given) is gold


def polarity(text: str) -> bool | None:
    """Returns True for yes, False for no, None where a text says neither or both.

    The first yes, no, true or false that opens a clause or follows a word such as "is" or "likely"
    counts; "not" before it turns it ("not true" is no), "yes or no" says nothing.
    """
    if re.search(r"\b(?:yes|true)\W{1,3}(?:and|or|/)\W{1,3}(?:no|false)\b|yes/no", text, re.I):
        return None
    if len(_POLAR_WORD.findall(text)) > 1 and not re.search(r"\w", _POLAR_WORD.sub("", text)):
        return None  # "yes no", "yes yes"
    for match in _POLAR_WORD.finditer(text):
        before, after = text[: match.start()].rstrip(), text[match.end() :]
        if before.endswith(("-", "'", "’")) or after.startswith(("-", "'", "’", "_")):
            continue
        value = _POLAR[match["word"].lower()]
        if DENIAL.search(text[: match.start()]):
            return not value
        if before[-1:].isalnum() and not _LEADS_TO.search(before):
            continue  # "the statement that yes means": not where an answer stands
        if match["word"].lower() == "no" and _DETERMINER.search(before) and _NOUN.match(after):
            continue  # "there is no evidence"
        return value
    return None


def _date(given: str, wanted: str) -> bool:
    gold = find_date(wanted)
    found = find_date(given, day_first(wanted))
    if gold is None or found is None:
        return False
    years = (gold.year, found.year)
    return (gold.month, gold.day) == (found.month, found.day) and (
        years[0] == years[1] or gold.year is None
    )


def _time(given: str, wanted: str) -> bool:
    gold, found = find_time(wanted), find_time(given)
    if gold is not None and found is not None:
        return gold[:3] == found[:3] and (gold[3] == found[3] or not gold[3] or not found[3])
    ratio = find_ratio(wanted)
    return gold is None and ratio is not None and find_ratio(given) == ratio


def _string(given: str, wanted: str) -> bool:
    gold = _bare_words(wanted)
    if not gold:
        return False
    return any(_bare_words(text) == gold for text in (given, _CLAUSE.split(given)[0]))


def _bare_words(text: str) -> str:
    text = re.sub(r"^(?:the|a|an)\s(?=\w{2})", "", text.casefold().strip(" \t\"“”'‘’.!,:;"))
    return re.sub(r"\s+", " ", text).strip(" \"“”'‘’.!,:;")


_GRADERS: dict[Kind, Callable[[str, str], bool]] = {
    "number": grade_number,
    "range": grade_range,
    "choice": _choice,
    "yes_no": _yes_no,
    "date": _date,
    "time": _time,
    "math": grade_math,
    "string": _string,
}
