# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""Where the sentences of a rationale end.

Rationales are prose mixed with sums, lists, LaTeX and code, often with the space after a full stop
missing. General splitters cut inside formulas ("2. Divide by 2."), and pysbd does not come back
from a full stop before "[" and numbers (pySBD#79). The rules here read the text once from left to
right, and every look backwards or forwards is bounded, so that the time grows with the length of
the text and nothing else. `tests/test_units.py` holds the F1 against pysbd, punkt and a regular
expression.

Nothing is cut inside a protected span: code, display and inline mathematics, a LaTeX environment,
a box. A sentence is not cut inside brackets or double quotes either, if they close on their line.
"""

import re
from bisect import bisect_right

_WINDOW = 20_000  # a formula or a code block that is longer than this is not protected
_LINE_WINDOW = 300  # nor are brackets and quotes that close later than this
_LOOK_BACK = 40

_OPENER = re.compile(r"```|`|\$\$|\$|\\\[|\\\(|\\begin\{(\w+\*?)\}|\[asy\]|\\(?:boxed|fbox|text)\{")
_CLOSER = {"```": "```", "$$": "$$", "\\[": "\\]", "\\(": "\\)", "[asy]": "[/asy]"}
_PAIRS = {"(": ")", "[": "]", "“": "”", "「": "」", "『": "』", "（": "）", "«": "»"}

_END = re.compile(
    r"[.!?…]+|[。！？｡؟۔।॥။።]+|\n\s*|:(?=\s{0,3}\(?1[.)]\s)"
    r"|(?<=[a-z])(?=\d{1,2}\.\s[A-Z])"
)
_AFTER = re.compile(r"(?:\s{0,2}(?:\$\$?|\\\)|\\\]))?[\"'”’»)\]}*_」』）]{0,8}")
_OPENING = "\"'“‘«([{*_¿¡「『（#>"
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|\.(?=[^\W\d_]))*\Z")
_MARKER = re.compile(
    r"\(?(?:(?P<number>\d{1,3})(?:\.\d{1,2})*|[A-Za-z]|[ivxIVX]{1,4})"
    r"|(?:step|part|case|fig|figure|example|question|problem)\s{1,2}\w{1,3}",
    re.IGNORECASE,
)
_GLUED_MARKER = re.compile(r"(\d{1,2})[.)]\s{1,3}[^\W\d_]")
_WRAPPED = re.compile(r"(?:[a-z]{2,}(?![a-z]*\s*[=(])|a\s[a-z])")

_TITLES = set("mr mrs ms dr prof st mt sen gov gen rev sgt capt lt col hon messrs mme".split())
_NEVER = set("e.g i.e eg ie vs cf approx ca viz resp incl est bzw z.b d.h".split())
_NUMBERED = set("no nos nr fig figs eq eqs sec vol vols ch chap p pp art ex ref para".split())
_MONTHS = set("jan feb mar apr jun jul aug sep sept oct nov dec".split())
_DAYS = set("monday tuesday wednesday thursday friday saturday sunday est pst gmt utc".split())
_ABBREVIATIONS = set("inc ltd co corp jr sr bros etc al dept univ ave blvd rd max min avg".split())
_UNITS = set("in ft yd mi oz lb lbs gal pt qt tbsp tsp hr hrs min mins sec secs sq cu".split())
_STARTERS = set(
    "the this that these those it he she they we i you there here so then thus therefore hence but "
    "and or if in on at by for from to when since because as after before now next first second "
    "third finally also however let what which how why who is are does do each every all both his "
    "her its their our my a an no not one two".split()
)


def protected_spans(text: str) -> list[tuple[int, int]]:
    """Returns the spans (start, end) in which nothing is cut, in order and without overlap."""
    spans: list[tuple[int, int]] = []
    braces = closing_braces(text)
    end = 0
    for match in _OPENER.finditer(text):
        if match.start() < end:
            continue
        box = match.group().endswith("{")
        found = braces.get(match.end()) if box else _close(text, match)
        if found is not None:
            end = found
            spans.append((match.start(), end))
    return spans


def _close(text: str, opener: re.Match[str]) -> int | None:
    """Returns where the span of an opener ends, None where it does not close."""
    token, start = opener.group(), opener.end()
    if token == "`":
        return _found(text, "`", start, start + _LINE_WINDOW)
    if token == "$":
        return _inline_math(text, start)
    closer = _CLOSER.get(token) or f"\\end{{{opener.group(1)}}}"
    return _found(text, closer, start, start + _WINDOW)


def _found(text: str, closer: str, start: int, end: int) -> int | None:
    position = text.find(closer, start, end)
    return None if position < 0 else position + len(closer)


def _inline_math(text: str, start: int) -> int | None:
    """Returns the end of $...$; two amounts of money ("$5 and $6") are none (pandoc's rule)."""
    end = text.find("$", start, start + 2000)
    if end <= start or text[start].isspace() or text[end - 1].isspace():
        return None
    inside = text[start:end]
    if text[end + 1 : end + 2].isdigit() or "\n\n" in inside:
        return None
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{4,}", inside)
    prose = len(words) > 1 or (words and inside[0].isdigit())
    return None if prose and "\\text" not in inside else end + 1


def closing_braces(text: str) -> dict[int, int]:
    """Returns for the position after every "{" the position after the "}" that closes it."""
    found: dict[int, int] = {}
    open_at: list[int] = []
    for match in re.finditer(r"\\[{}]|[{}]", text):
        if match.group() == "{":
            open_at.append(match.end())
        elif match.group() == "}" and open_at:
            found[open_at.pop()] = match.end()
    return found


class Spans:
    """Says whether a position lies inside one of some spans."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._starts = [a for a, _ in spans]
        self._ends = [b for _, b in spans]

    def start_around(self, position: int) -> int:
        """Returns the start of the span that the position is inside of, else the position."""
        i = bisect_right(self._starts, position) - 1
        inside = i >= 0 and self._starts[i] < position < self._ends[i]
        return self._starts[i] if inside else position

    def inside(self, position: int) -> bool:
        """Returns whether a cut at this position would divide a span."""
        return self.start_around(position) != position


def _bracketed(text: str) -> list[tuple[int, int]]:
    """Returns the outermost brackets and double quotes that open and close on one line."""
    spans: list[tuple[int, int]] = []
    stack: list[tuple[str, int]] = []
    for match in re.finditer(r"[()\[\]“”「」『』（）«»\"\n]", text):
        char, at = match.group(), match.start()
        if char == "\n":
            stack.clear()
        elif stack and char == stack[-1][0]:
            start = stack.pop()[1]
            if at - start <= _LINE_WINDOW:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, at + 1))
        elif char in _PAIRS:
            stack.append((_PAIRS[char], at))
        elif char == '"' and (at == 0 or text[at - 1] in " \t\n([—*"):
            stack.append((char, at))
    return spans


def sentence_ends(text: str, protected: Spans | None = None) -> list[int]:
    """Returns the positions after which a new sentence begins, rising, without 0 and len(text).

    Args:
        text: any text.
        protected: the spans in which nothing is cut; those of `protected_spans` where absent.
    """
    protected = protected or Spans(protected_spans(text))
    reader = _Reader(text, protected, Spans(_bracketed(text)))
    for match in _END.finditer(text):
        end = reader.end_of(match)
        if end is not None and reader.start < end < len(text) and not protected.inside(end):
            reader.cut(end)
    return reader.ends


class _Reader:
    """Decides about one mark after the other; knows where the current sentence began."""

    def __init__(self, text: str, protected: Spans, brackets: Spans) -> None:
        self.text, self.protected, self.brackets = text, protected, brackets
        self._spans = (protected, brackets)
        self.ends: list[int] = []
        self.start = 0  # of the current sentence
        self.number = 0  # of the last item of a list

    def cut(self, end: int) -> None:
        self.ends.append(end)
        self.start = end

    def end_of(self, match: re.Match[str]) -> int | None:
        """Returns where the sentence ends that this mark closes, None where it closes none."""
        mark, end = match.group(), match.end()
        if not mark:  # "spent reading: 492 days2. Determine"
            item = _GLUED_MARKER.match(self.text, end)
            return end if self.number and item and int(item[1]) == self.number + 1 else None
        if mark[0] == "\n":
            return self._line_end(match)
        if mark == ":":
            return end
        after = self._after(end)
        if any(spans.inside(end) and spans.inside(after) for spans in self._spans):
            return None
        if mark[0] not in ".!?…":
            return None if self.text[after : after + 1] in tuple("，、,；;と") else after
        return self._latin_end(match, after)

    def _after(self, end: int) -> int:
        """Returns where the quotes, brackets and dollars that close after a mark end."""
        after = _AFTER.match(self.text, end)
        if after is None:
            return end
        # "= 4.$ So": a dollar closes only where one is open; "4. $5" opens an amount of money.
        mathematics = self.text[end : after.end()].lstrip()[:1] in ("$", "\\")
        return after.end() if not mathematics or self.protected.inside(end) else end

    def _line_end(self, match: re.Match[str]) -> int | None:
        text, begin = self.text, match.start()
        while begin > self.start and text[begin - 1].isspace():
            begin -= 1
        last, following = text[begin - 1 : begin], text[match.end() : match.end() + 40]
        if last in tuple("=+×÷≈") or (last == "," and not following[:1].isupper()):
            return None
        goes_on = following.startswith(("$$", "\\[", "\\begin")) or _WRAPPED.match(following)
        one_line = match.group().count("\n") == 1 and last not in tuple(".!?。:")
        return None if one_line and goes_on else begin

    def _latin_end(self, match: re.Match[str], after: int) -> int | None:
        text, end = self.text, match.end()
        glued = _GLUED_MARKER.match(text, end)
        if glued and int(glued.group(1)) == self.number + 1 and text[end - 1] != " ":
            return end if self.number else None
        end = after
        if self._is_marker(match):
            return None
        following = text[end : end + 80]
        if not following or not following[0].isspace():
            return end if self._space_is_missing(match, following) else None
        opening = following.lstrip()
        word = opening.lstrip(_OPENING)
        if not word or word[0] in "=+×÷,;:<>)/%":
            return None
        return end if self._closes(match, word, end > match.end()) else None

    def _is_marker(self, match: re.Match[str]) -> bool:
        """Returns whether the sentence so far is "1", "a", "Step 1": the mark of a list's item."""
        if match.group() != "." or match.start() - self.start > _LOOK_BACK:
            return False
        head = self.text[self.start : match.start()].strip(" \t\r\n\x1c\x1d\x1e\x1f*#>-•_")
        marker = _MARKER.fullmatch(head)
        if marker and marker.group("number"):
            self.number = int(marker.group("number"))
        return marker is not None

    def _space_is_missing(self, match: re.Match[str], following: str) -> bool:
        if not re.match(r"[A-Z](?:[a-z'’]|\s)", following) or len(match.group()) > 1:
            return False
        before = self.text[max(self.start, match.start() - 200) : match.start()]
        token = before.rsplit(None, 1)[-1] if before.strip() else ""
        if not token or "://" in token or token.startswith("www") or "@" in token:
            return False
        word = _WORD.search(token)
        if match.group() != "." or word is None:
            return True
        return "." not in word.group() and len(word.group()) > 1 and not _known(word.group())

    def _closes(self, match: re.Match[str], following: str, quoted: bool) -> bool:
        """Returns whether a mark before white space ends the sentence, given what follows."""
        mark, first = match.group(), following[0]
        if mark[0] == "…" or mark.startswith(".."):
            return first.isalpha() and not first.islower()
        before = self.text[max(self.start, match.start() - _LOOK_BACK) : match.start()]
        found = _WORD.search(before)
        word = found.group() if found else ""
        if first.islower():
            if "." not in mark:
                return "?" in mark and not quoted
            long = len(word) > 1 or not word
            return long and not quoted and "." not in word and not _known(word)
        if first in "-−+•":
            return following[1:2].isdigit()
        if mark != "." or not word:
            return True
        return not self._abbreviates(word, before[: -len(word)].rstrip(), following)

    def _abbreviates(self, word: str, before: str, following: str) -> bool:
        low = word.lower()
        found = re.match(r"[^\W\d_]+", following)
        after = found.group().lower() if found else ""
        number = following[0].isdigit() or following[0] == "("
        if low in _TITLES or low in _NEVER:
            return True
        if low in _NUMBERED and number:
            return True
        if low in ("a.m", "p.m"):
            return after in _DAYS
        if low in _UNITS and before[-1:].isdigit():
            return False
        if low in _MONTHS:
            return number
        if low in _ABBREVIATIONS or "." in word:
            return after not in _STARTERS
        if len(word) == 1 and word.isupper():
            named = not before or before[-1] == "." or before.split()[-1][0].isupper()
            named = named or following[1:2] == "."
            return named and bool(after) and after not in _STARTERS
        return False


def _known(word: str) -> bool:
    """Returns whether a word is an abbreviation that small letters may follow."""
    low = word.lower()
    lists = (_TITLES, _NEVER, _NUMBERED, _MONTHS, _ABBREVIATIONS, _UNITS)
    return any(low in words for words in lists)
