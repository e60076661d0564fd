"""Reads the answer out of a text and judges whether two answers are the same."""

import logging
import re
from functools import cache

from cwt.data.units import answer_start

MARKER = "The answer is "
_NUMBER = re.compile(r"[-+\u2212]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?=\D|$)")


def extract_answer(text: str) -> str | None:
    """Returns what a text gives as its answer, or None where it gives none.

    Understood: "The answer is X" (the last one), "#### X" and "\\boxed{X}".
    """
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        depth, start = 1, boxed + len("\\boxed{")
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start:i].strip() or None
    if "####" in text:
        found = text.rsplit("####", 1)[1].strip()
    else:
        start = answer_start(text)
        sentence = text[start:]
        match = re.search(r"answer (?:is|should be)\b:?", sentence, re.IGNORECASE)
        found = sentence[match.end() :].strip() if match else ""
    return found.split("\n")[0].strip().rstrip(".").strip() or None


def same_answer(given: str | None, wanted: str) -> bool:
    """Returns whether a given answer equals the wanted one.

    Plain numbers are compared as numbers ("1,200" is "1200.0", "-3" is not "3"), words without
    case; what is neither goes to math-verify.
    """
    if given is None:
        return False
    a, b = _plain(given), _plain(wanted)
    if a == b:
        return True
    x, y = _as_number(a), _as_number(b)
    if x is not None and y is not None:
        return abs(x - y) <= 1e-6 * max(1.0, abs(y))
    if not any(c.isdigit() for c in b):
        return False
    if y is not None and re.search(r"[a-z]{2}", a) and "\\" not in a:
        # "19 pounds" against "19": words around a number, the first one counts, with its sign
        found = [m.group() for m in _NUMBER.finditer(a) if any(c.isdigit() for c in m.group())]
        number = _as_number(found[0]) if found else None
        return number is not None and abs(number - y) <= 1e-6 * max(1.0, abs(y))
    return _verified(a, b)


def _plain(answer: str) -> str:
    text = answer.strip().strip("*").strip().rstrip(".").replace("\u2212", "-").strip()
    return re.sub(r"\s+", " ", text).casefold()


def _as_number(text: str) -> float | None:
    text = text.replace("$", "").replace(" ", "").rstrip("%")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text):
        return None
    return float(text)


@cache
def _verified(given: str, wanted: str) -> bool:
    from math_verify import parse, verify

    # Its timeouts use signals, which work in the main thread of a process only; without them it
    # warns on every call. Answers are one short line: there is nothing here that runs away.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = parse(f"${wanted}$", parsing_timeout=None)
    answer = parse(f"${given}$", parsing_timeout=None)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))
