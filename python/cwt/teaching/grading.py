"""The verdict on one completion: kept, or why not."""

from collections.abc import Collection

from cwt.data.answers import extract_answer, same_answer
from cwt.teaching.teacher import Completion

ACCEPTED = "accepted"


def verdict(completion: Completion, gold: str, kept: Collection[str]) -> tuple[str, str | None]:
    """Returns (accepted, or the reason against it; the answer that the completion gives).

    Args:
        completion: what the teacher wrote.
        gold: the answer of the question file.
        kept: rationales of the same question that were accepted before.
    """
    if completion.finish == "length":
        return "cut off", None
    if completion.finish == "content_filter":
        return "content filter", None
    if not completion.text.strip():
        return "empty", None
    given = extract_answer(completion.text)
    if given is None:
        return "no answer", None
    if not same_answer(given, gold):
        return "wrong answer", given
    if same_text(completion.text) in {same_text(text) for text in kept}:
        return "duplicate", given
    return ACCEPTED, given


def same_text(text: str) -> str:
    """Returns a text up to white space and case: what makes two rationales one."""
    return " ".join(text.casefold().split())
