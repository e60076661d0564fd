"""What a student is supervised on: the tokens of each part of its rows, and its loss there."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from cwt.data.answers.statement import CLOSE_MARKER, OPEN_MARKER
from cwt.students.student import Student, iterate_passes
from cwt.students.tokenized import TokenizedExample, TokenSequence, whole_sequence

# Of a row: the question, the rest of its prompt (template, special tokens), and what is written:
# think markers, the rationale before its answer, the answer, and the token that ends it.
PARTS = ("question", "template", "markers", "rationale", "answer", "end")
_WRITTEN = PARTS[2:]
_MEASURED = 2_048  # tokens of the rows whose loss is measured: a moment's work


def supervision(
    student: Student, examples: Sequence[TokenizedExample], positions: int = 0
) -> dict[str, Any]:
    """Returns how many tokens each part of the whole rows has, and what it counts in the loss.

    Rows are whole rationales; chunk-wise training supervises the same tokens in more rows.

    Args:
        student: the student before training.
        examples: in tokens, all units of which stay.
        positions: of the student: longer rows are not measured. 0: no limit.

    Returns:
        `parts`: for each of PARTS `tokens`, `token_share` of the tokens that bear loss (0 for the
        prompt), and `loss_share` of the summed negative log-likelihood (NLL), None where no row
        was measured; `measured_rows`: on how many rows the last is measured.
    """
    written = [written_parts(x) for x in examples]
    counts = dict.fromkeys(PARTS, 0)
    for example, parts in zip(examples, written, strict=True):
        assert example.tokenizer is not None
        template = example.tokenizer.template_tokens(example.example.question)
        counts["template"] += template
        counts["question"] += len(example.prompt) - template
        for part in parts:
            counts[part] += 1
    bearing = sum(map(len, written))
    some = _first_rows([whole_sequence(x) for x in examples], positions)
    nll = _loss_of_parts(student, some, written)
    total = sum(nll.values())
    return {
        "parts": {
            part: {
                "tokens": counts[part],
                "token_share": counts[part] / bearing if part in _WRITTEN else 0.0,
                "loss_share": nll[part] / total if total else None,
            }
            for part in PARTS
        },
        "measured_rows": len(some),
    }


def written_parts(tokenized: TokenizedExample) -> list[str]:
    """Returns the part of each token after the prompt: markers, rationale, answer or end."""
    parts: list[str] = []
    last = len(tokenized.units) - 1
    for u, (text, starts) in enumerate(zip(tokenized.example.units, tokenized.starts, strict=True)):
        spans = [m.span() for kind in (OPEN_MARKER, CLOSE_MARKER) for m in kind.finditer(text)]
        own = "answer" if u == last else "rationale"
        for start in starts:
            marked = any(begin <= start < end for begin, end in spans)
            parts.append("markers" if marked else own)
    parts[-1] = "end"
    return parts


def supervision_lines(found: dict[str, Any]) -> list[str]:
    """Returns what `supervision` found as a table for people."""
    rows = found["measured_rows"]
    lines = [f"supervision  {'tokens':>12}  of those with loss  of the loss ({rows} rows)"]
    for part, figures in found["parts"].items():
        share = figures["loss_share"]
        of_loss = "not measured" if share is None else f"{share:.1%}"
        lines.append(
            f"  {part:10} {figures['tokens']:>12,}  {figures['token_share']:>18.1%}  {of_loss:>11}"
        )
    return lines


def _first_rows(rows: Sequence[TokenSequence], positions: int) -> dict[int, TokenSequence]:
    """Returns the first rows that fit, by their places, of at most _MEASURED tokens together."""
    few: dict[int, TokenSequence] = {}
    left = _MEASURED
    for i, row in enumerate(rows):
        if positions and len(row.ids) > positions:
            continue
        left -= len(row.ids)
        if left < 0:
            break
        few[i] = row
    return few


def _loss_of_parts(
    student: Student, some: dict[int, TokenSequence], written: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Returns the summed NLL of each part over some rows, in nats."""
    nll, places = dict.fromkeys(PARTS, 0.0), list(some)
    rows = list(some.values())
    for part, _, loss in iterate_passes(student, rows, len(rows), student.token_loss):
        assert loss.rows is not None
        values = iter(loss.rows.nll.tolist())
        for parts in (written[places[i]] for i in part):  # of one row after another
            for name, value in zip(parts, islice(values, len(parts)), strict=True):
                nll[name] += value
    return nll
