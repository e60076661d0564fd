"""Rows of a run for other trainers: what a row of the table trains, as text or in tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwt.data.example import Example
from cwt.data.export import ROWS, Format, Sample, What, Wording, samples
from cwt.data.marks import with_stage_marks
from cwt.errors import UserError
from cwt.files import write_lines
from cwt.pipeline.choice import chosen_student, not_trained
from cwt.pipeline.fit import prompt_style
from cwt.pipeline.methods import Method, parent_of
from cwt.pipeline.stages import shortened_examples
from cwt.pipeline.workspace import Workspace
from cwt.students.load import load_tokenizer
from cwt.students.tokenized import IGNORE_INDEX, PromptTokenizer, build_sequence

IN_TOKENS: tuple[Format, ...] = ("trl", "axolotl")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: where.
        rows: how many.
        too_long: rows in tokens left out: question and what they train exceed train.max_length.
        open_ends: rows after which no end-of-sequence token belongs.
    """

    file: Path
    rows: int
    too_long: int
    open_ends: int


def export(
    ws: Workspace,
    method: Method,
    to: Format,
    what: What | None = None,
    file: Path | None = None,
    tokenized: bool = False,
    tokenizer: str = "",
) -> Exported:
    """Writes what a row of the table trains, as a JSONL file that another trainer reads.

    Args:
        ws: the run; its chunks, and the skips of the row if it has any, are there.
        method: the row, whose chunks and skips these are.
        to: the format.
        what: chunk samples, or what stays of the whole rationales; None: what the row trains on.
        file: to write; None: export/<to>/<row>-<what>.jsonl in the run.
        tokenized: rows of {input_ids, attention_mask, labels}, exact for every tokenizer.
        tokenizer: student whose tokenizer is used, by default the run's.

    Raises:
        UserError: tokens asked of a format that has none, or a stage that has not run yet.
    """
    if tokenized and to not in IN_TOKENS:
        raise UserError(f"--tokenized goes with --to {' or '.join(IN_TOKENS)}, got --to {to}.")
    what = what or ("chunks" if method.target == "chunk" else "rationales")
    chosen = list(samples(trained_examples(ws, method), what))
    style = prompt_style(ws.config)
    speller = load_tokenizer(tokenizer or ws.config.student, style)
    if tokenized and speller.encoder:
        raise UserError(
            "--tokenized writes one row of question and rationale, and the student is an "
            "encoder-decoder, which reads them apart: export text."
        )
    wording = Wording(speller.template, *speller.special_texts, style.turn, style.system)
    if tokenized:
        found: list[dict[str, Any] | None] = [
            token_row(s, speller, ws.config.train.max_length) for s in chosen
        ]
    else:
        found = [ROWS[to](s, wording) for s in chosen]
    rows = [row for row in found if row is not None]
    kind = f"{to}-tokens" if tokenized else to
    file = file or ws.export(kind, f"{method.name}-{what}")
    write_lines(file, rows)
    return Exported(file, len(rows), len(found) - len(rows), sum(not s.ends for s in chosen))


def trained_examples(ws: Workspace, method: Method) -> list[Example]:
    """Returns the examples that a row of the table trains on, with its chunks and its skips.

    Sentence dropout is drawn anew at every visit of an example, and is not in them.

    Raises:
        UserError: the row's skips are not decided yet.
    """
    if parent_of(method, ws.config) is None:
        examples = ws.training_examples(method.chunking)
        examples = with_stage_marks(examples) if method.stage_marks else examples
    else:
        examples = shortened_examples(ws, _student_with_skips(ws, method), method)
    if method.target == "answer":
        examples = [e.keeping(frozenset([len(e.units) - 1])) for e in examples]
    return examples


def _student_with_skips(ws: Workspace, method: Method) -> str:
    if method.in_rounds:
        return chosen_student(ws, method)
    if not ws.skips(method.name).exists():
        raise not_trained(ws, method)
    return method.name


def token_row(
    sample: Sample, tokenizer: PromptTokenizer, max_length: int = 0
) -> dict[str, list[int]] | None:
    """Returns {input_ids, attention_mask, labels} of a sample, as cwt itself trains it.

    SFTTrainer of TRL takes them as they are, and axolotl under an empty `type:`; labels are not
    shifted and -100 where a token bears no loss.

    Args:
        sample: what the row trains.
        tokenizer: of the student.
        max_length: in tokens, 0 for no limit; of a longer row the beginning of the rationale that
            is context is left out.

    Returns:
        The row; None where question and what it trains are longer than max_length.
    """
    tokens = tokenizer.tokenize(sample.example)
    sequence = build_sequence(tokens, sample.chunk, max_length=max_length)
    if sequence is None:
        return None
    pairs = zip(sequence.ids, sequence.chunks, strict=True)
    return {
        "input_ids": sequence.ids,
        "attention_mask": [1] * len(sequence.ids),
        "labels": [token if chunk >= 0 else IGNORE_INDEX for token, chunk in pairs],
    }
