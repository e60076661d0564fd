"""The engines of `cwt sweep`, this machine and a Ray cluster on it: what becomes of a cell."""

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import sweep_cells
from cwt.errors import UserError
from cwt.pipeline.cells import run_cells, uses_ray
from cwt.pipeline.cluster import Share, _cell, cell_options
from cwt.pipeline.own_process import in_words

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def engine(request):
    """The name of a cluster; Ray has two cores, and two GPUs that are not there."""
    if request.param == "local":
        yield "local"
        return
    ray = pytest.importorskip("ray", reason="needs Ray: pip install ray")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    paths = [str(p) for p in (ROOT, ROOT / "python", ROOT / "tests")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        ray.init(
            "local", num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="error",
            log_to_driver=False,
        )  # fmt: skip
    yield "auto"
    ray.shutdown()
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)


both = pytest.mark.parametrize(
    "engine",
    ["local", pytest.param("ray", marks=pytest.mark.ci)],  # Ray takes 10 s to begin
    indirect=True,
    scope="module",
)


@both
def test_a_cell_that_fails_does_not_lose_the_others(engine, tmp_path):
    cells = {
        "first": partial(sweep_cells.well, tmp_path / "first"),
        "refused": sweep_cells.refused,
        "killed": sweep_cells.killed,
        "mistaken": sweep_cells.mistaken,
        "last": partial(sweep_cells.well, tmp_path / "last"),
    }
    seen = []
    ended = run_cells(cells, engine, 2, Share(tmp_path), lambda *told: seen.append(told))
    lost = None if engine == "auto" else 137  # Ray does not say how a worker ended
    assert {name: how.status for name, how in ended.items()} == {
        "first": 0, "refused": 2, "killed": lost, "mistaken": 1, "last": 0,
    }  # fmt: skip
    assert in_words(ended["refused"]) == "failed (exit status 2): the folder is another's"
    assert in_words(ended["mistaken"]) == "failed (exit status 1): KeyError: 'no such key'"
    assert "raise KeyError" in ended["mistaken"].trace
    died = "The worker died" if engine == "auto" else "its process was killed (out of memory?)"
    assert died in in_words(ended["killed"])
    assert {(name, text) for name, share, text in seen if share == 1.0} == {
        (name, in_words(how)) for name, how in ended.items()
    }
    assert ("first", 0.5, "half") in seen
    said = [(tmp_path / name).read_text().split() for name in ("first", "last")]
    assert len({os.getpid(), *(int(pid) for pid, *_ in said)}) == 3  # a process each
    gpus = [numbers for _, *numbers in said]
    assert all(len(found) == (engine == "auto") for found in gpus), gpus
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "last"]


@both
def test_told_to_stop_all_cells_end_in_order(engine, tmp_path):
    cells = {
        name: partial(sweep_cells.long, tmp_path / f"{name}.txt") for name in ("a", "b", "waiting")
    }

    def interrupt():
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, engine, 2, Share(tmp_path), lambda *told: None)
    found = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert set(found) == {"a", "b"}
    assert all(text.startswith("saved after step ") for text in found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked")
@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=pytest.mark.ci)])
def test_processes_have_a_group_of_their_own_and_are_not_forked_where_cuda_is(
    tmp_path, monkeypatch, cuda
):
    """A signal to the whole group is for the parent, which tells each process once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    work = partial(sweep_cells.alone, tmp_path / "a")
    ended = run_cells({"a": work}, "local", 2, Share(tmp_path), lambda *told: None)
    assert ended["a"].status == 0
    assert (tmp_path / "a").read_text() == f"True {not cuda}"


def test_jobs_1_stays_in_this_process_and_goes_on_after_a_failure(tmp_path):
    cells = {"no": sweep_cells.refused, "yes": partial(sweep_cells.well, tmp_path / "yes")}
    ended = run_cells(cells, "local", 1, Share(tmp_path), lambda *told: None)
    assert {name: how.status for name, how in ended.items()} == {"no": 2, "yes": 0}
    assert (tmp_path / "yes").read_text().split()[0] == str(os.getpid())


def test_a_cell_asks_for_its_cores_and_its_gpus(tmp_path):
    def asked(jobs, *nodes, **share):
        options = cell_options(Share(tmp_path, **share), jobs, list(nodes), "coin-1")
        assert (options["max_calls"], options["max_retries"], options["name"]) == (1, 0, "coin-1")
        return options["num_cpus"], options["num_gpus"]

    big, small = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}
    assert asked(0, small) == (1, 0)
    assert asked(0, small, big) == (1, 1)
    assert asked(0, small, big, cpu=True) == (1, 0)
    assert asked(0, big, gpus=0.25) == (1, 0.25)
    assert asked(3, big, small) == (8, 1)  # 24 cores for three
    assert asked(1, big, small) == (16, 1)  # one machine has no more
    assert asked(100, small) == (1, 0)
    with pytest.raises(UserError, match=r"--gpus 5: no machine .* has as many; the most is 4"):
        asked(0, big, small, gpus=5)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    here = os.getcwd()
    (tmp_path / ".sweep").write_text("this sweep")
    for place in [(here, str(tmp_path), "another"), (here, str(tmp_path / "no"), "this sweep"),
                  (str(tmp_path / "no"), str(tmp_path), "this sweep")]:  # fmt: skip
        ended = _cell("x", sweep_cells.killed, place, None, 1)
        assert ended.status == 2
        assert "needs a file system that all its machines share" in in_words(ended)


def test_which_engine(monkeypatch):
    assert not uses_ray("local")
    with pytest.raises(UserError, match="wanted auto, local or ray://HOST:PORT, got 'slurm'"):
        uses_ray("slurm")
    for installed in (True, False):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: found or None)
        assert uses_ray("auto") == installed
    with pytest.raises(UserError, match="Ray is not installed: pip install ray"):
        uses_ray("ray://head:10001")
