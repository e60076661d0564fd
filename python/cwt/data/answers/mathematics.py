"""Compares formulas, lists, sets, tuples and intervals."""

import re
from dataclasses import dataclass

from cwt.data.answers.formula import normal_formula, same_formula
from cwt.data.answers.number import is_number, same_number


def grade_math(given: str, wanted: str) -> bool:
    """Returns whether two formulas, or two lists of any brackets, are equal.

    Sets and bare lists ("3 and 5") have no order, tuples and intervals have. math-verify is asked
    once at most.
    """
    given, wanted = normal_formula(given), normal_formula(wanted)
    if re.sub(r"\s", "", given) == re.sub(r"\s", "", wanted):
        return True
    if same_number(given, wanted):  # 2,3 may be a decimal
        return True
    ours, gold = _elements(given), _elements(wanted)
    if max(len(ours.parts), len(gold.parts)) > 1:
        verdict = _same_elements(ours, gold)
        return same_formula(ours.text, gold.text) if verdict is None else verdict
    return same_formula(_formula_alone(given, wanted), wanted)


def _formula_alone(given: str, wanted: str) -> str:
    """Returns the formula of a sentence: what stands between dollars, else its first clause."""
    inside = re.findall(r"(?<!\\)\$([^$]+)\$|\\\((.+?)\\\)", given)
    if len(inside) == 1:
        return str(inside[0][0] or inside[0][1])
    if len(_words(given)) > len(_words(wanted)):
        return re.split(r"\.\s|,\s[a-z]{3}|\s(?:because|since|which|or)\s", given)[0]
    return given


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{3,}", re.sub(r"\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp", "", text))


@dataclass(frozen=True)
class _List:
    """Brackets ("" for a bare list), elements, and the text without a leading "x ="."""

    brackets: str
    parts: tuple[str, ...]
    text: str

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}")


def _elements(text: str) -> _List:
    """Returns the brackets and the elements of a list, tuple, set or interval."""
    text = re.sub(r"^\s*\\?[A-Za-z]\w?\s?(?:=|\\in\b|∈)\s?", "", text).strip()
    match = re.fullmatch(r"(\\\{|[(\[{])(.*?)(\\\}|[)\]}])", text, re.DOTALL)
    brackets, inner = "", text
    if match and _balanced(match[2]):
        brackets, inner = (match[1] + match[3]).replace("\\", ""), match[2]
    parts, depth, start = [], 0, 0
    for i, char in enumerate(inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(inner[start:i])
            start = i + 1
    parts.append(inner[start:])
    if not brackets:
        parts = [p for part in parts for p in re.split(r"\b(?:and|or)\b", part)]
        parts = [re.sub(r"^\s*[A-Za-z]\w?\s?=", "", p) for p in parts]
    return _List(brackets, tuple(p.strip() for p in parts if p.strip()), text)


def _balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _same_elements(given: _List, wanted: _List) -> bool | None:
    """Returns whether two lists are equal, None where that depends on a formula in them."""
    if given.ordered != wanted.ordered or len(given.parts) != len(wanted.parts):
        return False
    if given.ordered and given.brackets != wanted.brackets:
        return False
    if given.ordered:
        verdicts = [_same_element(a, b) for a, b in zip(given.parts, wanted.parts, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    ours, gold = list(given.parts), list(wanted.parts)
    for element in given.parts:
        same = next((g for g in gold if _same_element(element, g)), None)
        if same is not None:
            ours.remove(element)
            gold.remove(same)
    if not ours:
        return True
    return False if all(is_number(element) for element in ours + gold) else None


def _same_element(given: str, wanted: str) -> bool | None:
    if re.sub(r"\s", "", given) == re.sub(r"\s", "", wanted):
        return True
    if re.fullmatch(r"[^\W\d_]+", given) and re.fullmatch(r"[^\W\d_]+", wanted):
        return given.casefold() == wanted.casefold()
    return same_number(given, wanted)
