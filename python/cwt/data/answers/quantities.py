# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""Reads numbers with their units out of a short text, exactly (as fractions)."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_LONGEST = 400  # digits of a number; nobody's answer is longer

_SUPERSCRIPTS = str.maketrans({"²": "^2", "³": "^3", "¹": "^1"})
_MINUS = str.maketrans(dict.fromkeys("−–—‒―﹣－", "-"))
_VULGAR = re.compile(r"(\d?)([¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s?\{([^{}]*)\}")
_FRACTION = re.compile(
    r"(?<=\d)?\\[dtc]?frac\s?(?:\{\s?(-?[\d.]+)\s?\}\s?\{\s?([\d.]+)\s?\}|(\d)\s?(\d)|(\d)\{(\d+)\})"
)

_BODY = (
    r"(?P<mixed>\d+[ \u00a0]\d+\s?/\s?\d+)(?![\d/])"
    r"|(?P<fraction>(?:\d+(?:\.\d+)?|\.\d+)\s?/\s?\d+(?:\.\d+)?)(?![\d/.]\d)(?!/)"
    r"|(?P<comma>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?)(?![\d,]\d)(?!\d)"
    r"|(?P<dots>\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})(?!\d)"
    r"|(?P<space>\d{1,3}(?:[ '\u00a0\u202f]\d{3})+(?:[.,]\d+)?)(?!\d)"
    r"|(?P<power>10\^\{?[+-]?\d{1,3}\}?)"
    r"|(?P<decimal_comma>\d+,\d{1,2})(?![\d,])"
    r"|(?P<plain>\d+(?:\.\d+)?|\.\d+)"
)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+]\s?)?(?P<money>US\$|[$€£¥₹]|Rs\.?|USD|EUR)?\s?(?P<inner>[-+])?"
    rf"(?:{_BODY})"
    r"(?:(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w))"
    r"|\s?(?:\\times|\\cdot|[×x*])\s?10\^\{?(?P<ten>[+-]?\d{1,3})\}?)?"
    r"(?P<after>\s?(?:%|°|€|£|(?:[A-Za-z]+[-/ ]?){1,4}))?"
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES["trillion"] = 10**12

# unit: (dimension, size)
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _sizes in {
    "length": "mm .001 millimeter .001 cm .01 centimeter .01 m 1 meter 1 metre 1 km 1000 "
    "kilometer 1000 inch .0254 inches .0254 ft .3048 foot .3048 feet .3048 yard .9144 yd .9144 "
    "mile 1609.344 mi 1609.344",
    "mass": "mg .000001 g .001 gram .001 kg 1 kilogram 1 lb .45359237 pound .45359237 "
    "oz .028349523125 ounce .028349523125",
    "time": "second 1 sec 1 s 1 minute 60 min 60 hour 3600 hr 3600 h 3600 day 86400 week 604800",
    "volume": "ml .001 milliliter .001 l 1 liter 1 litre 1",
    "money": "dollar 1 cent .01",
}.items():
    _words = _sizes.split()
    _UNITS |= {w: (_dimension, Fraction(n)) for w, n in zip(_words[::2], _words[1::2], strict=True)}


@dataclass(frozen=True)
class Quantity:
    """A number in a text.

    Attributes:
        value: the number itself, exact; the percent sign and the unit are not in it.
        percent: a percent sign or the word follows.
        words: the words that follow, at most four, small letters, without a final s.
        start, end: of the number in the text; `end` is before the words.
        other: a second reading ("2 dozen" is 2 and 24).
    """

    value: Fraction
    percent: bool
    words: tuple[str, ...]
    start: int
    end: int
    other: Fraction | None = None

    @property
    def unit(self) -> tuple[str, Fraction] | None:
        """Dimension and size of a unit that is known, such as ("length", 1/100) for cm."""
        return _UNITS.get(self.words[0]) if self.words else None


