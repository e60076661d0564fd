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
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from cwt.data.dates import (
    day_first,
    find_date,
    find_ratio,
    find_time,
    is_date,
    is_ratio,
    is_time,
)
from cwt.data.formula import same_formula
from cwt.data.quantities import Quantity, quantities

Kind = Literal["number", "range", "choice", "yes_no", "date", "time", "math", "string"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_POLAR = {"yes": True, "true": True, "no": False, "false": False}
_POLAR_WORD = re.compile(r"(?P<word>yes|no|true|false)\b", re.IGNORECASE)
_DETERMINER = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|with|of|in|by|makes?|gives?|there|that|find)$", re.I
)
_NOUN = re.compile(r"\s(?!(?:to|because|since|as|and|but|they|it|he|she|the|you|we|i|a)\b)[a-z]")
_LETTER_GOLD = re.compile(r"\(?([A-J])[).:]?|\(([A-Ja-j])\)(?:\s.*)?|([A-J])[).:]\s.+", re.DOTALL)
_DENIAL = re.compile(
    r"(?:\bnot|n't|\bnever|\bno longer|\bneither|\brather than|\binstead of)\s(?:[a-z]+\s)?\W{0,2}$",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\sthan|[<>≤≥±]|\\pm)\s?$", re.IGNORECASE
)
_BETWEEN_LIST = re.compile(
    r"[\s,;&/]*(?:and|or|to|,|;|&|/|-)(?:\s?(?:and|or|then))?[\s$€£]*|\s+", re.IGNORECASE
)
_WORDS = re.compile(r"[^\W\d_]{3,}")
_MATHEMATICS = re.compile(r"\\[A-Za-z{]|[\^√π∞∪∩≤≥±]|\w_\w|\w_\{")
_ALGEBRA = re.compile(
    r"(?=.*(?:[-+*/=<>^()\[\],]|\d[a-z]))(?:[-+*/=<>^()\[\]{}|!.,\s\d]|sqrt|sin|cos|tan|log|ln|exp|pi"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)
_NUMBER_LIST = re.compile(r"[-+\d.$/]+(?:\s?(?:,\s?(?:and\s)?|\sand\s)\s?[-+\d.$/]+)+")
_RANGE = re.compile(r"[$€£]?[\d.,]+\s?%?\s?(?:-|to|\.\.)\s?[$€£]?[\d.,]+\s?[A-Za-z%]*")


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
    if _RANGE.fullmatch(wanted) and len(quantities(wanted)) == 2:
        return "range"
    if _is_number(wanted):
        return "number"
    if _MATHEMATICS.search(wanted) or _NUMBER_LIST.fullmatch(wanted):
        return "math"
    if any(c.isdigit() or c in "=+*^(" for c in wanted) and _ALGEBRA.fullmatch(wanted):
        return "math"
    return "string"


def _is_number(text: str) -> bool:
    found = quantities(text)
    if not found:
        return False
    rest = text[: found[0].start].strip() + text[found[-1].end :]
    if len(found) > 1 and not _is_compound(text, found):
        return False
    return re.fullmatch(r"\s?(?:%|°\s?[CF]?|[€£]|(?:[A-Za-z/]+(?:\^[23])?[ .-]?){0,4})", rest) is not None


def grade(kind: Kind, given: str, wanted: str) -> bool:
    """Returns whether a given answer equals the wanted one, both as `plain` made them."""
    return _GRADERS[kind](given, wanted)


def _number(given: str, wanted: str) -> bool:
    gold = quantities(wanted)
    if len(gold) != 1:  # 2 hours and 30 minutes
        return _compound(given, wanted)
    text = _first_with_number(_without_unit_powers(given))
    found = quantities(text)
    if _is_formula(text, found):
        return _same_formula(_right_side(given), wanted)
    if not found:
        return False
    if len(found) > 1 and "=" not in text and _is_compound(text, found):
        return _same_total(found, gold[0])
    chosen = _chosen(text, found)
    return chosen is not None and _same_quantity(chosen, gold[0])


