"""What test_processes.py runs under torchrun: processes_worker.py OUT PART..."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from app_fixtures import examples
from cwt.config import DataConfig, EvalConfig, RunConfig, SkipConfig, TrainConfig
from cwt.files import write_json
from cwt.pipeline import stages
from cwt.pipeline.methods import METHODS
from cwt.pipeline.run import run
from cwt.pipeline.workspace import open_workspace
from cwt.processes import Shares, by_main, from_all, leave, rank, start
from cwt.progress import quiet
from cwt.students.load import load_student, quiet_libraries
from cwt.training.loop import train
from train_cases import RECIPE, Stop, stop_half_way

SMALL = RunConfig(
    methods="CWT-sbc-repeated,STT,perplexity-skips",
    cpu=True,
    data=DataConfig(train_size=7, validation_size=3, test_size=5),
    train=TrainConfig(budget=300, parent="CWT", chunk_batch_size=5, validations=2),
    skip=SkipConfig(rounds=2, ready_skill=0.0, samples=2),
    eval=EvalConfig(max_new_tokens=12, latency_questions=1),
)
UNEVEN = replace(  # 7 samples of one pass each: in two processes 4 passes and 3
    RECIPE, budget=500, batch_size=7, micro_batch_size=1, sentence_dropout=0.0, validations=3
)

CPU = "DS_ACCELERATOR" not in os.environ  # accelerate has DeepSpeed where GPUs are allowed alone


def whole_run(out):
    """All stages, and diagnostics of a student."""
    run(SMALL, out, jobs=1)
    ws = open_workspace(SMALL, out)
    stages.diagnose_student(ws, "CWT", examples=4)
    for name in ("surprisal-tokens", "shortest-correct"):  # texts that the student wrote, or cut
        stages.skip_units(ws, name, METHODS[name], "CWT", "STT-round-1")


def trained(out, progress=quiet, lora=""):
    """Trains the embedded student; each process draws other adapters."""
    student = load_student("tiny", lora=lora)
    return train(student, examples(16), UNEVEN, out, progress, CPU, examples(5, "coin"))


def divided(out):
    """Trains with FSDP straight through, stopped and resumed, and adapters."""
    trained(out / "straight")
    try:
        trained(out / "stopped", stop_half_way)
    except Stop:
        found = sorted(p.name for p in (out / "stopped").glob("checkpoint-*/*"))
        by_main(lambda: write_json(out / "checkpoint.json", found))
    trained(out / "stopped")
    trained(out / "adapters", lora="r=4,alpha=8")


def interrupted(out):
    """A signal reaches the last process alone."""
    steps = []

    def interrupt(share, text):
        steps.append(share)
        if len(steps) == 2 and rank() == 1:
            signal.raise_signal(signal.SIGINT)

    try:
        trained(out / "run", interrupt)
    except KeyboardInterrupt:
        write_json(out / f"rank-{rank()}.json", [len(steps), len([*out.glob("run/checkpoint-2")])])


def shared(out):
    """The pieces: shares of fewer items than processes, and of more; work of the first alone."""
    found = {
        "order": [Shares(range(n)).map(lambda mine: [x * x for x in mine]) for n in (0, 1, 2, 7)],
        "whole": Shares(range(3), whole=True).mine,
        "mine": Shares("abcde").mine,
        "ranks": from_all(rank()),
        "main": by_main(lambda: ["by", rank()]),
    }
    try:
        by_main(lambda: int("no number"))
    except ValueError as error:
        found["error"] = [type(error).__name__, str(error)]
    write_json(out / f"rank-{rank()}.json", found)


def failing(out):
    """The last process fails at evaluating, where the first waits for it."""
    if rank() == 1:
        stages.evaluate_by = None
    run(SMALL, out / "run", jobs=1)


PARTS = {f.__name__: f for f in (whole_run, divided, interrupted, shared, failing)}

if __name__ == "__main__":
    quiet_libraries()
    start(cpu=CPU)
    for part in sys.argv[2:]:
        folder = Path(sys.argv[1]) / part
        by_main(lambda folder=folder: folder.mkdir(parents=True))
        PARTS[part](folder)
    leave()
