"""The data of a run: generated or imported, in disjoint parts, every row used or listed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cwt.config import DataConfig, save_config
from cwt.data.example import Example, write_examples
from cwt.data.readers import Imported, describe, file_hashes, read_examples
from cwt.data.split import draw_splits
from cwt.data.tasks import generate_examples
from cwt.errors import UserError
from cwt.files import read_json, write_json, write_lines
from cwt.pipeline.fit import rows_too_long
from cwt.pipeline.workspace import Workspace

PARTS = ("train", "validation", "test")
_TRAIN, _TEST = 600, 300  # examples where the configuration says all and there is no file of them


def make_data(ws: Workspace) -> dict[str, Any]:
    """Writes data/: train, validation and test examples, no two of which share a question.

    data.json says how many rows there are, how many were left out for each reason, and the hashes
    of the files; dropped.jsonl lists every row that was left out.

    Returns:
        What data.json holds.

    Raises:
        UserError: the files cannot be used, or one of them has changed since this run read it.
    """
    if ws.data_record.exists():
        record = dict(read_json(ws.data_record))
        _check_files(ws, record["files"])
        return record
    c = ws.config.data
    record = {"rationales_read": 0, "dropped": {}, "files": {}}
    dropped: list[dict[str, Any]] = []
    if c.file:
        parts = _import(ws, record, dropped)
    else:
        sizes = (c.train_size or _TRAIN, c.validation_size, c.test_size or _TEST)
        parts = generate_examples(c.task, sizes, ws.config.seed, c.steps)
    save_config(ws.out / "config.yaml", ws.config)  # from here on the folder is this run's
    for part, examples in zip(PARTS, parts, strict=True):
        write_examples(ws.data(part), examples)
        record[part] = len(examples)
    write_lines(ws.dropped, dropped)
    write_json(ws.data_record, record)
    return record


def _import(
    ws: Workspace, record: dict[str, Any], dropped: list[dict[str, Any]]
) -> list[list[Example]]:
    """Returns (train, validation, test) of the configured files, and records what was left out."""
    c = ws.config.data
    imported = _read(c)
    record["rationales_read"] = imported.rows
    _leave_out_long(ws, imported)
    asked = _read_questions(c) if c.eval_file else None
    sizes = (
        c.train_size or len(imported.examples),
        c.validation_size,
        c.test_size or (len(asked.examples) if asked else _TEST),
    )
    splits = draw_splits(
        imported.examples, asked.examples if asked else None, sizes, ws.config.seed
    )
    sources = [imported]
    imported.leave_out(splits.dropped)
    if asked:
        asked.leave_out(splits.not_asked)
        sources.append(asked)
    record["dropped"] = dict(sum((source.reasons for source in sources), Counter()))
    record["files"] = file_hashes(path for source in sources for path in source.files)
    dropped += [asdict(row) for source in sources for row in source.dropped]
    return [splits.train, splits.validation, splits.test]


def _leave_out_long(ws: Workspace, imported: Imported) -> None:
    """Leaves out rows that have no place in the student, where a judge or a chunking reads them.

    Raises:
        UserError: none is left.
    """
    long, positions = rows_too_long(ws.config, imported.examples)
    imported.leave_out((e, f"longer than the student's {positions} positions") for e in long)
    if not imported.examples:
        raise UserError(
            f"{ws.config.data.file}: every question with its rationale is longer than the "
            f"student's {positions} positions, and judges and chunkings by the student read whole "
            "rows; --methods FTT,CWT with --chunk.method length --chunk.no-compare trains on the "
            "parts that fit."
        )


def _read(c: DataConfig) -> Imported:
    columns = column_names(c.columns)
    return read_examples(c.file, c.unit, True, columns, c.strict, c.thinking)


def _read_questions(c: DataConfig) -> Imported:
    columns = column_names(c.columns)
    return read_examples(c.eval_file, c.unit, rationales=False, columns=columns, strict=c.strict)


def column_names(text: str) -> dict[str, str] | None:
    """Returns {"question": name, ...} of "question=name,..."; None of an empty text.

    Raises:
        UserError: a part is not of that form.
    """
    names = {}
    for part in filter(None, map(str.strip, text.split(","))):
        role, equals, name = part.partition("=")
        if not (role.strip() and equals and name.strip()):
            raise UserError(f"--columns: wanted question=NAME,rationale=NAME,..., got {text!r}.")
        names[role.strip()] = name.strip()
    return names or None


def _check_files(ws: Workspace, hashes: dict[str, str]) -> None:
    """Raises where a file that the run read is there and is another one now."""
    there = [path for path in hashes if Path(path).exists()]
    for path, digest in file_hashes(there).items():
        if digest != hashes[path]:
            raise UserError(
                f"{path}: has changed since {ws.out} read it (its SHA-256 is {digest[:12]}..., it "
                f"was {hashes[path][:12]}...). Choose another --out to read it again."
            )


def show_data(ws: Workspace, count: int) -> str:
    """Returns what was understood of the data, with some examples unit by unit."""
    c = ws.config.data
    if c.file:
        texts = [describe(_read(c), count)]
        if c.eval_file:
            texts.append(describe(_read_questions(c), count))
        return "\n\n".join(texts)
    return "\n\n".join(_one(example) for example in ws.examples("train")[:count])


def _one(example: Example) -> str:
    roles: Sequence[str] = example.roles or [""] * len(example.units)
    lines = [example.id, f"  question  {example.question}"]
    lines += [
        f"  {u:>8}  {unit!r} {role}"
        for u, (unit, role) in enumerate(zip(example.units, roles, strict=True))
    ]
    return "\n".join([*lines, f"  answer    {example.answer!r}"])