def _without_unit_powers(text: str) -> str:
    return re.sub(r"(?<=[A-Za-z]{2})\s?\^\{?[23]\}?|(?<=\bm)\^\{?[23]\}?", "", text)


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
    if _MATHEMATICS.search(rest) or re.search(r"0\s?!|\bsqrt\b|\bpi\b", rest):
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
    if _DENIAL.search(before) or _BOUND.search(before):
        rest = [q for q in found[1:]]
        return rest[0] if _DENIAL.search(before) and len(rest) == 1 else None
    if len(found) == 1 or all(q.value == first.value for q in found):
        return first
    second = found[1]
    between = text[first.end : second.start]
    words = r"\s?(?:%|°|€|£|(?:[A-Za-z]+\s?){0,3}?)"
    match = re.fullmatch(words + r"(?P<rest>.*)", between, re.DOTALL)
    joined = match and re.fullmatch(rf"{words}(?:{_BETWEEN_LIST.pattern})", between)
    if joined and not re.search(r"\b(?:of|out|in|per|for|at|by|than|from|is|are|was)\b", between):
        return None
    return first


def _is_compound(text: str, found: Sequence[Quantity]) -> bool:
    """Returns whether all numbers are one amount: 2 hours and 30 minutes, 5 feet 6 inches."""
    if not 1 < len(found) <= 3:
        return False
    units = [q.unit for q in found]
    known = [u for u in units if u is not None]
    falling = all(a[0] == b[0] and a[1] > b[1] for a, b in zip(known, known[1:]))
    gaps = [text[a.end : b.start] for a, b in zip(found, found[1:])]
    near = all(re.fullmatch(r"\s?[A-Za-z]+,?\s(?:and\s)?", gap) for gap in gaps)
    return len(known) == len(units) and falling and near


def _total(found: Sequence[Quantity]) -> tuple[str, Fraction]:
    units = [q.unit for q in found]
    sizes = [u for u in units if u is not None]
    return sizes[0][0], sum((q.value * u[1] for q, u in zip(found, sizes)), Fraction())


def _same_total(found: Sequence[Quantity], gold: Quantity) -> bool:
    dimension, total = _total(found)
    if gold.unit is not None:
        return gold.unit[0] == dimension and total == gold.value * gold.unit[1]
    return any(q.unit is not None and total == gold.value * q.unit[1] for q in found)


def _compound(given: str, wanted: str) -> bool:
    gold, found = quantities(wanted), quantities(given)
    if not found or not (len(found) == 1 or _is_compound(given, found)):
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
    elif wanted.words and given.words and not given.unit and not wanted.unit:
        if not set(given.words) & set(wanted.words):
            return False
    return any(_close(a, b) for a in values for b in golds)


def _close(given: Fraction, wanted: Fraction) -> bool:
    """Exact, but for the last digits of a binary fraction: 0.30000000000000004 is 0.3."""
    return given == wanted or abs(given - wanted) <= abs(wanted) * Fraction(1, 10**12)


def _range(given: str, wanted: str) -> bool:
    gold = _ends(wanted)
    return gold is not None and _ends(given) == gold


def _ends(text: str) -> tuple[Fraction, Fraction] | None:
    text = re.sub(r"^.*?\b(?:between|from)\b", "", text.replace(" and ", " to "))
    found = quantities(re.sub(r"(?<=[\d%])\s?(?:-|\.\.)\s?(?=[$€£\d])", " to ", text))
    return (found[0].value, found[1].value) if len(found) == 2 else None


def _choice(given: str, wanted: str) -> bool:
    match = _LETTER_GOLD.fullmatch(wanted)
    assert match is not None
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
        kept = [m for m in found if not _DENIAL.search(text[: m.start()])]
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
    return polarity(given) is _POLAR[wanted.casefold()]


def polarity(text: str) -> bool | None:
    """Returns True for yes, False for no, None where a text says neither or both.

    The first yes, no, true or false that is a word of its own counts; "not" before it turns it
    ("not true" is no), "yes or no" says nothing.
    """
    if re.search(r"\b(?:yes|true)\W{1,3}(?:and|or|/)\W{1,3}(?:no|false)\b|yes/no", text, re.I):
        return None
    for match in _POLAR_WORD.finditer(text):
        before, after = text[: match.start()].rstrip(), text[match.end() :]
        if before and before[-1] in "-'’" or after[:1] in ("-", "'", "’", "_"):
            continue
        value = _POLAR[match["word"].lower()]
        if _DENIAL.search(text[: match.start()]):
            return not value
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
    return gold is None and find_ratio(given) == find_ratio(wanted)


