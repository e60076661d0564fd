# ruff: noqa: RUF001 (marks of many scripts are what this file is about)
"""Where a text states its answer: "The answer is X", "#### X", "\\boxed{X}", "Answer: X", ...

The last statement wins, whatever its form. A text with think markers is read after its last
`</think>` only, and states nothing while a thought is open.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from cwt.data.sentences import Spans, closing_braces, protected_spans, sentence_ends

OPEN_MARKER = re.compile(r"<(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>")
CLOSE_MARKER = re.compile(r"</(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>")

_LEAD = r"(?:\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Cc]onsequently|[Ff]inally),?\s{1,3})?"
_SAYS = r"(?:is|are|was|remains|(?:should|would|must|will)\s{1,3}be|equals)\b(?:\s?[:：])?"
_PHRASE = re.compile(
    # No boundary is asked for before "The": teachers write "= 4 kidsThe answer is 4".
    _LEAD + r"(?:(?<![A-Za-z])(?:the|my|our)|The|THE|My|Our)\s{1,3}"
    r"(?:(?:final|correct|right|best|FINAL|CORRECT)\s{1,3}){0,2}"
    r"(?:answers?|ANSWER|(?<=correct )(?:option|choice)|(?<=right )(?:option|choice))"
    r"(?:\s{1,3}(?:to|for|of)\s[^.\n:=?!]{1,80}?)?"
    rf"(?:\s{{1,3}}(?:{_SAYS}|IS\b)|\s{{0,3}}[:=：])(?:\*\*(?=\s))?"
)
_LABEL = re.compile(
    r"(?:^[ \t>#*_-]{0,8}|(?<=[.!?。] )|(?<=[.!?。]))(?:\*\*|__)?"
    r"(?:[Ff]inal |FINAL )?(?:[Aa]nswer|ANSWER)"
    r"(?:(?:\*\*|__)?\s?[:：=](?:\*\*|__)?|(?:\*\*|__)?[ \t]{0,3}(?=\n))",
    re.MULTILINE,
)
_FOREIGN = re.compile(
    r"(?:所以|因此|故)?(?:最终|最終|正确|正確)?(?:的)?答案(?:是|为|為|应该是|：|:)+"
    r"|答えは|答え[:：]|정답은|답은|정답\s?:"
    r"|\b[Ll]a respuesta (?:final |correcta )?es:?|\b[Ll]a réponse (?:finale |correcte )?est:?"
    r"|\b[Dd]ie (?:richtige )?Antwort (?:ist|lautet):?|\b[Aa] resposta (?:final )?é:?"
    r"|\b[Оо]твет\s?[:：—-]"
)
_LONGEST = 1000  # characters of an answer

_HASHES = re.compile(r"####(?!#)[ \t]*([^\n#]+)")
_TAG = re.compile(r"<answer>")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b")
_BARE_BOX = re.compile(r"\s{0,3}([^\s{}$,;\\]+)")

_HEADING = re.compile(
    r"(?:step|part|case|working|solution|check|verification|explanation|summary|conclusion|"
    r"reasoning|answer|final answer|analysis|calculation)\b|\d+[.)]\s+[A-Za-z]|.*:\s*$",
    re.IGNORECASE,
)
_VALUE = re.compile(r"[^\w]*[-+$€£]?\d[^A-Za-z]*(?:\s?[A-Za-z%°/]+){0,2}\W*")
_BARE_VALUE = re.compile(
    r"(?:[-−+$€£ ]*\d[\d.,/:% ]*|\(?[A-J][.)]?|yes|no|true|false)\.?", re.IGNORECASE
)
_SELF_CHECK = re.compile(
    r"(?:(?:now|also|indeed|definitely|really)\s)?(?:right|correct|incorrect|wrong|verified|"
    r"confirmed|reasonable|plausible|consistent|sensible)"
    r"(?:\W*$|[,.;:!]|\s+(?:because|since|as|and|so|now|too|again|with|for|given)\b)",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(
    r"\b(?:whether|if|suppos(?:e|ing)|assum(?:e|ing)|imagine|what|unless)(?:\sthat)?\s{0,3}$",
    re.IGNORECASE,
)
_FILLER_WORD = re.compile(
    r"(?:of course,|indeed|therefore|thus|hence|simply|just|then|also|actually|clearly|probably|"
    r"(?:most )?likely)\s+|that\s+(?=\d)"
)
_MARKUP = re.compile(r"</?(?:final_)?answer>|<\|[^|<>\s]{1,30}\|>|</?s>")
_EXPLANATION = re.compile(r"(?:,\s*|\s+)(?:because|since)\b|,\s*(?:which|as|so)\s")
_PLACEHOLDERS = {"answer", "your answer", "final answer", "the answer", "result", "x here"}


@dataclass(frozen=True)
class Statement:
    """A statement of the answer.

    Attributes:
        start: where it begins in the text; the answer's unit begins there.
        answer: what it gives as the answer, as it is written there.
    """

    start: int
    answer: str


@dataclass(frozen=True)
class _Candidate:
    """A possible statement: `position` (of the value) orders them, `end` bounds the value."""

    start: int
    position: int
    end: int
    answer: str


def last_statement(text: str) -> Statement | None:
    """Returns the last statement of the answer in a text, or None where it makes none.

    Understood are "(So) the (final, correct) answer (to ...) is X" with should be, would be, "="
    and ":"; "Answer: X" with or without markdown, also as a heading over X; "#### X" (not the
    heading "#### Step 2"); "\\boxed{X}", "\\fbox{X}" and "\\boxed X"; "<answer>X</answer>"; and
    the phrase in Chinese, Japanese, Korean, Spanish, French, German, Portuguese and Russian.

    No statements: "the answer is right" (a self-check), "whether the answer is 7" (a hypothesis),
    an empty box, a denial ("the answer is not 7") beside a statement. After `</think>` a bare value
    ("</think>\\n42") is one.
    """
    begin = _after_thought(text)
    if begin is None:
        return None
    found = [c for c in _candidates(text, begin) if c.position >= begin]
    if begin and not found:
        rest = text[begin:].strip()
        bare = _BARE_VALUE.fullmatch(rest.strip("*$` "))
        return Statement(begin, rest.rstrip(".")) if bare else None
    affirmed = [c for c in found if not re.match(r"not\b", c.answer)] or found
    last = max(affirmed, key=lambda c: c.position, default=None)
    if last is None:
        return None
    around = [c.start for c in found if c.position <= last.position < c.end]
    return Statement(max(begin, min([last.start, *around])), last.answer)


def opened_thought(prompt: str) -> str:
    """Returns the marker that a prompt ends with, which opens a thought; empty: none."""
    prompt = prompt.rstrip()
    markers = [m for m in OPEN_MARKER.finditer(prompt) if m.end() == len(prompt)]
    return markers[0].group() if markers else ""


def _after_thought(text: str) -> int | None:
    """Returns where the text after the last thought begins, None inside an open thought."""
    begin = max((m.end() for m in CLOSE_MARKER.finditer(text)), default=0)
    opened = max((m.start() for m in OPEN_MARKER.finditer(text)), default=-1)
    return None if opened >= begin and opened >= 0 else begin


def _candidates(text: str, begin: int) -> Iterator[_Candidate]:
    spans = protected_spans(text)
    protected = Spans(spans)
    ends = sentence_ends(text, protected)
    blocks = dict(spans)
    for pattern in (_PHRASE, _LABEL, _FOREIGN):
        for match in pattern.finditer(text, begin):
            if not _HYPOTHESIS.search(text, max(0, match.start() - 30), match.start()):
                start = protected.start_around(match.start())
                yield from _phrase(text, start, match.end(), ends, blocks)
    for match in _HASHES.finditer(text, begin):
        value = match.group(1).strip()
        last = not text[match.end() :].strip()
        stated = len(value) <= 80 and (last or _VALUE.fullmatch(value))
        if stated and not _HEADING.match(value):
            answer = _trimmed(value)
            if answer:
                yield _Candidate(match.start(), match.start(1), match.end(), answer)
    for match in _TAG.finditer(text, begin):
        end = text.find("</answer>", match.end(), match.end() + _LONGEST)
        inside = text[match.end() : end].strip() if end >= 0 else ""
        if inside and "<answer>" not in inside:
            stated_inside = list(_boxes(inside, [], closing_braces(inside)))
            answer = stated_inside[-1].answer if stated_inside else inside.rstrip(".")
            yield _Candidate(match.start(), match.end(), end, answer)
    yield from (c for c in _boxes(text, ends, closing_braces(text)) if c.position >= begin)


def _phrase(
    text: str, start: int, end: int, ends: list[int], blocks: dict[int, int]
) -> Iterator[_Candidate]:
    """Yields the statement whose phrase reaches from start to end, if a value follows."""
    position = end
    while position < len(text) and text[position].isspace():
        position += 1
    newline = text.find("\n", position, position + _LONGEST)
    stop = newline if newline >= 0 else min(len(text), position + _LONGEST)
    sentence = bisect_right(ends, position)
    if sentence < len(ends):
        stop = min(stop, ends[sentence])
    stop = max(stop, min(blocks.get(position, 0), position + _LONGEST))
    value = _trimmed(text[position:stop])
    if value and not _SELF_CHECK.match(value) and not value.startswith("Let"):
        yield _Candidate(start, position, stop, value)


def _boxes(text: str, ends: list[int], braces: dict[int, int]) -> Iterator[_Candidate]:
    for match in _BOX.finditer(text):
        opened = re.compile(r"\s{0,3}\{").match(text, match.end())
        if opened:
            end = braces.get(opened.end())
            content = text[opened.end() : end - 1].strip() if end else ""
        else:
            bare = _BARE_BOX.match(text, match.end())
            end = bare.end() if bare else None
            content = bare.group(1).rstrip(".:!?)*") if bare else ""
        if end is None or not _says_something(content):
            continue
        sentence = bisect_right(ends, match.start()) - 1
        start = ends[sentence] if sentence >= 0 else 0
        yield _Candidate(start, match.start(), end, content)


def _says_something(answer: str) -> bool:
    named = answer.lower().strip("[]<>. ") in _PLACEHOLDERS
    return not named and any(c.isalnum() or c in "∅∞" for c in answer)


def _trimmed(value: str) -> str | None:
    """Returns the value that follows a phrase without what surrounds it, None for no value."""
    value = _MARKUP.sub("", value).lstrip(", \t\n").rstrip()
    filler = _FILLER_WORD.match(value)
    value = value[filler.end() :] if filler else value
    explanation = _EXPLANATION.search(value)
    if explanation and explanation.start():
        value = value[: explanation.start()]
    value = value.rstrip("。.").rstrip()
    if not any(c in value for c in "\\$^+*"):  # "12!" ends a sentence, "$5!$" is a factorial
        value = value.rstrip("!?！？").rstrip("。. ")
    for mark in ("**", "__", '"'):
        if value.count(mark) % 2:  # "**The answer is 42**": opened before the phrase
            value = value.removesuffix(mark).removeprefix(mark).strip()
    if value.endswith(")") and value.count(")") > value.count("("):
        value = value[:-1].rstrip()
    value = value.rstrip("。.").removesuffix("です").rstrip()
    return value if _says_something(value) else None
