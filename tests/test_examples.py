"""docs/examples: every file runs as its first line says, and all of them train alike."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs/examples"
SHARED = {"toy"}
OTHERS = ["transformers_trainer", "trl_sft", "lightning_module", "ddp", "fsdp2"]
# Several processes with everything imported; CI runs them. Two ranks that train as one are also in
# test_integrations_trainers.py.
LONG = {"lightning_module", "ddp", "fsdp2", "transformers_trainer", "trl_sft"}


def run(name, folder):
    """What an example prints, run by the command that its first line states."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    command = re.match(r'""".*?: (python|torchrun --nproc-per-node 2) (\S+\.py)', text)
    assert command, name
    assert command[2] == f"docs/examples/{name}.py"
    launcher = [sys.executable]
    if command[1] != "python":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [*launcher, str(ROOT / command[2])]
    done = subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output):
    return [float(value) for value in re.findall(r"^loss ([\d.]+)", output, re.MULTILINE)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run("plain_loop", tmp_path_factory.mktemp("plain"))


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"plain_loop", *OTHERS, *SHARED}


def test_the_plain_loop_learns(plain):
    values = losses(plain)
    assert len(values) == 4
    assert values[0] == pytest.approx(4.6, abs=0.1)  # log 100: nothing is known yet
    assert values[-1] < values[0] - 0.2
    assert plain.splitlines()[-1] == "linear_chunk_loss"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.ci if n in LONG else ()) for n in OTHERS]
)
def test_all_of_them_train_alike(name, plain, tmp_path):
    if name == "lightning_module" and importlib.util.find_spec("pytorch_lightning") is None:
        pytest.skip("pytorch-lightning is not installed: pip install pytorch-lightning")
    output = run(name, tmp_path)
    assert losses(output) == pytest.approx(losses(plain), abs=5e-5)
    assert output.splitlines()[-1] == "linear_chunk_loss"
