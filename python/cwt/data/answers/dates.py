"""Reads dates, times of day and ratios."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MONTHS = (
    "january february march april may june july august september october november december".split()
)
_MONTH = "(?P<month>" + "|".join(rf"{m[:3]}(?:{m[3:]})?" for m in _MONTHS) + r"|sept)\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_WRITTEN = [
    re.compile(rf"\b{_MONTH}\s{{1,2}}{_DAY}\b(?:,?\s{{1,2}}{_YEAR}\b)?", re.IGNORECASE),
    re.compile(rf"\b{_DAY}(?:\sof)?\s{_MONTH}(?![a-z])(?:,?\s{_YEAR}\b)?", re.IGNORECASE),
    re.compile(
        r"(?<![\d/.-])(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?![\d/-])"
    ),
    re.compile(
        r"(?<![\d/.-])(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<year>\d{4}|\d{2})(?![\d/-])"
    ),
]
_CLOCK = re.compile(
    r"(?<![\d:.])(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2}))?)?"
    r"(?:\s?(?P<half>[ap])\.?\s?m\b\.?)?(?![\d:])",
    re.IGNORECASE,
)
_RATIO = re.compile(r"(?<![\d:])(\d{1,9}(?:\.\d{1,9})?)\s?:\s?(\d{1,9}(?:\.\d{1,9})?)(?![\d:])")


@dataclass(frozen=True)
class Date:
    """A day; the year is None where none is given."""

    year: int | None
    month: int
    day: int


def find_date(text: str, day_first: bool = False) -> Date | None:
    """Returns the first date of a text. 05/01/2021 is May 1, unless `day_first` or impossible."""
    found = [(m.start(), m) for pattern in _WRITTEN for m in pattern.finditer(text)]
    for _, match in sorted(found, key=lambda pair: pair[0]):
        parts = match.groupdict()
        if "a" in parts:
            first, second = int(parts["a"]), int(parts["b"])
            swap = first > 12 or (day_first and second <= 12)
            month, day = (second, first) if swap else (first, second)
        else:
            name = parts["month"].lower()
            month = int(name) if name.isdigit() else _month(name)
            day = int(parts["day"])
        year = int(parts["year"]) if parts["year"] else None
        if year is not None and len(parts["year"]) == 2:
            year += 2000 if year < 70 else 1900
        if 1 <= month <= 12 and 1 <= day <= 31:
            return Date(year, month, day)
    return None


def _month(name: str) -> int:
    return next(i for i, month in enumerate(_MONTHS, 1) if month.startswith(name[:3]))


def is_date(text: str) -> bool:
    """Returns whether a text is a date and nothing else."""
    return any(p.fullmatch(text) for p in _WRITTEN) and find_date(text) is not None


def day_first(text: str) -> bool:
    """Returns whether a date such as 31/12/2021 can only be read with the day first."""
    match = _WRITTEN[3].fullmatch(text)
    return match is not None and int(match["a"]) > 12


def find_time(text: str) -> tuple[int, int, int, str] | None:
    """Returns (hour, minute, second, "a", "p" or "") of the first time of day in a text."""
    for match in _CLOCK.finditer(text):
        hour, minute, second = (int(match[k] or 0) for k in ("hour", "minute", "second"))
        half = (match["half"] or "").lower()
        if not (match["minute"] or half) or hour > 24 or minute > 59 or second > 59:
            continue
        if hour > 12:
            hour, half = hour - 12, "p"
        return hour % 12, minute, second, half
    return None


def is_time(text: str) -> bool:
    """Returns whether a text is a time of day and nothing else, such as 12:30 or 7 p.m."""
    return _CLOCK.fullmatch(text) is not None and find_time(text) is not None


def find_ratio(text: str) -> Fraction | None:
    """Returns the first ratio of a text ("2:3") as a fraction."""
    match = _RATIO.search(text)
    if match is None or not Fraction(match[2]):
        return None
    return Fraction(match[1]) / Fraction(match[2])


def is_ratio(text: str) -> bool:
    """Returns whether a text is a ratio and nothing else."""
    return _RATIO.fullmatch(text) is not None and find_ratio(text) is not None
