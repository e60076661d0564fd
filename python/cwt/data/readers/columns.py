"""{question, rationale, answer} under the names that people use, or under the names given.

A text of reasoning (`rationale`, `thinking`, ...) and a reply (`solution`, `response`, ...) in one
row are one rationale: the thought, then the reply. A `solution` beside a thought that states its
answer is somebody else's, and is left out. MATH files are rows of this kind: {problem,
solution}, the answer in the solution's \\boxed{}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cwt.data.answers import extract_answer
from cwt.data.readers.conversation import exchange, is_turns
from cwt.data.readers.raw import (
    RawExample,
    Unusable,
    as_answer,
    as_text,
    as_texts,
    column_name,
    is_absent,
)
from cwt.data.readers.think import join_thought

NAME = "columns"
ROLES = ("question", "rationale", "answer")

QUESTION = tuple("question problem query instruction prompt input user question_text".split())
CONTEXT = ("body", "context", "passage")  # stands before the question, as in SVAMP
OPTIONS = ("options", "choices", "answer_choices")
THOUGHT = tuple(
    "rationale cot chain_of_thought reasoning thinking thought thoughts explanation "
    "reasoning_content reasoning_steps steps".split()
)
REPLY = tuple(
    "response solution output completion generation generated_solution model_output "
    "assistant".split()
)
ANSWER = tuple(
    "final_answer expected_answer gold_answer gold ground_truth correct_answer answer label "
    "answer_key target ideal correct".split()
)
_FOLLOWS = ("response", "output", "completion", "assistant")  # are written after a thought
_SHORT = 80  # characters of a reply that is an answer
_LONG = 200  # characters of an answer column that is a rationale


def matches(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a question and a rationale or an answer."""
    return bool(find(row, QUESTION) and find(row, THOUGHT + REPLY + ANSWER))


def read(row: Mapping[str, Any]) -> list[RawExample]:
    """Returns the samples of a row of columns with known names.

    Raises:
        Unusable: a value that is not text, by the rules of `as_text`.
    """
    asked = find(row, QUESTION)
    question = question_of(row, asked)
    thought, reply, gold_name = filled(row, THOUGHT), filled(row, REPLY), gold_column(row)
    if not (thought or reply) and gold_name:
        return [_question_and_answer(row, question, asked, gold_name)]
    gold = gold_of(row, gold_name)
    texts = samples(row, thought or reply)
    if thought and reply:
        added = as_text(row[reply], reply)
        if gold is None and _is_answer(added):
            gold, gold_name = added, reply
        elif column_name(reply) in _FOLLOWS or not any(map(extract_answer, texts)):
            texts = [join_thought(text, added) for text in texts] or [added]
        else:
            reply = ""
    taken = {"question": asked, "rationale": " + ".join(n for n in (thought, reply) if n)}
    return raws(question, texts, gold, {**taken, **({"answer": gold_name} if gold_name else {})})


def read_named(row: Mapping[str, Any], names: Mapping[str, str]) -> list[RawExample]:
    """Returns the samples of a row whose columns the caller names: {role: column}.

    Raises:
        Unusable: the row has no such column for the question or the answer, or a value that is not
            text.
    """
    for role in ("question", "answer"):
        if role in names and names[role] not in row:
            raise Unusable(f"no column {names[role]!r}")
    question = as_text(row[names["question"]], "question")
    texts = samples(row, names.get("rationale", ""))
    if "rationale" not in names:
        return [_question_and_answer(row, question, names["question"], names["answer"])]
    return raws(question, texts, gold_of(row, names.get("answer", "")), names)


def raws(
    question: str, texts: Sequence[str], gold: str | None, columns: Mapping[str, str]
) -> list[RawExample]:
    """Returns one raw example a text, or one without a text where there is none."""
    return [RawExample(question, text, gold, columns) for text in texts or [""]]


def find(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the row's column that comes first among the names, with a value or without."""
    known = {column_name(key): key for key in row if isinstance(key, str)}
    there = [known[name] for name in names if name in known]
    return next((name for name in there if not is_absent(row[name])), (*there, "")[0])


def filled(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the row's first column among the names that has a value, "" where none has."""
    name = find(row, names)
    return name if name and not is_absent(row[name]) else ""


def gold_column(row: Mapping[str, Any]) -> str:
    """Returns the column with the gold answer, "" where there is none."""
    # A boolean "correct" is a verdict on the row's text, not an answer.
    columns = {k: v for k, v in row.items() if not (isinstance(v, bool) and k == "correct")}
    return filled(columns, ANSWER)


def gold_of(row: Mapping[str, Any], name: str) -> str | None:
    """Returns the gold answer of a column: of "#### 5" and "\\boxed{5}" what they state.

    Raises:
        Unusable: as `as_answer`.
    """
    answer = as_answer(row.get(name), name) if name else None
    return None if answer is None else extract_answer(answer) or answer


def samples(row: Mapping[str, Any], name: str) -> list[str]:
    """Returns the texts of a column: those of a list in which two or more state an answer are
    samples of the question; those of another list are steps, joined by line feeds.

    Raises:
        Unusable: as `as_texts`.
    """
    texts = as_texts(row.get(name), name) if name else []
    if len(texts) < 2 or sum(extract_answer(text) is not None for text in texts) > 1:
        return texts
    return ["\n".join(texts)]


def question_of(row: Mapping[str, Any], asked: str) -> str:
    """Returns the question with the context before it and the answer choices after it.

    Raises:
        Unusable: as `as_text`, and as `exchange` for a question that is a list of turns.
    """
    asked_for = row[asked]
    question = exchange(asked_for)[0] if is_turns(asked_for) else as_text(asked_for, asked)
    before, after = filled(row, CONTEXT), filled(row, OPTIONS)
    if question and before:
        question = f"{as_text(row[before], before)} {question}".strip()
    choices = _choices(row[after], after) if after else ""
    return f"{question}\n{choices}" if question and choices else question


def _choices(value: Any, name: str) -> str:
    """Returns "Answer choices: (A) ..., (B) ..." of a list, or of {"label": [], "text": []}."""
    labels = None
    if isinstance(value, dict) and {"label", "text"} <= set(value):
        labels, value = value["label"], value["text"]
    if not isinstance(value, list):
        text = as_text(value, name)
        return f"Answer choices: {text}" if text else ""
    texts = [as_text(item, name) for item in value]
    labels = labels or [chr(ord("A") + i) for i in range(len(texts))]
    lettered = [
        text if text.startswith((f"{label})", f"({label})", f"{label}.")) else f"({label}) {text}"
        for label, text in zip(labels, texts, strict=False)
    ]
    return f"Answer choices: {', '.join(lettered)}" if lettered else ""


def _question_and_answer(
    row: Mapping[str, Any], question: str, asked: str, answer: str
) -> RawExample:
    """Returns an example of two columns; an answer that states one or is long is a rationale."""
    gold = as_answer(row.get(answer), answer)
    if gold and (len(gold) > _LONG or extract_answer(gold) is not None):
        return RawExample(question, gold, None, {"question": asked, "rationale": answer})
    return RawExample(question, "", gold, {"question": asked, "answer": answer})


def _is_answer(text: str) -> bool:
    """Returns whether a reply beside a thought is the bare answer."""
    return bool(text) and len(text) <= _SHORT and "\n" not in text and extract_answer(text) is None
