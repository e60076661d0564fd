"""The folder of a run: the path of every file, and whether a configuration belongs to it."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cwt.config import RunConfig, load_config, save_config
from cwt.data.example import Example, load_examples
from cwt.errors import UserError
from cwt.files import is_part, read_json, read_lines
from cwt.processes import by_main, count, start

# Options that choose which results there are, or how they are computed, but change none.
_MAY_CHANGE = {
    "methods", "cpu", "trackers", "train.checkpoint_seconds", "eval.latency_questions",
    "eval.generator", "eval.base_url", "eval.concurrency", "eval.timeout",
}  # fmt: skip

# The options of a stage are fixed once it has written these files; all others, once there is data.
_FIXED_BY = {
    "chunk": "chunks/chunks.json",
    "train": "students/*/*",
    "skip": "skips/*",
    "eval": "evals/*",
}


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A run: its configuration and its folder.

    config.yaml                      the configuration, whole
    data/{train,validation,test}.jsonl, data/data.json, data/dropped.jsonl
    chunks/{ac,dp,sbc,sbc-exact}.jsonl, chunks/chunks.json
    students/<name>/                 Hugging Face folders, with train.json and train_log.jsonl
    skips/<name>.json, .jsonl        units that stay; the evidence of every decision
    skips/<name>.examples.jsonl      the training examples, where units have other texts
    choices/<row>.json               STT: was the student ready, what was chosen among what, and why
    evals/<name>.json, .jsonl        score; what the student wrote
    methods/<row>.json               which student the row of the table is
    latency/<name>.json              wall time of one answer alone
    diagnostics/<name>.json          gradients by chunk and role, sharpness
    export/<to>/<row>-<what>.jsonl   rows for other trainers
    run.json                         the plan, versions, git commit
    views.json                       examples as the report shows them
    report.json, report.md, report.html
    """

    config: RunConfig
    out: Path

    def data(self, part: str) -> Path:
        """Returns the file of a part of the data: train, validation or test."""
        return self.out / "data" / f"{part}.jsonl"

    @property
    def dropped(self) -> Path:
        """The rows that were left out: file, line, reason."""
        return self.out / "data" / "dropped.jsonl"

    @property
    def data_record(self) -> Path:
        """The file that counts what was read and left out."""
        return self.out / "data" / "data.json"

    def chunks(self, method: str) -> Path:
        """Returns the boundaries of a chunking."""
        return self.out / "chunks" / f"{method}.jsonl"

    @property
    def chunks_record(self) -> Path:
        """The file of the costs of all chunkings."""
        return self.out / "chunks" / "chunks.json"

    def student(self, name: str) -> Path:
        """Returns the folder of a trained student."""
        return self.out / "students" / name

    def log(self, name: str) -> Path:
        """Returns the training log of a student, a line a step."""
        return self.student(name) / "train_log.jsonl"

    def skips(self, name: str) -> Path:
        """Returns the file of the units that stay for a student."""
        return self.out / "skips" / f"{name}.json"

    def decisions(self, name: str) -> Path:
        """Returns the file of the evidence behind `skips`."""
        return self.skips(name).with_suffix(".jsonl")

    def rewritten(self, name: str) -> Path:
        """Returns the file of the training examples of a student that trains on other texts."""
        return self.skips(name).with_suffix(".examples.jsonl")

    def choice(self, method: str) -> Path:
        """Returns the file that says which student a row in rounds ends with, and why."""
        return self.out / "choices" / f"{method}.json"

    def evaluation(self, name: str, part: str = "test") -> Path:
        """Returns the score of a student on a part of the data."""
        return self.out / "evals" / f"{name if part == 'test' else f'{name}-{part}'}.json"

    def generations(self, name: str, part: str = "test") -> Path:
        """Returns what a student wrote for the questions of a part of the data."""
        return self.evaluation(name, part).with_suffix(".jsonl")

    def method(self, name: str) -> Path:
        """Returns the file that says which student a row of the table is."""
        return self.out / "methods" / f"{name}.json"

    def latency(self, name: str) -> Path:
        """Returns the latency of a student."""
        return self.out / "latency" / f"{name}.json"

    def diagnostics(self, name: str) -> Path:
        """Returns the diagnostics of a student."""
        return self.out / "diagnostics" / f"{name}.json"

    def export(self, kind: str, name: str) -> Path:
        """Returns a file of rows for other trainers, in a format."""
        return self.out / "export" / kind / f"{name}.jsonl"

    @property
    def views(self) -> Path:
        """Examples as the report shows them."""
        return self.out / "views.json"

    def report(self, suffix: str) -> Path:
        """Returns the report as .json, .md or .html."""
        return self.out / f"report{suffix}"

    def examples(self, part: str) -> list[Example]:
        """Returns the examples of a part: train, validation or test."""
        path = self.data(part)
        if not path.exists():
            raise UserError(f"{self.out} holds no data yet; run `cwt data --out {self.out}` first.")
        return load_examples(path)

    def training_examples(self, chunking: str | None = None) -> list[Example]:
        """Returns the training examples in chunks, as configured or as asked for."""
        path = self.chunks(chunking or self.config.chunk.method)
        examples = self.examples("train")
        if not path.exists():
            raise UserError(
                f"{self.out} holds no chunks yet; run `cwt chunk --out {self.out}` first."
            )
        rows = zip(examples, read_lines(path), strict=True)
        return [example.chunked(row["boundaries"]) for example, row in rows]

    def with_skips(self, examples: Sequence[Example], name: str) -> list[Example]:
        """Returns the training examples with the units that stay for a student."""
        if self.rewritten(name).exists():
            return load_examples(self.rewritten(name))
        kept = read_json(self.skips(name))["kept_units"]
        return [e.keeping(frozenset(units)) for e, units in zip(examples, kept, strict=True)]

    def trained(self, name: str) -> bool:
        """Returns whether a student is completely trained."""
        return (self.student(name) / "train.json").exists()

    def student_of(self, method: str) -> str:
        """Returns the student that a row of the table is."""
        return str(read_json(self.method(method))["student"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other runs, and brings its configuration up to date.

        Raises:
            UserError: another run works on the folder.
        """
        lock = FileLock(self.out / ".lock", timeout=0)
        if count() > 1:
            start(self.config.cpu)
        by_main(lambda: self._take(lock))  # of several processes the first one holds the lock
        try:
            yield
        finally:
            lock.release()

    def _take(self, lock: FileLock) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"--out {self.out}: another process is working on this run.") from None
        try:
            self._clear()
            saved = saved_config(self.out)
            if saved is not None and saved != self.config:
                save_config(self.out / "config.yaml", self.config)
        except BaseException:
            lock.release()
            raise

    def _clear(self) -> None:
        """Removes what killed processes left of files that they were writing."""
        for folder in ("", "*/", "*/*/"):
            for path in filter(is_part, self.out.glob(f"{folder}.*.part")):
                path.unlink(missing_ok=True)
        for record in self.out.glob("students/*/train.json"):  # its run is complete
            if any(record.parent.glob("*checkpoint*")):
                from cwt.training.checkpoint import remove_checkpoints

                remove_checkpoints(record.parent)


def saved_config(out: Path) -> RunConfig | None:
    """Returns the configuration of the run in a folder, None where the folder is new or empty.

    Raises:
        UserError: the folder holds something else than a run.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; wanted a folder.")
    if (out / "config.yaml").exists():
        return load_config(out / "config.yaml")
    if any(path.name != ".lock" and not is_part(path) for path in out.iterdir()):
        raise UserError(f"--out {out}: holds files but no run of cwt (no config.yaml).")
    return None


def open_workspace(config: RunConfig, out: Path) -> Workspace:
    """Returns the run of this configuration in a folder, begun or to be continued; writes nothing.

    The options of a stage may change until that stage has written something.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    saved = saved_config(out)
    if saved is not None:
        there, here = _flat(saved), _flat(config)
        for name, value in here.items():
            if value != there[name] and _is_fixed(name, out):
                raise UserError(
                    f"--out {out}: is the folder of another run: {name} is {there[name]!r} there "
                    f"and {value!r} here. Choose another --out, or give the same options."
                )
    return Workspace(config, out)


def _is_fixed(name: str, out: Path) -> bool:
    if name in _MAY_CHANGE:
        return False
    written = _FIXED_BY.get(name.split(".")[0], "data/data.json")
    return any(out.glob(written))


def _flat(config: Any, at: str = "") -> dict[str, Any]:
    """Returns the options of a configuration by their dotted names."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result |= _flat(value, f"{at}{field.name}.")
        else:
            result[f"{at}{field.name}"] = value
    return result
