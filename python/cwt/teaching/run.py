"""teach(config, out): questions in, right rationales out, everything in between on disk."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from cwt.data.example import Example
from cwt.data.readers import read_examples
from cwt.errors import UserError
from cwt.files import read_json, write_json, write_lines
from cwt.teaching.budget import Totals
from cwt.teaching.client import in_a_loop
from cwt.teaching.config import TeachConfig
from cwt.teaching.journal import Journal
from cwt.teaching.local import LocalTeacher
from cwt.teaching.prompts import Style, load_styles
from cwt.teaching.server import ServerTeacher
from cwt.teaching.teacher import Teacher
from cwt.teaching.workers import Run, digest

# A folder holds completions of one kind; what a completion depends on cannot change in it.
_IDENTITY = (
    "model", "api", "style", "shot_count", "temperature", "top_p", "max_tokens", "seed", "extra",
    "thinking",
)  # fmt: skip


@dataclass(frozen=True)
class TeachResult:
    """How a run ended.

    Attributes:
        rationales: file of the right rationales: {id, question, rationale, answer}.
        accepted: how many it holds.
        questions: of the question file.
        answered: questions with at least one right rationale.
        totals: over all runs in the folder.
        money: of what arrived, in the currency of the prices.
        money_lost: the most that requests can have cost whose answer did not arrive whole.
        stopped: `finished`, or what the run stopped for; the same command goes on.
    """

    rationales: Path
    accepted: int
    questions: int
    answered: int
    totals: Totals
    money: float
    money_lost: float
    stopped: str


def teach(
    config: TeachConfig,
    out: Path | str,
    progress: Callable[[float, str], None] = lambda share, text: None,
    teacher: Teacher | None = None,
) -> TeachResult:
    """Returns how a run ended that asked a teacher for rationales and kept the right ones.

    The folder gets journal.jsonl (every request and completion, each on disk before the next one
    of its worker), rationales.jsonl (what `cwt data` reads) and teach.json (model, prompts, totals,
    counts by reason). A second call goes on where the first one stopped, asks nothing again that
    was answered, and adds to the same totals.

    Args:
        config: questions, teacher, prompts, limits.
        out: folder of the run.
        progress: called with (share of the questions that are done, the running total as text).
        teacher: in place of the one that the configuration describes.

    Raises:
        UserError: something in the configuration or the files cannot be used, the folder is in use
            or holds completions of other settings, the server refuses every request, or too many
            requests failed in a row. What arrived before is on disk, and the files are written.

    Example:
        >>> config = TeachConfig("gsm8k.jsonl", "qwen3-32b", base_url="http://localhost:8000/v1")
        >>> teach(config, "rationales").accepted  # doctest: +SKIP
    """
    out = Path(out)
    read = read_examples(config.questions, rationales=False, columns=config.column_names)
    questions = read.examples[: config.first or None]
    shots = read_examples(config.shots).examples if config.shots else []
    styles = load_styles(config.style, shots, config.shot_count)
    with _folder(out):
        head = _head(config, styles, questions, dict(read.reasons))
        _check_settings(out, head["settings"])
        teacher = teacher or _teacher(config)
        # The settings are on disk before anything is paid for.
        write_json(out / "teach.json", head | {"stopped": "running, or killed"})
        journal = Journal(out / "journal.jsonl")
        try:
            run = Run(config, questions, styles, teacher, journal, progress)
            try:
                in_a_loop(run.go())
            finally:
                result = _write(out, head, run)
        finally:
            journal.close()
    if run.error:
        raise UserError(run.error)
    return result


def _teacher(config: TeachConfig) -> Teacher:
    return ServerTeacher(config) if config.base_url else LocalTeacher(config)


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"{out}: another `cwt teach` is at work there.") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written to: {error}.") from None
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: {error}. What arrived before is on disk.") from error
    finally:
        lock.release()


def _head(
    config: TeachConfig, styles: list[Style], questions: list[Example], dropped: dict[str, int]
) -> dict[str, Any]:
    """Returns the part of teach.json that is known before the first request."""
    templates = {style.name: style.source for style in styles}
    shots = "\n".join(shot.question + shot.rationale for shot in styles[0].shots)
    settings = {name: getattr(config, name) for name in _IDENTITY}
    settings["teacher"] = "server" if config.base_url else "local"
    settings["templates"] = {name: _sha256(text) for name, text in templates.items()}
    settings["shots"] = _sha256(shots)
    return {
        "config": asdict(config),  # holds the name of the key's variable, never the key
        "settings": settings,
        "templates": templates,
        "tells_the_answer": {style.name: style.tells_the_answer for style in styles},
        "questions": {
            "file": config.questions,
            "sha256": _sha256("\n".join(f"{q.id} {digest(q)}" for q in questions)),
            "asked": len(questions),
            "dropped": dropped,
        },
    }


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises UserError where the folder holds completions of other settings."""
    journal, manifest = out / "journal.jsonl", out / "teach.json"
    # Inside a completion's text the quotes are escaped: this stands in the frame of a row alone.
    if not journal.exists() or b'"event": "completion"' not in journal.read_bytes():
        return
    try:
        earlier = read_json(manifest)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{manifest}: wanted the settings of the completions in journal.jsonl beside it; the "
            "file is missing or damaged."
        ) from None
    for name, value in settings.items():
        if earlier.get(name) != value:
            raise UserError(
                f"{out} holds completions made with {name} {earlier.get(name)!r}, now it is "
                f"{value!r}: take the same settings or another folder."
            )


def _write(out: Path, head: dict[str, Any], run: Run) -> TeachResult:
    """Writes rationales.jsonl and the whole teach.json; returns what they say."""
    rows = [
        {
            "id": question.id if number == 1 else f"{question.id}#{number}",
            "question": question.question,
            "rationale": text,
            "answer": question.answer,
        }
        for question in run.questions
        for number, text in enumerate(run.kept[question.id], 1)
    ]
    totals, budget = run.totals, run.budget
    result = TeachResult(
        rationales=out / "rationales.jsonl",
        accepted=len(rows),
        questions=len(run.questions),
        answered=sum(bool(run.kept[question.id]) for question in run.questions),
        totals=totals,
        money=budget.money(totals.paid),
        money_lost=budget.money(totals.lost),
        stopped=run.stopped,
    )
    write_lines(result.rationales, rows)
    manifest = head | {
        "stopped": result.stopped,
        "rationales": result.accepted,
        "questions_answered": result.answered,
        "completions_of_other_questions": run.stale,
        "verdicts": dict(totals.verdicts.most_common()),
        "failures": dict(totals.failures.most_common()),
        "totals": {
            "requests": totals.requests,
            "completions": totals.completions,
            "completions_without_usage": totals.unpriced,
            "prompt_tokens": totals.paid.prompt,
            "completion_tokens": totals.paid.completion,
            "tokens": totals.paid.all,
            "tokens_perhaps_lost": totals.lost.all,
            "money": result.money,
            "money_perhaps_lost": result.money_lost,
            "seconds": round(totals.seconds, 3),
        },
    }
    write_json(out / "teach.json", manifest)
    return result


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
