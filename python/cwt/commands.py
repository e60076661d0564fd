"""The commands of the command line: each a dataclass whose fields are its flags.

`run` of a command does what it is for: it opens the workspace and calls one stage of the pipeline.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from cwt.config import DataConfig, EvalConfig, RunConfig, SkipConfig, TrainConfig
from cwt.data.export import Format, What
from cwt.errors import UserError
from cwt.processes import by_main, is_main
from cwt.progress import Bars
from cwt.teaching.config import TeachConfig
from cwt.training.recipe import ChunkOptions

if TYPE_CHECKING:
    from cwt.pipeline.workspace import Workspace


def _print(text: str) -> None:
    if is_main():
        print(text, flush=True)


@dataclass(frozen=True)
class Command:
    """The options that every command has.

    Attributes:
        out: folder of the run; by default runs/<preset>, for a sweep runs/sweep.
    """

    begins: ClassVar[bool] = False  # whether it may begin a run in a new folder
    stands_alone: ClassVar[bool] = False  # needs no run
    shares: ClassVar[bool] = False  # several processes (torchrun) divide its work
    sections: ClassVar[tuple[str, ...]] = ()  # the configuration that it has flags for

    out: Path = Path("runs/default")

    def config(self) -> RunConfig:
        """Returns the configuration of the run, with the flags of this command."""
        from cwt.pipeline.workspace import saved_config

        saved = saved_config(self.out)
        if saved is None:
            raise UserError(
                f"--out {self.out}: no run there yet; begin one with `cwt run` or `cwt data`."
            )
        return replace(saved, **{name: getattr(self, name) for name in self.sections})

    def workspace(self) -> "Workspace":
        """Returns the run."""
        from cwt.pipeline.workspace import open_workspace
        from cwt.students.load import quiet_libraries

        quiet_libraries()
        return open_workspace(self.config(), self.out)

    def run(self) -> None:
        """Executes the command."""
        raise UserError(f"{type(self).__name__} is no command of its own.")


@dataclass(frozen=True)
class Begins(Command):
    """The options of the commands that may begin a run.

    Attributes:
        preset: default (of tiny), real (of any other student), or quick: a look at the whole
            pipeline in about a minute.
        file: YAML file of options, nested as config.yaml is.
    """

    begins: ClassVar[bool] = True

    preset: str = "default"
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None


@dataclass(frozen=True)
class Run(Begins):
    """Runs everything and prints the table. A rerun goes on where the last one stopped.

    Attributes:
        jobs: how many methods train side by side; 0: one a core for tiny on a CPU, else one.
    """

    shares: ClassVar[bool] = True

    jobs: int = 0
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def config(self) -> RunConfig:
        return self.options

    def run(self) -> None:
        _at_least_zero("run", self.jobs)
        from cwt.pipeline.run import run
        from cwt.report.table import print_table

        self.workspace()  # says what is wrong before anything is done
        with Bars() as bars:
            report = run(self.options, self.out, self.jobs, bars.watch, bars.say)
        if is_main():
            print_table(report, str(self.out))
        _print(", ".join(str(self.out / f"report{s}") for s in (".json", ".md", ".html")))


@dataclass(frozen=True)
class Data(Begins):
    """Makes or imports the examples: the train, validation and test parts of a run.

    Attributes:
        student: tiny, a Hugging Face or GGUF folder, or a name on the hub.
        prompt: template of the prompt, with {question} in it; in a chat, of the user's turn.
        chat_template: ask by the chat template of the student's tokenizer.
        system: the system's turn of a chat.
        seed: decides the data, the order of training and the random controls.
        show: print what was understood, with so many examples unit by unit.
        data: where the examples come from.
    """

    shares: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = (
        "student", "prompt", "chat_template", "system", "seed", "data",
    )  # fmt: skip

    student: str = "tiny"
    prompt: str = "{question}\n"
    chat_template: bool = False
    system: str = ""
    seed: int = 0
    show: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    rest: Annotated[RunConfig, tyro.conf.Suppress] = field(default_factory=RunConfig)

    def config(self) -> RunConfig:
        return replace(self.rest, **{name: getattr(self, name) for name in self.own})

    def run(self) -> None:
        from cwt.pipeline.data import make_data, show_data
        from cwt.students.load import check_student

        ws = self.workspace()
        check_student(self.student)
        with ws.locked():
            record = by_main(partial(make_data, ws))
        dropped = ", ".join(f"{n} {why}" for why, n in record["dropped"].items()) or "none"
        _print(
            f"{ws.out}: {record['train']} training examples, {record['validation']} validation and "
            f"{record['test']} test questions; rows left out: {dropped}"
        )
        if self.show:
            _print(show_data(ws, self.show))


@dataclass(frozen=True, kw_only=True)
class Teach(Command):
    """Asks a teacher model for rationales of a question file, and keeps those that are right.

    The file of right rationales, rationales.jsonl in --out, is what `cwt run --data` takes.

    Attributes:
        out: folder of the rationales, the journal and the running total.
        options: what is asked, of whom, and at what price.
    """

    stands_alone: ClassVar[bool] = True

    out: Path = Path("runs/teach")
    options: Annotated[TeachConfig, tyro.conf.arg(name="")]

    def run(self) -> None:
        from cwt.students.load import quiet_libraries
        from cwt.teaching import teach

        quiet_libraries()
        with Bars() as bars:
            result = teach(self.options, self.out, bars.one("teach"))
        totals = result.totals
        _print(f"{result.rationales}: {result.accepted} right rationales")
        _print(f"{result.answered} of {result.questions} questions have one")
        for title, counts in (("completions", totals.verdicts), ("failures", totals.failures)):
            if counts:
                _print(f"{title}: " + ", ".join(f"{n} {why}" for why, n in counts.most_common()))
        _print(
            f"{totals.paid.all} tokens, money {result.money:.4f} "
            f"(at most {result.money_lost:.4f} more for answers that were lost), "
            f"{totals.seconds:.0f} s"
        )
        if result.stopped != "finished":
            raise UserError(f"teach stopped: {result.stopped}; the same command goes on.")


@dataclass(frozen=True)
class Chunk(Command):
    """Groups the units of the training examples into chunks.

    Attributes:
        chunk: how the units of a rationale become chunks.
    """

    sections = ("chunk",)
    shares: ClassVar[bool] = True

    chunk: ChunkOptions = field(default_factory=ChunkOptions)

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.stages import make_chunks

        with ws.locked(), Bars() as bars:
            record = make_chunks(ws, bars.one("chunks"))
        for method, facts in record.items():
            _print(f"{method}: " + ", ".join(f"{k} {v:.3f}" for k, v in facts.items()))


@dataclass(frozen=True)
class Train(Command):
    """Trains one method (skip-thinking training, STT, in all its rounds).

    Attributes:
        method: row of the table, such as FTT, CWT or STT.
        train: how long and in what steps.
        skip: what may be left out; for STT and its controls.
    """

    sections = ("train", "skip")
    shares: ClassVar[bool] = True

    method: str = tyro.MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.methods import method_named, parent_of
        from cwt.pipeline.stages import train_method

        method = method_named(self.method)
        parent_of(method, ws.config)  # says so where the parent cannot be one, before it is saved
        with ws.locked(), Bars() as bars:
            student = train_method(ws, method, bars.one(method.name))
            bars.watch(method.name, 1.0, str(ws.student(student)))


@dataclass(frozen=True)
class Skip(Command):
    """Decides which units a student of the run can do without, for one round of STT.

    Attributes:
        round: which round of skip-thinking training; in the first, the parent is the judge.
        skip: what may be left out.
    """

    sections = ("skip",)
    shares: ClassVar[bool] = True

    round: int = 1
    skip: SkipConfig = field(default_factory=SkipConfig)

    def run(self) -> None:
        ws = self.workspace()
        from cwt.files import read_json
        from cwt.pipeline.methods import METHODS, parent_of
        from cwt.pipeline.plan import planned_search, search_line
        from cwt.pipeline.stages import skip_round

        if not 1 <= self.round <= ws.config.skip.rounds:
            raise UserError(
                f"skip: --round must be in 1..{ws.config.skip.rounds}, got {self.round}."
            )
        with ws.locked(), Bars() as bars:
            ready = ws.trained(str(parent_of(METHODS["STT"], ws.config)))
            if ready and (search := planned_search(ws, ["STT"])):
                bars.say(search_line(search))
            name = skip_round(ws, METHODS["STT"], self.round - 1, bars.one("skips"))
        if name is None:
            raise UserError(
                "skip: the student is not ready to judge; see --skip.ready-skill. "
                "`cwt train --method STT` trains it on without skips."
            )
        record = read_json(ws.skips(name))
        rates = "".join(f", {100 * v:.0f} % of {k}" for k, v in record["removal_rates"].items())
        missed = record["unsearched_units"]
        rest = f"; {missed:,} not searched, by --skip.search-passes" if missed else ""
        share = f"{100 * record['skipped_share']:.0f} % of the middle units left out"
        _print(f"{name}: {share}{rates}{rest}")


@dataclass(frozen=True)
class Eval(Command):
    """Evaluates one method on the test questions; from then on it is in the table.

    Attributes:
        method: row of the table, such as FTT, CWT or STT.
        served_model: of --generator server: the student's name there; by default its folder.
        eval: how students answer.
    """

    sections = ("eval",)
    shares: ClassVar[bool] = True

    method: str = tyro.MISSING
    served_model: str = ""
    eval: EvalConfig = field(default_factory=EvalConfig)

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.choice import chosen_student
        from cwt.pipeline.methods import method_named
        from cwt.pipeline.run import evaluate_row
        from cwt.pipeline.stages import measure_latency

        method = method_named(self.method)
        with ws.locked(), Bars() as bars:
            student = chosen_student(ws, method) if method.in_rounds else method.name
            told = bars.one(method.name)
            score = evaluate_row(ws, method.name, student, told, self.served_model)
            measure_latency(ws, student, self.served_model)
        _print(f"{method.name}: {100 * score['accuracy']:.1f} % of {score['questions']} questions")


@dataclass(frozen=True)
class Report(Command):
    """Writes report.json, .md and .html from what the run holds, and prints the table."""

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.run import write_reports
        from cwt.report.table import print_table

        with ws.locked():
            print_table(write_reports(ws), str(ws.out))
        _print(", ".join(str(ws.report(suffix)) for suffix in (".json", ".md", ".html")))


@dataclass(frozen=True)
class Inspect(Command):
    """Shows one training example: its chunks, the loss of each, what was skipped and why.

    Attributes:
        index: which training example, counted from 0.
        student_name: the student whose losses to show; by default the parent or, while that is not
            trained, the given student.
    """

    index: int = 0
    student_name: str = ""

    def run(self) -> None:
        ws = self.workspace()
        from cwt.files import read_json
        from cwt.pipeline.views import decided_rounds, view_examples
        from cwt.report.examples import print_example

        parent = ws.config.train.parent
        name = self.student_name or (parent if ws.trained(parent) else "")
        found = view_examples(ws, [self.index], name)
        if not found:
            raise UserError(
                f"inspect: example {self.index} is longer than the student's positions."
            )
        (view,) = found
        rounds = decided_rounds(ws)
        shown = f"{rounds[-1]} ({read_json(ws.skips(rounds[-1]))['judge']})" if rounds else ""
        print_example(view, name or ws.config.student, ws.config.chunk.method, shown)


@dataclass(frozen=True)
class Diagnose(Command):
    """Shows where the gradients of a student come from, and how sharp its loss is.

    Attributes:
        method: student, such as CWT or STT-round-1.
    """

    shares: ClassVar[bool] = True

    method: str = tyro.MISSING

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.stages import diagnose_student

        with ws.locked():
            found = diagnose_student(ws, self.method)
        for group in ("by_role", "by_chunk"):
            for name, row in found.get(group, {}).items():
                facts = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
                _print(f"{group[3:]} {name}: {facts}")
        for part in ("train", "test"):
            facts = ", ".join(f"{key} {value:.4g}" for key, value in found[part].items())
            _print(f"{part}: {facts}")


@dataclass(frozen=True)
class Export(Command):
    """Writes training rows for other trainers: what a row of the table trains.

    Attributes:
        to: format of the rows.
        method: row of the table whose chunks and skips these are.
        what: chunk samples, or what stays of the whole rationales; by default what the row trains.
        file: JSONL file to write; by default export/<to>/<method>-<what>.jsonl in the run.
        tokenized: for trl and axolotl: token ids with labels, in place of text.
        tokenizer: student whose tokenizer is used; by default the run's.
    """

    to: Format = tyro.MISSING
    method: str = "CWT"
    what: What | None = None
    file: Path | None = None
    tokenized: bool = False
    tokenizer: str = ""

    def run(self) -> None:
        ws = self.workspace()
        from cwt.pipeline.export import export
        from cwt.pipeline.methods import method_named

        method = method_named(self.method)
        done = export(ws, method, self.to, self.what, self.file, self.tokenized, self.tokenizer)
        left_out = f", {done.too_long} longer than train.max_length left out"
        _print(f"{done.file}: {done.rows} rows{left_out if done.too_long else ''}")
        if done.open_ends and self.to in ("trl", "messages", "alpaca") and not self.tokenized:
            _print(
                f"{done.open_ends} rows are not the last of their rationale, but trainers of this "
                "format end the sequence after every row; docs/exporting.md says what to do."
            )


@dataclass(frozen=True, kw_only=True)
class Merge(Command):
    """Writes the whole model of a student that was trained with --lora: base and adapters in one.

    Attributes:
        out: folder of the whole model.
        student: folder of the adapter, such as runs/mine/students/STT-round-4.
    """

    stands_alone: ClassVar[bool] = True

    out: Path
    student: str

    def run(self) -> None:
        from cwt.students.load import merge, quiet_libraries

        quiet_libraries()
        merge(self.student, self.out)
        _print(str(self.out))


@dataclass(frozen=True)
class Sweep(Begins):
    """Runs tasks x seeds x methods, each (task, seed) in a folder of its own, and compares.

    Attributes:
        tasks: generated tasks, comma-separated.
        seeds: seeds, comma-separated.
        jobs: how many runs go side by side, at most; 0: one a core for tiny on a CPU, else one; on
            a Ray cluster as many as it has room for.
        cluster: local: this machine; auto: Ray where it is installed (the cluster that runs, or one
            of this machine alone), else local; ray://HOST:PORT: that Ray cluster.
        gpus: GPUs of a run on a Ray cluster; a share such as 0.5 lets runs share one. By default
            one where the cluster has some.
    """

    tasks: str = "arithmetic,objects,letters,coin"
    seeds: str = "0,1,2"
    jobs: int = 0
    cluster: str = "local"
    gpus: float | None = None
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def run(self) -> None:
        _at_least_zero("sweep", self.jobs)
        from cwt.data.tasks import TASKS
        from cwt.pipeline.cells import uses_ray
        from cwt.pipeline.sweep import parse_list, sweep
        from cwt.students.load import check_student, quiet_libraries

        tasks = parse_list(self.tasks, "tasks", list(TASKS))
        seeds = parse_list(self.seeds, "seeds")
        if not all(seed.isdecimal() for seed in seeds):
            raise UserError(f"--seeds must be whole numbers, got {self.seeds!r}.")
        if self.gpus is not None and not self.gpus >= 0:
            raise UserError(f"sweep: --gpus must not be negative, got {self.gpus}.")
        quiet_libraries()
        check_student(self.options.student)
        with Bars() as bars:
            bars.say("the runs go to " + ("Ray" if uses_ray(self.cluster) else "this machine"))
            sweep(
                self.options,
                tasks,
                [int(s) for s in seeds],
                self.out,
                self.jobs,
                bars.watch,
                self.cluster,
                self.gpus,
            )
        _print((self.out / "sweep.md").read_text(encoding="utf-8"))
        _print(f"{self.out / 'sweep.json'}, {self.out / 'sweep.md'}")


@dataclass(frozen=True)
class Doctor(Command):
    """Shows what this installation has, whether it works, and what to do where it does not.

    Attributes:
        out: where runs would be written; its disk is looked at.
    """

    stands_alone: ClassVar[bool] = True

    out: Path = Path("runs")

    def run(self) -> None:
        from cwt.doctor import diagnose_installation

        if code := diagnose_installation(self.out):
            raise SystemExit(code)


def _at_least_zero(command: str, jobs: int) -> None:
    if jobs < 0:
        raise UserError(f"{command}: --jobs must not be negative, got {jobs}.")


COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "data": Data,
    "teach": Teach,
    "chunk": Chunk,
    "train": Train,
    "skip": Skip,
    "eval": Eval,
    "report": Report,
    "inspect": Inspect,
    "diagnose": Diagnose,
    "export": Export,
    "merge": Merge,
    "sweep": Sweep,
    "doctor": Doctor,
}
