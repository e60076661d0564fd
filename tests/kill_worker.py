"""Runs commands of `cwt` in forked processes and kills them; `test_kill.py` starts it.

A process of its own, with one thread, so that a fork is a whole process; forking one that has
imported everything makes a kill cost no start of Python.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def changes_files(event, arguments, folder):
    """Whether an audit event is about to change something in a folder."""
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else mode != "r"
        return bool(writes) and isinstance(path, (str, os.PathLike)) and folder in str(path)
    return event in _CHANGES and folder in str(arguments[0])


def run(arguments, folder, die_at=0, die_after=None, counter=None):
    """Runs a command in a child; returns (its exit status, seconds).

    Args:
        arguments: of the command.
        folder: whose changes count.
        die_at: the change before which the child is killed, the first being 1; 0: none.
        die_after: seconds after which the child is killed; None: never.
        counter: file for the number of changes.
    """
    begin = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            seen = 0

            def watch(event, values):
                nonlocal seen
                if changes_files(event, values, folder):
                    seen += 1
                    if seen == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            from cwt.cli import main

            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            main(arguments)
            code = 0
            if counter:
                counter.write_text(str(seen))
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)
    if die_after is not None:
        while time.monotonic() - begin < die_after:
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0, time.monotonic() - begin
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status, time.monotonic() - begin


def records(folder):
    """The files that say that a piece of work is done, with what they hold."""
    names = ("data/*.json", "chunks/*.json", "skips/*.json", "evals/*.json", "methods/*.json",
             "latency/*.json", "students/*/train.json")  # fmt: skip
    paths = [p for name in names for p in folder.glob(name)]
    paths += [p.parent / "model.safetensors" for p in folder.glob("students/*/train.json")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def main():
    """Does every command undisturbed in one folder, then with kills in others."""
    plan = json.loads(sys.argv[1])
    root, commands, rng = Path(plan["root"]), plan["commands"], random.Random(plan["seed"])
    sizes = []
    for command in commands:
        out, counter = root / "straight", root / "counter"
        status, seconds = run([*command, "--out", str(out)], str(out), counter=counter)
        assert status == 0, (command, status)
        sizes.append((int(counter.read_text()), seconds))
    kills, folders = [], []
    while len(kills) < plan["kills"] or sum(k["steps"] > 0 for k in kills) < plan["behind"]:
        out = root / f"killed-{len(folders)}"
        folders.append(str(out))
        done = {}
        for command, (changes, seconds) in zip(commands, sizes, strict=True):
            arguments = [*command, "--out", str(out)]
            for _ in range(plan["tries"][command[0]]):
                if plan["clock"] and rng.random() < 0.5:
                    moment = {"die_after": rng.uniform(0, seconds)}
                else:
                    first = max(1, changes // 8) if command[0] == "train" else 1
                    moment = {"die_at": rng.randint(first, max(1, changes // 3))}
                status, _ = run(arguments, str(out), **moment)
                found = records(out)
                assert done.items() <= found.items(), (arguments, moment, "was done again")
                done = found
                if status != signal.SIGKILL:
                    assert status == 0, (arguments, moment, status)
                    break
                steps = [int(p.name.split("-")[1]) for p in out.glob("students/*/checkpoint-*")]
                kills.append({"stage": command[0], "steps": max(steps, default=0), **moment})
            status, _ = run(arguments, str(out))
            assert status == 0, (arguments, status, kills[-3:])
            found = records(out)
            assert done.items() <= found.items(), (arguments, "was done again")
            done = found
    print(json.dumps({"kills": kills, "folders": folders}))


if __name__ == "__main__":
    import cwt.commands
    import cwt.pipeline.run
    import cwt.pipeline.skips
    import cwt.teaching  # noqa: F401

    gc.freeze()  # a collection in a child would copy every page of what is imported
    main()