def plain(text: str) -> str:
    """Returns a text without what says nothing: markdown, outer dollars, LaTeX around words.

    Width, minus signs, thin spaces and vulgar fractions become plain ones, simple `\\frac{1}{2}`
    becomes 1/2, and `1{,}500` and `1\\,500` become 1,500 and 1500.
    """
    text = text.strip().translate(_SUPERSCRIPTS)
    text = _VULGAR.sub(lambda m: (m[1] + " " if m[1] else "") + m[2], text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).replace("\u2044", "/")
    text = re.sub(r"(?<=\d)(?:\\[,;!: ]|\{,\}|~){1,4}(?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d),?\\!,?(?=\d{3})", ",", text)
    text = re.sub(r"(?<=,)\\!(?=\d)", "", text)
    text = re.sub(r"(?<=[A-Za-z\d)])\*\*(?=\d)", "^", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\*\*|__|`", "", text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\&", "&")
    text = re.sub(r"(?<!\\)\\[,;!: ]|\\q?quad(?![a-z])", " ", text)
    text = re.sub(r"\^\{?\s?\\circ\s?\}?|\\degrees?(?![a-z])", "°", text)
    for _ in range(3):
        text = _WRAPPER.sub(r"\1", text)
    text = _FRACTION.sub(_as_fraction, text)
    text = re.sub(r"^(?:\$\$?|\\\(|\\\[)\s{0,3}(?=.*(?:\$|\\\)|\\\]))", "", text, flags=re.S)
    text = re.sub(r"\s{0,3}(?:\\\)|\\\])(?=\W*$)|(?<=[^\s$])\s{0,3}\$\$?(?=[.,;]*$)", "", text)
    return re.sub(r"\s+", " ", text).strip().strip("\"“”'‘’").rstrip(".。").strip().strip('"“”')


def _as_fraction(match: re.Match[str]) -> str:
    top, bottom = next(
        (a, b) for a, b in zip(match.groups()[::2], match.groups()[1::2], strict=True) if a
    )
    before = match.string[: match.start()].rstrip()[-1:]
    return f"{' ' if before.isdigit() else ''}{top}/{bottom}"


def quantities(text: str) -> list[Quantity]:
    """Returns the numbers of a `plain` text in order. "3 1/2" is one number, "76 - 25" are two."""
    found = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is None:
            continue
        sign = (match["sign"] or "").strip() + (match["inner"] or "")
        before = text[: match.start()].rstrip()[-1:]
        spaced = bool(match["sign"]) and match["sign"][-1:].isspace() and match.start() > 0
        operator = bool(match["sign"]) and (before.isalnum() or before in ")}%$" or spaced)
        if sign.count("-") == 1 and not (operator and before):
            value = -value
        after = (match["after"] or "").strip()
        words = tuple(_stem(w) for w in re.findall(r"[A-Za-z]+", after.lower()))
        other = None
        while words and words[0] in _SCALES:
            value, words = value * _SCALES[words[0]], words[1:]
        if words[:1] == ("dozen",):
            other, words = value * 12, words[1:]
        percent = after.startswith("%") or words[:1] == ("percent",) or words[:2] == ("per", "cent")
        end = match.start("after") if match["after"] else match.end()
        if not words and match["money"] in ("$", "US$", "USD"):
            words = ("dollar",)
        found.append(Quantity(value, percent, words, match.start(), end, other))
    return found or _spelled(text)


def _value(match: re.Match[str]) -> Fraction | None:
    kind = next(k for k in ("mixed fraction comma dots space power decimal_comma plain").split()
                if match[k])  # fmt: skip
    body = match[kind]
    if len(body) > _LONGEST:
        return None
    if kind == "mixed":
        whole, rest = re.split(r"[ \u00a0]", body, maxsplit=1)
        part = _ratio(rest)
        return None if part is None else int(whole) + part
    if kind == "fraction":
        return _ratio(body)
    if kind == "power":
        return Fraction(10) ** int(re.sub(r"[{}]", "", body[3:]))
    if kind == "comma":
        body = body.replace(",", "")
    elif kind == "dots":
        body = body.replace(".", "").replace(",", ".")
    elif kind in ("space", "decimal_comma"):
        body = re.sub(r"[ '\u00a0\u202f]", "", body).replace(",", ".")
    value = Fraction(body)
    exponent = match["exponent"] or match["ten"]
    return value * Fraction(10) ** int(exponent) if exponent else value


def _ratio(text: str) -> Fraction | None:
    top, bottom = (Fraction(part.strip()) for part in text.split("/"))
    return top / bottom if bottom else None


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SPELLED = {w: i for i, w in enumerate(_SMALL)} | {w: 20 + 10 * i for i, w in enumerate(_TENS)}


def _spelled(text: str) -> list[Quantity]:
    """Returns the first number that is written in words ("fifty-two apples"), if there is one."""
    tokens = list(re.finditer(r"[A-Za-z]+", text[:_LONGEST]))
    begin = next((i for i, t in enumerate(tokens) if t.group().lower() in _SPELLED), None)
    if begin is None:
        return []
    total, current, i = 0, 0, begin
    while i < len(tokens):
        word = tokens[i].group().lower()
        if word in _SPELLED:
            current += _SPELLED[word]
        elif word == "hundred":
            current *= 100
        elif word in _SCALES:
            total, current = total + current * _SCALES[word], 0
        elif not (word == "and" and tokens[i - 1].group().lower() in ("hundred", "thousand")):
            break
        i += 1
    words = tuple(_stem(t.group().lower()) for t in tokens[i : i + 4])
    span = tokens[begin].start(), tokens[i - 1].end()
    percent = words[:1] == ("percent",)
    return [Quantity(Fraction(total + current), percent, words, *span)]
