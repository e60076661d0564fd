"""Several processes of one run do what one does: real processes, which talk over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import processes_worker
import pytest
import torch
from app_fixtures import tiny
from cwt.cli import main
from cwt.errors import UserError
from cwt.files import read_json, read_lines
from cwt.pipeline.parallel import run_all
from cwt.processes import Shares, by_main, from_all
from cwt.students.load import load_student
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DEEPSPEED = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "DS_ACCELERATOR": "cpu",
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def environment(**more):
    path = os.pathsep.join(str(ROOT / part) for part in ("", "python", "tests"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def launched(*arguments, **more):
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)],
        capture_output=True, text=True, timeout=280, env=environment(**more),
    )  # fmt: skip


def in_two(out, *parts, **more):
    done = launched(ROOT / "tests/processes_worker.py", out, *parts, **more)
    assert done.returncode == 0, done.stderr[-3000:]


def figures(value, at=""):
    """All numbers and texts of a JSON value by their places, clocks and checksums left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "second" not in key and key != "files":
                yield from figures(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from figures(inner, f"{at}[{i}]")
    else:
        yield at, value


def assert_same_figures(one, two, rel=2e-3, absolute=2e-3):
    one, two = dict(figures(one)), dict(figures(two))
    assert list(one) == list(two)
    for at, value in one.items():
        if isinstance(value, float):
            assert two[at] == pytest.approx(value, rel=rel, abs=absolute), at
        else:
            assert two[at] == value, at


def assert_same_weights(one, two, absolute=2e-5):
    assert list(one) == list(two)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=absolute, msg=name)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which two processes did everything that needs no FSDP."""
    out = tmp_path_factory.mktemp("two")
    in_two(out, "shared", "interrupted", "whole_run")
    return out


@pytest.fixture(scope="module")
def runs(done, tmp_path_factory):
    """The folders of the same run in one process and in two."""
    one = tmp_path_factory.mktemp("one")
    processes_worker.whole_run(one)
    return one, done / "whole_run"


def test_chunks_skips_and_answers_are_those_of_one_process(runs):
    one, two = runs
    names = {p.relative_to(one) for p in one.rglob("*") if p.is_file()}
    assert names == {p.relative_to(two) for p in two.rglob("*") if p.is_file()}
    assert sum(name.parts[0] == "skips" for name in names) >= 12
    for folder in ("data", "chunks", "skips", "evals", "methods"):
        files = sorted((one / folder).iterdir())
        assert files
        for file in files:
            read = read_lines if file.suffix == ".jsonl" else read_json
            assert_same_figures(read(file), read(two / folder / file.name))
    for name in ("STT-round-1", "STT-round-2", "perplexity-skips"):
        kept = read_json(one / f"skips/{name}.json")["kept_units"]
        decided = [row["id"] for row in read_lines(two / f"skips/{name}.jsonl")]
        ids = [row["id"] for row in read_lines(two / "data/train.jsonl")]
        assert kept == read_json(two / f"skips/{name}.json")["kept_units"]
        assert list(dict.fromkeys(decided)) == ids


def test_losses_weights_and_diagnostics_are_those_of_one_process(runs):
    one, _ = runs
    students = sorted(p.name for p in (one / "students").iterdir())
    assert {"CWT", "CWT-sbc-repeated", "STT-round-1"} <= set(students)
    for name in students:
        logs = [read_lines(out / "students" / name / "train_log.jsonl") for out in runs]
        for row in logs[0]:  # measured where one pass has all tokens of a chunk
            for figure in ("chunk_mean_grad_norm", "chunk_hidden_smoothing"):
                row.pop(figure, None)
        assert_same_figures(*logs)
        weights = [load_file(out / "students" / name / "model.safetensors") for out in runs]
        assert_same_weights(*weights)
    found = [read_json(out / "diagnostics/CWT.json") for out in runs]
    assert len(found[0]["units"]) > 4
    assert_same_figures(*found, rel=0.05)  # the tolerance of the eigenvalue is 0.01


def test_items_are_divided_and_gathered_in_order_and_errors_are_told(done):
    for rank, mine in ((0, ["a", "c", "e"]), (1, ["b", "d"])):
        found = read_json(done / f"shared/rank-{rank}.json")
        assert found["order"] == [[], [0], [0, 1], [0, 1, 4, 9, 16, 25, 36]]
        assert (found["whole"], found["mine"]) == ([0, 1, 2], mine)
        assert (found["ranks"], found["main"]) == ([0, 1], ["by", 0])
        name = "ToldElsewhere" if rank else "ValueError"
        assert found["error"] == [name, "invalid literal for int() with base 10: 'no number'"]


def test_in_one_process_nothing_is_divided():
    shares = Shares([3, 1, 2])
    assert shares.mine == [3, 1, 2]
    assert shares.map(lambda mine: [-x for x in mine]) == [-3, -1, -2]
    assert (from_all(5), by_main(lambda: 6)) == ([5], 6)
    with pytest.raises(ValueError, match=r"3 items are this process's, got 2"):
        shares.gather([1, 2])


@pytest.mark.parametrize("rank", [0, 1])
def test_commands_that_divide_nothing_refuse_several_processes(rank, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    message = "cwt: cwt doctor runs in one process, and a launcher started 2.\n"
    assert capsys.readouterr().err == ("" if rank else message)
    with pytest.raises(UserError, match="--jobs 3 starts processes of its own"):
        run_all({"a": ()}, print, 3, print)


def test_a_signal_to_one_process_stops_all_after_a_checkpoint(done):
    for rank in (0, 1):  # two steps, and the checkpoint of the second
        assert read_json(done / f"interrupted/rank-{rank}.json") == [2, 1]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("how", "weights"), [(FSDP, "pytorch_model_fsdp.bin"), (DEEPSPEED, "pytorch_model")]
)
def test_divided_it_trains_as_one_process_saves_whole_weights_and_resumes(tmp_path, how, weights):
    """FSDP2, and stage 2 of DeepSpeed, which compiles a part of its own when it begins."""
    if how is DEEPSPEED:
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    in_two(tmp_path, "divided", **how)
    tmp_path /= "divided"
    assert weights in read_json(tmp_path / "checkpoint.json")
    names = list(load_file(tmp_path / "straight/model.safetensors"))
    processes_worker.trained(tmp_path / "one")
    one = load_file(tmp_path / "one/model.safetensors")
    assert names == list(one)
    for folder in ("straight", "stopped"):
        assert_same_weights(one, load_file(tmp_path / folder / "model.safetensors"))
        logs = [read_lines(tmp_path / d / "train_log.jsonl") for d in ("one", folder)]
        assert len(logs[0]) > 3
        assert_same_figures(*logs)
        assert not list((tmp_path / folder).glob("*checkpoint*"))
    straight, stopped = (tmp_path / f / "model.safetensors" for f in ("straight", "stopped"))
    assert straight.read_bytes() == stopped.read_bytes()
    loaded = load_student(str(tmp_path / "straight")).model.state_dict()
    assert_same_weights(one, {name: loaded[name] for name in one}, absolute=1e-4)
    adapted = dict(load_student(str(tmp_path / "adapters")).model.named_parameters())
    trained = {name: weight for name, weight in adapted.items() if "lora_" in name}
    assert len(trained) > 8
    assert all(bool(weight.any()) for weight in trained.values())
    base = dict(tiny().model.named_parameters())
    for name, weight in trained.items():
        rows = base[name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight"].shape
        assert weight.shape == ((4, rows[1]) if "lora_A" in name else (rows[0], 4))


@pytest.mark.ci
def test_an_error_in_one_process_ends_all(tmp_path):
    done = launched(ROOT / "tests/processes_worker.py", tmp_path, "failing")
    assert done.returncode != 0
    assert "TypeError: 'NoneType' object is not callable" in done.stderr
    assert list((tmp_path / "failing/run/students").glob("*/train.json"))
    assert not list((tmp_path / "failing/run").glob("evals/*"))
