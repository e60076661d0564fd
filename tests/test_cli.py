import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cwt.cli import main
from cwt.config import RunConfig, load_config, save_config
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


def test_unknown_command_flag_and_preset(capsys, tmp_path):
    assert "unknown command 'walk'" in fails(capsys, "walk")
    assert "unrecognized arguments: --speed" in fails(capsys, "run", "--speed", "9")
    assert "invalid int value: 'many'" in fails(capsys, "run", "--rounds", "many")
    assert "invalid choice: 'kmeans'" in fails(capsys, "run", "--chunking", "kmeans")
    out = tmp_path / "o"
    line = fails(capsys, "run", "--preset", "huge", "--out", out)
    assert "preset must be one of default, quick, got 'huge'" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--task", "chess", "task must be one of arithmetic, objects, letters, coin, got 'chess'"),
        ("--threshold", "1.5", "threshold must be between 0 and 1, got 1.5"),
        ("--chunks", "0", "chunks must be at least 1, got 0"),
        ("--methods", "FTT,GPT", "methods: wanted some of CWT, answer-only"),
        ("--eval_data", "x.jsonl", "eval_data needs data"),
        ("--jobs", "-1", "--jobs must not be negative, got -1"),
    ],
)
def test_bad_values(capsys, tmp_path, flag, value, message):
    assert message in fails(capsys, "run", "--out", tmp_path / "o", flag, value)
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
    assert f"{broken}, line 2: not JSON: Unterminated string" in line
    mute = tmp_path / "mute.json"
    mute.write_text(json.dumps([{"instruction": "a", "output": "no idea"}]))
    assert "not one usable row (1 no answer)" in fails(capsys, "run", "--data", mute, "--out", out)
    assert not (out / "data").exists()


def test_folders_that_are_not_students(capsys, tmp_path):
    out = tmp_path / "o"
    absent = tmp_path / "absent"
    assert "no such folder" in fails(capsys, "run", "--student", absent, "--out", out)
    (tmp_path / "empty").mkdir()
    line = fails(capsys, "run", "--student", tmp_path / "empty", "--out", out)
    assert "wanted a folder with config.json (save_pretrained) or one .gguf file" in line
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text("{}")
    assert "cannot be loaded" in fails(capsys, "run", "--student", tmp_path / "bad", "--out", out)
    assert not out.exists() or not (out / "students").exists()


def test_a_t5_is_named_as_an_encoder_decoder(capsys, tmp_path):
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path / "t5")
    line = fails(capsys, "run", "--student", tmp_path / "t5", "--out", tmp_path / "o")
    assert "is an encoder-decoder (t5); wanted a causal language model" in line


def test_output_folders_of_others(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds files but no run of cwt" in fails(capsys, "run", "--out", tmp_path)
    assert "is a file; wanted a folder" in fails(capsys, "run", "--out", tmp_path / "notes.txt")
    main(["data", "--out", str(tmp_path / "r"), "--train_size", "20", "--seed", "3"])
    capsys.readouterr()
    line = fails(capsys, "run", "--out", tmp_path / "r", "--train_size", "21")
    assert "is the folder of another run: train_size is 20 there and 21 here" in line
    assert load_config(tmp_path / "r/config.yaml").train_size == 20


def test_stages_name_what_is_missing(capsys, tmp_path):
    out = tmp_path / "r"
    assert "no run there yet; begin one with" in fails(capsys, "chunk", "--out", out)
    main(["data", "--out", str(out), "--train_size", "4", "--test_size", "2"])
    capsys.readouterr()
    assert "holds no chunks yet; run `cwt chunk" in fails(
        capsys, "train", "--out", out, "--method", "FTT"
    )
    assert "there is no student FTT yet" in fails(capsys, "eval", "--out", out, "--method", "FTT")
    assert "no evaluated method yet" in fails(capsys, "report", "--out", out)
    assert "--round must be in 1..4, got 7" in fails(capsys, "skip", "--out", out, "--round", "7")
    assert "needs the student FTT-small-batch" in fails(capsys, "skip", "--out", out)
    stt = ("train", "--out", tmp_path / "p", "--method", "STT")
    main(["data", "--out", str(tmp_path / "p"), "--train_size", "4", "--parent", "answer-only"])
    capsys.readouterr()
    assert "parent: wanted one of CWT, FTT" in fails(capsys, *stt)
    assert "--index must be in 0..3, got 9" in fails(
        capsys, "inspect", "--out", out, "--index", "9"
    )


def test_values_come_from_preset_then_file_then_flags(capsys, tmp_path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("train_size: 33\nseed: 5\n")
    flags = ["--preset", "quick", "--config", str(extra), "--seed", "6"]
    main(["data", *flags, "--out", str(tmp_path / "r")])
    config = load_config(tmp_path / "r/config.yaml")
    assert (config.budget, config.train_size, config.seed) == (40_000, 33, 6)
    extra.write_text("sise: 3\n")
    line = fails(capsys_clear(capsys), "run", "--config", extra, "--out", tmp_path / "s")
    assert "unknown option sise" in line
    extra.write_text("a: [1\n")
    assert "not YAML" in fails(capsys, "run", "--config", extra, "--out", tmp_path / "s")


def capsys_clear(capsys):
    capsys.readouterr()
    return capsys


def test_a_saved_configuration_is_read_back_whole(tmp_path):
    config = RunConfig(seed=9, prompt="Q: {question}\nA:", sentence_dropout=0.125)
    save_config(tmp_path / "c.yaml", config)
    assert load_config(tmp_path / "c.yaml") == config
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


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
