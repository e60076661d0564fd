import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cwt.cli import main
from cwt.config import RunConfig, TrainConfig, load_config, save_config
from cwt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def fails(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("cwt: ")
    return line


def misused(capsys, *arguments):
    """Runs a command whose flags are wrong; returns what is printed about them, on one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return " ".join(printed.err.replace("│", " ").split())


def test_unknown_command_flag_and_preset(capsys, tmp_path):
    assert "unknown command 'walk'" in fails(capsys, "walk")
    wrong = misused(capsys, "run", "--budgt", "9")
    assert "Unrecognized options: --budgt" in wrong
    assert "Perhaps you meant: --budget INT" in wrong
    assert "'many'" in misused(capsys, "run", "--skip.rounds", "many")
    wrong = misused(capsys, "run", "--chunk.method", "kmeans")
    assert "invalid choice 'kmeans' for argument '--chunk.method'. Expected one of ('ac'" in wrong
    assert "--method STR" in misused(capsys, "train", "--out", tmp_path / "o")
    out = tmp_path / "o"
    line = fails(capsys, "run", "--preset", "huge", "--out", out)
    assert "preset must be one of default, quick, real, got 'huge'" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--task", "chess", "one of arithmetic, objects, letters, coin, stock, got 'chess'"),
        ("--skip.min-probability", "1.5", "min_probability must be between 0 and 1, got 1.5"),
        ("--chunk.count", "0", "count must be at least 1, got 0"),
        ("--epochs", "-1", "epochs must be at least 0, got -1"),
        ("--train.parent", "STT", "train.parent: wanted one of FTT, FTT-small-batch"),
        ("--methods", "FTT,GPT", "methods: wanted some of answer-only, FTT"),
        ("--eval-data", "x.jsonl", "--eval-data needs --data"),
        ("--jobs", "-1", "--jobs must not be negative, got -1"),
    ],
)
def test_bad_values(capsys, tmp_path, flag, value, message):
    assert message in misused(capsys, "run", "--out", tmp_path / "o", flag, value)
    assert not (tmp_path / "o" / "data").exists()


def test_bad_data_files_leave_nothing_behind(capsys, tmp_path):
    out = tmp_path / "o"
    absent = tmp_path / "absent.json"
    assert f"{absent}: no such file" in fails(capsys, "run", "--data", absent, "--out", out)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "the file is empty" in fails(capsys, "run", "--data", empty, "--out", out)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b", "ans\n')
    line = fails(capsys, "run", "--data", broken, "--out", out)
    assert f"{broken}: not one usable row of 2 (1 rationale of one unit, 1 not JSON)" in line
    broken.write_text(
        '{"question": "a", "rationale": "So it is 1.", "answer": "1"}\n{"question": "b", "ans\n'
    )
    line = fails(capsys, "run", "--data", broken, "--out", out, "--strict")
    assert f"{broken}, line 2: not JSON: Unterminated string" in line
    mute = tmp_path / "mute.json"
    mute.write_text(json.dumps([{"instruction": "a", "output": "no idea"}]))
    assert "not one usable row of 1 (1 no answer)" in fails(
        capsys, "run", "--data", mute, "--out", out
    )
    assert not (out / "data").exists()


def test_folders_that_are_not_students(capsys, tmp_path):
    out = tmp_path / "o"
    absent = tmp_path / "absent"
    assert "no such folder" in fails(capsys, "run", "--student", absent, "--out", out)
    (tmp_path / "empty").mkdir()
    line = fails(capsys, "run", "--student", tmp_path / "empty", "--out", out)
    assert "wanted a folder with config.json (save_pretrained), adapter_config.json (peft)" in line
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text("{}")
    assert "cannot be loaded" in fails(capsys, "run", "--student", tmp_path / "bad", "--out", out)
    assert not out.exists() or not (out / "students").exists()


def test_output_folders_of_others(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds files but no run of cwt" in fails(capsys, "run", "--out", tmp_path)
    assert "is a file; wanted a folder" in fails(capsys, "run", "--out", tmp_path / "notes.txt")
    main(["data", "--out", str(tmp_path / "r"), "--data.train-size", "20", "--seed", "3"])
    capsys.readouterr()
    line = fails(capsys, "run", "--out", tmp_path / "r", "--data.train-size", "21")
    assert "is the folder of another run: data.train_size is 20 there and 21 here" in line
    assert load_config(tmp_path / "r/config.yaml").data.train_size == 20


def test_stages_name_what_is_missing(capsys, tmp_path):
    out = tmp_path / "r"
    assert "no run there yet; begin one with" in fails(capsys, "chunk", "--out", out)
    main(["data", "--out", str(out), "--data.train-size", "4", "--data.test-size", "2"])
    capsys.readouterr()
    assert "holds no chunks yet; run `cwt chunk" in fails(
        capsys, "train", "--out", out, "--method", "FTT"
    )
    assert "there is no student FTT yet" in fails(capsys, "eval", "--out", out, "--method", "FTT")
    assert "no evaluated method yet" in fails(capsys, "report", "--out", out)
    assert "--round must be in 1..4, got 7" in fails(capsys, "skip", "--out", out, "--round", "7")
    stt = ("train", "--out", out, "--method", "STT", "--train.parent", "answer-only")
    assert "train.parent: wanted one of FTT, FTT-small-batch" in fails(capsys, *stt)
    main(["chunk", "--out", str(out)])
    capsys.readouterr()
    assert "needs the student FTT-small-batch; run `cwt train --method FTT-small-batch`" in fails(
        capsys, "skip", "--out", out
    )
    assert "--index must be in 0..3, got 9" in fails(
        capsys, "inspect", "--out", out, "--index", "9"
    )


def test_values_come_from_preset_then_file_then_flags(capsys, tmp_path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("seed: 5\ndata:\n  train_size: 33\n")
    flags = ["--preset", "quick", "--config", str(extra), "--seed", "6"]
    main(["data", *flags, "--out", str(tmp_path / "r")])
    config = load_config(tmp_path / "r/config.yaml")
    assert (config.train.budget, config.data.train_size, config.seed) == (40_000, 33, 6)
    assert config.skip.rounds == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise: 3", "unknown option sise; there are student, prompt"),
        ("train:\n  bugdet: 3", "unknown option train.bugdet; there are"),
        ("train:\n  budget: many", "train.budget: Input should be a valid integer"),
        ("train:\n  budget: 0", "train: budget must be at least 1, got 0"),
        ("train: 3", "train: wanted a mapping of options, got 3"),
        (
            "chunk:\n  method: kmeans",
            "chunk.method: Input should be 'ac', 'dp', 'sbc', 's",
        ),
        ("a: [1", "not YAML"),
        ("- 1", "wanted a mapping of options, got list"),
    ],
)
def test_mistakes_in_a_configuration_file(capsys, tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    line = fails(capsys, "run", "--config", file, "--out", tmp_path / "s")
    assert message in line
    assert str(file) in line


def test_a_saved_configuration_is_read_back_whole(tmp_path):
    train = TrainConfig(sentence_dropout=0.125, schedule="curriculum")
    config = RunConfig(seed=9, prompt="Q: {question}\nA:", train=train)
    save_config(tmp_path / "c.yaml", config)
    assert load_config(tmp_path / "c.yaml") == config
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_options_of_a_stage_may_change_until_it_has_written_something(capsys, tmp_path):
    out = ("--out", str(tmp_path / "r"))
    main(["data", *out, "--data.train-size", "6", "--data.test-size", "2"])
    main(["chunk", *out, "--chunk.count", "2"])
    assert load_config(tmp_path / "r/config.yaml").chunk.count == 2
    capsys.readouterr()
    line = fails(capsys, "chunk", *out, "--chunk.count", "3")
    assert "chunk.count is 2 there and 3 here" in line
    main(["train", *out, "--method", "FTT", "--budget", "200"])
    assert load_config(tmp_path / "r/config.yaml").train.budget == 200
    capsys.readouterr()
    assert "train.budget is 200 there" in fails(
        capsys, "train", *out, "--method", "CWT", "--budget", "300"
    )


@pytest.mark.parametrize("command", ["run", "data", "chunk", "train", "skip", "eval", "inspect"])
def test_help_of_a_command_lists_what_concerns_it(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    own = {
        "run": {"data", "chunk", "train", "skip", "eval"}, "data": {"data"}, "chunk": {"chunk"},
        "train": {"train", "skip"}, "skip": {"skip"}, "eval": {"eval"}, "inspect": set(),
    }[command]  # fmt: skip
    for stage in ("data", "chunk", "train", "skip", "eval"):
        assert (f"--{stage}." in text) == (stage in own), stage
    assert "--out" in text


def test_help_lists_every_command(capsys):
    from cwt.cli import COMMANDS

    main([])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_help_of_a_command_does_not_wait_for_torch(tmp_path):
    code = """
import sys
from cwt.cli import main
try:
    main(["run", "--help"])
finally:
    assert "torch" not in sys.modules
"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--student" in done.stdout


def test_a_missing_package_is_one_line(tmp_path):
    """`pip install .` without the extra `app` brings the command, which says what it lacks."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError('no tyro', name='tyro')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "python")])
    done = subprocess.run(
        [sys.executable, "-m", "cwt", "run"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "cwt: the application needs the package tyro: pip install 'cwt-ext[app]'\n"
    )


def test_a_data_file_that_changed_under_a_run_is_noticed(capsys, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [
        {"question": f"What is {i} + 1?", "rationale": f"We add 1 to {i}. It is {i + 1}.",
         "answer": str(i + 1)}
        for i in range(12)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("data", "--data", str(file), "--out", str(tmp_path / "r"))
    main([*command, "--show", "2"])
    printed = capsys.readouterr().out
    assert "question = question, rationale = rationale, answer = answer" in printed
    assert "'We add 1 to " in printed
    main(list(command))  # nothing changed: nothing to say
    file.write_text(file.read_text().replace("It is 5.", "It is five."))
    line = fails(capsys_clear(capsys), *command)
    assert f"{file}: has changed since" in line


def test_strict_stops_at_the_first_row_and_columns_name_others(capsys, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"ask": f"Q {i}?", "why": f"Because of {i}. So {i}.", "so": str(i)} for i in range(9)]
    rows[4]["why"] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "--data", str(file), "--out", str(tmp_path / "r")]
    columns = ["--columns", "question=ask,rationale=why,answer=so"]
    assert "mine.jsonl, line 5" in fails(capsys, *command, *columns, "--strict")
    assert "wanted question=NAME,rationale=NAME" in fails(capsys, *command, "--columns", "ask")
    main([*command, *columns])
    (dropped,) = (tmp_path / "r/data/dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped)["place"] == "line 5"


def capsys_clear(capsys):
    capsys.readouterr()
    return capsys
