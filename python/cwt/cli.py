"""`cwt`: chunk-wise training and skip-thinking training from the command line.

Finds the command, its defaults and its flags; cwt.commands says what each command does.
"""

import argparse
import errno
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from cwt.commands import COMMANDS, Command, Data
from cwt.config import RunConfig, configured, preset_values, yaml_values
from cwt.errors import UserError
from cwt.interrupts import terminable
from cwt.processes import ToldElsewhere, count, is_broken, is_main, leave

USAGE = """usage: cwt COMMAND [options]        cwt COMMAND --help lists the options

  run      everything: data, chunks, training, skip search, evaluation, table
  data     make or import the examples
  teach    ask a teacher model for rationales of a question file
  chunk    group their units into chunks: evenly, by coherence, or by the student's loss
  train    train one method (--method CWT)
  skip     decide which units a student can do without, for one round
  eval     evaluate one method on the test questions (--method CWT)
  report   write report.json, .md and .html again, print the table
  inspect  show one example: chunks, loss of each, what was skipped and why
  diagnose gradient shares, over-smoothing, sharpness of one student (--method CWT)
  export   write training rows for TRL, axolotl and others (--to trl --method CWT)
  merge    write the whole model of a student trained with --lora
  sweep    run tasks x seeds x methods, write the tables with intervals
  doctor   show versions, libraries, devices; check them; say what to do

A run lives in --out DIR and goes on where it stopped. `cwt run` alone runs the embedded default.
FTT is full-thinking training (the baseline), CWT chunk-wise training, STT skip-thinking training.
"""


# What is wrong with a disk, not with a program: full, over its quota, read-only, not ours.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; an error of the user's is one line and exit code 2.

    Interrupted (SIGINT) it ends with exit code 130, terminated (SIGTERM) with 143, after a line
    that says how to go on.
    """
    argv = sys.argv[1:] if arguments is None else arguments
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    with terminable() as terminated:
        try:
            if argv[0] not in COMMANDS:
                raise UserError(f"unknown command {argv[0]!r}; `cwt --help` lists them.")
            command = _parse(argv[0], argv[1:])
            if count() > 1 and not command.shares:
                refused = UserError if is_main() else ToldElsewhere
                raise refused(
                    f"cwt {argv[0]} runs in one process, and a launcher started {count()}."
                )
            command.run()
            leave()
        except ToldElsewhere:
            raise SystemExit(2) from None
        except UserError as error:
            _fail(str(error))
        except RuntimeError as error:
            if not is_broken(error):
                raise
            _fail("another process of this run has ended; the same command goes on from here.")
        except OSError as error:
            if error.errno not in _DISK:
                raise
            _fail(f"{error.filename}: {error.strerror}. What was there before is intact.")
        except KeyboardInterrupt:
            if is_main():
                again = shlex.join(["cwt", *argv])
                print(f"cwt: stopped; the same command goes on from here: {again}", file=sys.stderr)
            raise SystemExit(143 if terminated.signum else 130) from None


def _fail(message: str) -> NoReturn:
    print(f"cwt: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _summary(kind: type[Command]) -> str:
    return (kind.__doc__ or "").partition("\n\n")[0]


AnyCommand = TypeVar("AnyCommand", bound=Command)


def _parse(name: str, argv: list[str]) -> Command:
    """Returns a command with its flags.

    What no flag says comes from the run saved in --out, which --preset and --config change, or,
    where the folder is new, from the preset of the student (default for tiny, real for others),
    --preset and --config, in this order.
    """
    kind = COMMANDS[name]
    wants_help = any(word in ("-h", "--help") for word in argv)
    if kind.stands_alone:
        return tyro.cli(kind, args=argv, prog=f"cwt {name}", description=_summary(kind))
    defaults = kind() if wants_help else _defaults(name, kind, argv)
    return tyro.cli(
        kind, args=argv, default=defaults, prog=f"cwt {name}", description=_summary(kind)
    )


def _defaults(name: str, kind: type[AnyCommand], argv: list[str]) -> AnyCommand:
    """Returns a command with the values that hold where no flag says otherwise."""
    from cwt.pipeline.workspace import saved_config

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--out", "--preset", "--config", "--student", "--budget", "--epochs"):
        first.add_argument(flag)
    found, _ = first.parse_known_args(argv)
    file = yaml_values(Path(found.config)) if kind.begins and found.config else {}
    student = found.student or file.get("student") or "tiny"
    base = "default" if student == "tiny" else "real"
    preset = found.preset if kind.begins and found.preset else base
    out = Path(found.out or f"runs/{name if name == 'sweep' else preset}")
    saved = None if name == "sweep" else saved_config(out)
    # --epochs wins over --budget, so a budget that is given forgets epochs that are not.
    only_budget = found.budget is not None and found.epochs is None
    if not kind.begins:
        sections = {s: getattr(saved, s) for s in kind.sections} if saved else {}
        if only_budget and "train" in sections:
            sections["train"] = replace(sections["train"], epochs=0.0)
        return kind(out=out, **sections)
    config = saved or configured(RunConfig(), preset_values(base), f"preset {base}")
    if found.preset:
        config = configured(config, preset_values(preset), f"preset {preset}")
    if found.config:
        config = configured(config, file, found.config)
    if only_budget:
        config = replace(config, train=replace(config.train, epochs=0.0))
    where: dict[str, Any] = {"out": out, "preset": preset}
    if kind is Data:
        mine = {name: getattr(config, name) for name in Data.own}
        return kind(**where, **mine, rest=config)  # type: ignore[call-arg]
    return kind(**where, options=config)  # type: ignore[call-arg]


if __name__ == "__main__":
    main()