def _math(given: str, wanted: str) -> bool:
    given, wanted = _normal_formula(given), _normal_formula(wanted)
    if re.sub(r"\s", "", given) == re.sub(r"\s", "", wanted):
        return True
    pair = _elements(given), _elements(wanted)
    if pair[1] is not None and len(pair[1][1]) > 1:
        return pair[0] is not None and _same_elements(pair[0], pair[1])
    if pair[0] is not None and len(pair[0][1]) > 1:
        return False
    inside = re.findall(r"(?<!\\)\$([^$]+)\$|\\\((.+?)\\\)", given[:2000])
    if inside and len(inside) == 1:
        given = inside[0][0] or inside[0][1]
    words = _WORDS.findall(re.sub(r"\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp", "", given))
    if len(words) > len(_WORDS.findall(re.sub(r"\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp", "", wanted))):
        given = re.split(r"\.\s|,\s[a-z]{3}|\s(?:because|since|which|or)\s", given)[0]
    return _same_formula(given, wanted)


def _same_formula(given: str, wanted: str) -> bool:
    """Returns whether math-verify says so, where it can be trusted."""
    given, wanted = _normal_formula(given), _normal_formula(wanted)
    texts = [re.sub(r"\s", "", text) for text in (given, wanted)]
    if texts[0].casefold() == texts[1].casefold():  # \Delta is not \delta
        return texts[0] == texts[1]
    rounded = [re.fullmatch(r"-?\d*\.\d{5,}", text) is not None for text in texts]
    symbolic = [re.search(r"\\?(?:pi|sqrt|ln|log|sin|cos|tan|frac)|[π√]", t) for t in texts]
    if (rounded[0] and symbolic[1]) or (rounded[1] and symbolic[0]):
        return False  # math-verify rounds to six digits: 3.14159265 would be \pi
    return same_formula(given, wanted)


def _normal_formula(text: str) -> str:
    text = re.sub(r"\\?sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    return re.sub(r"_\{?\s?(\w)\s?\}?", r"_\1", text)


def _elements(text: str) -> tuple[str, list[str]] | None:
    """Returns the brackets and the elements of a list, tuple, set or interval."""
    text = re.sub(r"^\s*(?:\\?[A-Za-z]\w?\s?(?:=|\\in|∈)\s?)", "", text).strip()
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
        parts = [p for part in parts for p in re.split(r"\band\b|\\text\{ and \}", part)]
    cleaned = [p.strip() for p in parts if p.strip()]
    return (brackets, cleaned) if cleaned else None


def _balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _same_elements(given: tuple[str, list[str]], wanted: tuple[str, list[str]]) -> bool:
    (brackets, ours), (gold_brackets, gold) = given, wanted
    unordered = {"", "{}"}
    if brackets != gold_brackets and not {brackets, gold_brackets} <= unordered:
        return False
    if len(ours) != len(gold):
        return False
    if gold_brackets in unordered and len(gold) <= 20:
        rest = list(gold)
        for element in ours:
            same = next((g for g in rest if _same_element(element, g)), None)
            if same is None:
                return False
            rest.remove(same)
        return True
    return all(_same_element(a, b) for a, b in zip(ours, gold))


def _same_element(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    kind = kind_of(wanted)
    return grade(kind if kind in ("number", "math") else "string", given, wanted)


def _string(given: str, wanted: str) -> bool:
    gold = _bare_words(wanted)
    if not gold:
        return False
    candidates = [given, re.split(r"\.\s|[!?;\n]|\s\(|,\s(?=(?:which|because|since|as|so|it|he|she|they|the|this|that|not|who|where)\b)|\s(?:because|since)\s", given)[0]]
    return any(_bare_words(c) == gold for c in candidates)


def _bare_words(text: str) -> str:
    text = re.sub(r"^(?:the|a|an)\s(?=\w{2})", "", text.casefold().strip(" \t\"“”'‘’.!,:;"))
    return re.sub(r"\s+", " ", text).strip(" \"“”'‘’.!,:;")


_GRADERS: dict[Kind, Callable[[str, str], bool]] = {
    "number": _number,
    "range": _range,
    "choice": _choice,
    "yes_no": _yes_no,
    "date": _date,
    "time": _time,
    "math": _math,
    "string": _string,
}
