"""The folder of a run: what lies where, and whether it belongs to this run."""

import dataclasses
from pathlib import Path

from .config import RunConfig, load_config
from .data import Example, load_examples
from .errors import UserError
from .files import read_json, read_lines

# Options that choose among results of a run, or how it is computed, without changing any of them.
MAY_CHANGE = {"methods", "cpu"}


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A run: its configuration and its folder.

    config.yaml                      the configuration, whole
    data/{train,validation,test}.jsonl, data/data.json
    chunks/{ac,dp,sbc,sbc-exact}.jsonl
    students/<name>/                 Hugging Face folders, with train.json and train_log.jsonl
    skips/<name>.json, .jsonl        units that stay; the evidence of every decision
    evals/<name>.json, .jsonl        score; what the student wrote
    diagnostics/<name>.json          gradients by chunk and kind, sharpness
    report.json, report.md, report.html
    """

    config: RunConfig
    out: Path

    def data(self, part: str) -> Path:
        return self.out / "data" / f"{part}.jsonl"

    def chunks(self, method: str) -> Path:
        return self.out / "chunks" / f"{method}.jsonl"

    def student(self, name: str) -> Path:
        return self.out / "students" / name

    def skips(self, name: str) -> Path:
        return self.out / "skips" / f"{name}.json"

    def evaluation(self, name: str) -> Path:
        return self.out / "evals" / f"{name}.json"

    def examples(self, part: str) -> list[Example]:
        """Returns the examples of a part: train, validation or test."""
        path = self.data(part)
        if not path.exists():
            raise UserError(f"{self.out} holds no data yet; run `cwt data --out {self.out}` first.")
        return load_examples(path)

    def boundaries(self, chunking: str = "") -> list[list[int]]:
        """Returns the boundaries of every training example, by default as configured."""
        path = self.chunks(chunking or self.config.chunking)
        if not path.exists():
            raise UserError(
                f"{self.out} holds no chunks yet; run `cwt chunk --out {self.out}` first."
            )
        return [row["boundaries"] for row in read_lines(path)]

    def trained(self, name: str) -> bool:
        return (self.student(name) / "train.json").exists()

    def rounds(self, row: str = "STT") -> list[str]:
        """Returns the names of the rounds of a row of the table, in order."""
        return [f"{row}-round-{r}" for r in range(1, self.config.rounds + 1)]

    def keeps(self, name: str) -> list[frozenset[int]]:
        """Returns the units that stay, for every training example."""
        return [frozenset(units) for units in read_json(self.skips(name))["keeps"]]


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
    if any(out.iterdir()):
        raise UserError(f"--out {out}: holds files but no run of cwt (no config.yaml).")
    return None


def open_workspace(config: RunConfig, out: Path) -> Workspace:
    """Returns the run of this configuration in a folder, begun or to be continued; writes nothing.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    saved = saved_config(out)
    if saved is not None:
        for field in dataclasses.fields(RunConfig):
            there, here = getattr(saved, field.name), getattr(config, field.name)
            if field.name not in MAY_CHANGE and there != here:
                raise UserError(
                    f"--out {out}: is the folder of another run: {field.name} is {there!r} there "
                    f"and {here!r} here. Choose another --out, or give the same options."
                )
    return Workspace(config, out)
