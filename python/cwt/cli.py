"""`cwt`: chunk-wise training and skip-thinking training from the command line."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

USAGE = """usage: cwt COMMAND [options]        cwt COMMAND --help lists the options

  run      everything: data, chunks, training, skip search, STT, evaluation, table
  data     make or import the examples
  chunk    group their units into chunks: AC, DP, SBC and its exact form
  train    train one method (--method CWT)
  skip     decide which units a student can do without (one round of STT)
  eval     evaluate one student on the test questions (--method CWT)
  report   write report.json, .md and .html again, print the table
  inspect  show one example: chunks, loss of each, what was skipped and why
  diagnose gradient shares, over-smoothing, sharpness of one student (--method CWT)
  evidence run tasks x seeds x methods, write the tables with intervals

A run lives in --out DIR and goes on where it stopped. `cwt run` alone runs the embedded default.
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; an error of the user's is one line and exit code 2."""
    argv = sys.argv[1:] if arguments is None else arguments
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"unknown command {argv[0]!r}; `cwt --help` lists them.")
        COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("cwt: stopped; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str) -> NoReturn:
    print(f"cwt: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _parse(
    command: str, argv: list[str], begins: bool, extra: dict[str, Any], many: bool = False
) -> tuple[Any, Any]:
    """Returns (workspace, the options that are not of the configuration).

    Values come from the defaults, then the run saved in --out, then --preset, then --config, then
    the flags. Only a command that begins a run may be given a new folder. With `many` the folder is
    one of several runs.
    """
    from transformers import HfArgumentParser

    from .config import RunConfig, preset_values, yaml_values
    from .workspace import Workspace, open_workspace, saved_config

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{command}: {message}")

    def parser(**options: Any) -> Any:
        made = Parser([RunConfig], prog=f"cwt {command}", allow_abbrev=False, **options)
        made.add_argument("--out", type=Path, help="folder of the run [runs/<preset>]")
        made.add_argument("--preset", help="default or quick")
        made.add_argument("--config", type=Path, help="YAML file of options")
        for flag, keywords in extra.items():
            made.add_argument(flag, **keywords)
        return made

    found = parser(description=COMMANDS[command].__doc__)
    first = found.parse_args(argv)
    out = first.out or Path("runs") / (command if many else first.preset or "default")
    saved = None if many else saved_config(out)
    if saved is None and not begins:
        raise UserError(f"--out {out}: no run there yet; begin one with `cwt run` or `cwt data`.")
    values = asdict(saved) if saved else {}
    if first.preset or not saved:
        values |= preset_values(first.preset or "default")
    if first.config:
        values |= yaml_values(first.config)
    found.set_defaults(**values)
    config, rest = found.parse_args_into_dataclasses(argv)
    from .students import check_student, quiet_libraries

    quiet_libraries()
    if begins:
        check_student(config.student)
    return (Workspace if many else open_workspace)(config, out), rest


def _print(text: str) -> None:
    print(text, flush=True)


class _Bars:
    """Progress bars on a terminal; elsewhere a line when something is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.live = Console(stderr=True).is_terminal
        self.bars = Progress(
            TextColumn("{task.description:22}"), BarColumn(30),
            TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True), disable=not self.live,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "_Bars":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def report(self, name: str, share: float, text: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=1.0, text=text)
        self.bars.update(self.tasks[name], completed=share, text=text)
        if share >= 1.0 and not self.live:
            _print(f"  {name}: {text}")


def run(argv: list[str]) -> None:
    """Runs everything and prints the table. A rerun goes on where the last one stopped."""
    jobs = {"type": int, "default": 0, "help": "methods trained side by side, 0 for automatic"}
    ws, rest = _parse("run", argv, True, {"--jobs": jobs})
    from .methods import selected_methods
    from .schedule import default_jobs, run_methods
    from .stages import make_chunks, make_data

    if rest.jobs < 0:
        raise UserError(f"run: --jobs must not be negative, got {rest.jobs}.")
    names = selected_methods(ws)
    facts = make_data(ws)
    dropped = ", ".join(f"{n} {why}" for why, n in facts["dropped"].items())
    read = f"{facts['rationales_read']} rationales read, " if ws.config.data else ""
    _print(
        f"{ws.out}: {read}{facts['train']} training examples, {facts['validation']} validation and "
        f"{facts['test']} test questions" + (f"; left out: {dropped}" if dropped else "")
    )
    with _Bars() as bars:
        make_chunks(ws, lambda share, text: bars.report("chunks", share, text))
        bars.report("chunks", 1.0, "done")
        for name in names:
            bars.report(name, 0.0, "waiting")
        run_methods(ws, rest.jobs or default_jobs(ws), bars.report)
    _table(ws)


def data(argv: list[str]) -> None:
    """Makes or imports the examples."""
    ws, _ = _parse("data", argv, True, {})
    from .stages import make_data

    _print(f"{ws.out}: {make_data(ws)}")


def chunk(argv: list[str]) -> None:
    """Groups the units of the training examples into chunks."""
    ws, _ = _parse("chunk", argv, False, {})
    from .stages import make_chunks

    with _Bars() as bars:
        record = make_chunks(ws, lambda share, text: bars.report("chunks", share, text))
    for method, facts in record.items():
        _print(f"{method}: " + ", ".join(f"{k} {v:.3f}" for k, v in facts.items()))


def _method_option(choices: Any) -> dict[str, Any]:
    return {"--method": {"required": True, "choices": list(choices), "help": "row of the table"}}


def train(argv: list[str]) -> None:
    """Trains one method (for STT: all its rounds)."""
    from .methods import METHODS, needed

    ws, rest = _parse("train", argv, False, _method_option(METHODS))
    needed(ws, rest.method)  # says so when the parent cannot be one
    with _Bars() as bars:
        student = METHODS[rest.method][1](
            ws, lambda share, text: bars.report(rest.method, share, text)
        )
        bars.report(rest.method, 1.0, f"{ws.student(student)}")


def skip(argv: list[str]) -> None:
    """Decides which units a student of the run can do without."""
    options = {
        "--round": {"type": int, "default": 1, "help": "of STT; round 1 is judged by --parent"},
    }
    ws, rest = _parse("skip", argv, False, options)
    from .files import read_json
    from .stages import find_skips, round_judge

    if not 1 <= rest.round <= ws.config.rounds:
        raise UserError(f"skip: --round must be in 1..{ws.config.rounds}, got {rest.round}.")
    rounds = ws.rounds()[: rest.round]
    name, before = rounds[-1], rounds[-2] if rest.round > 1 else None
    with _Bars() as bars:
        find_skips(
            ws, name, round_judge(ws, rest.round - 1), before or ws.config.parent, before,
            lambda share, text: bars.report(name, share, text),
        )  # fmt: skip
    record = read_json(ws.skips(name))
    rates = "".join(f", {100 * v:.0f} % of {k}" for k, v in record["removal_rates"].items())
    _print(f"{name}: {100 * record['skipped_share']:.0f} % of the middle units left out{rates}")


def evaluate(argv: list[str]) -> None:
    """Evaluates one method on the test questions."""
    from .methods import METHODS

    ws, rest = _parse("eval", argv, False, _method_option(METHODS))
    from .files import read_json, write_json
    from .stages import best_round, evaluate_student

    is_stt = rest.method.startswith("STT")
    student = best_round(ws, rest.method) if is_stt else rest.method
    with _Bars() as bars:
        evaluate_student(
            ws, student, "test", lambda share, text: bars.report(rest.method, share, text)
        )
    write_json(
        ws.out / "methods" / f"{rest.method}.json", {"name": rest.method, "student": student}
    )
    score = read_json(ws.evaluation(student))
    _print(f"{rest.method}: {100 * score['accuracy']:.1f} % of {score['questions']} questions")


def report(argv: list[str]) -> None:
    """Writes report.json, .md and .html from what the run holds, and prints the table."""
    ws, _ = _parse("report", argv, False, {})
    _table(ws)


def _table(ws: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from .page import write_page
    from .report import COLUMNS, cells, data_lines, make_report, notes

    found = make_report(ws)
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    table = Table(title=f"{ws.out}", title_justify="left")
    for i, (_, title) in enumerate(COLUMNS):
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in found["methods"]:
        table.add_row(*cells(row))
    for line in data_lines(found):
        console.print(line, highlight=False)
    console.print(table)
    for line in notes(found):
        console.print(line, highlight=False)
    _print(f"{ws.out / 'report.json'}, {ws.out / 'report.md'}, {write_page(ws, found)}")


def diagnose(argv: list[str]) -> None:
    """Shows where the gradients of a student come from, and how sharp its loss is."""
    from .methods import METHODS
    from .stages import diagnose_student

    options = {"--method": {"required": True, "help": "student, e.g. CWT or STT-round-1"}}
    ws, rest = _parse("diagnose", argv, False, options)
    known = [*METHODS, *ws.rounds()]
    if rest.method not in known:
        raise UserError(f"diagnose: --method must be one of {', '.join(known)}, got {rest.method}.")
    found = diagnose_student(ws, rest.method)
    for group in ("by_kind", "by_chunk"):
        for name, row in found.get(group, {}).items():
            facts = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
            _print(f"{group[3:]} {name}: {facts}")
    for part in ("train", "test"):
        facts = ", ".join(f"{key} {value:.4g}" for key, value in found[part].items())
        _print(f"{part}: {facts}")


def evidence(argv: list[str]) -> None:
    """Runs tasks x seeds x methods, each (task, seed) in a folder of its own, and compares."""
    from .tasks import TASKS

    options = {
        "--tasks": {"default": ",".join(TASKS), "help": "generated tasks, comma-separated"},
        "--seeds": {"default": "0,1,2", "help": "comma-separated"},
        "--jobs": {"type": int, "default": 0, "help": "runs side by side, 0 for one a core"},
    }
    ws, rest = _parse("evidence", argv, True, options, many=True)
    from .evidence import as_markdown, parse_list, run_matrix
    from .schedule import default_jobs

    if ws.config.data:
        raise UserError("evidence: takes generated tasks; --data is for `cwt run`.")
    tasks = parse_list(rest.tasks, "tasks", list(TASKS))
    seeds = parse_list(rest.seeds, "seeds")
    if not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"--seeds must be whole numbers, got {rest.seeds!r}.")
    if rest.jobs < 0:
        raise UserError(f"evidence: --jobs must not be negative, got {rest.jobs}.")
    jobs = rest.jobs or default_jobs(ws)
    found = run_matrix(ws.config, tasks, [int(s) for s in seeds], ws.out, jobs, _print)
    _print(as_markdown(found))
    _print(f"{ws.out / 'evidence.json'}, {ws.out / 'evidence.md'}")


def inspect(argv: list[str]) -> None:
    """Shows one training example: its chunks, the loss of each, what was skipped and why."""
    options = {
        "--index": {"type": int, "default": 0, "help": "of the training example"},
        "--student-name": {"default": "", "help": "whose loss to show [CWT, or the given student]"},
    }
    ws, rest = _parse("inspect", argv, False, options)
    from .inspect import show_example

    show_example(ws, rest.index, rest.student_name)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": run,
    "data": data,
    "chunk": chunk,
    "train": train,
    "skip": skip,
    "eval": evaluate,
    "report": report,
    "inspect": inspect,
    "diagnose": diagnose,
    "evidence": evidence,
}

if __name__ == "__main__":
    main()
