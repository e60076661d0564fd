"""Adapters (LoRA): what is trained, saved, loaded and merged; an adapter on the head counts."""

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.cli import main
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.files import read_json
from cwt.skipping.judge import find_skips
from cwt.students.adapters import parse_lora
from cwt.students.load import load_student, merge
from cwt.students.tokenized import whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe

pytest.importorskip("peft", reason="adapters need peft")
RECIPE = Recipe(
    target="chunk", budget=6, budget_unit="optimizer_steps", batch_size=4, learning_rate=5e-3
)


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
    """(student with adapters on all linear modules, its folder)."""
    student = load_student(str(mine), lora="r=4,alpha=8")
    folder = tmp_path_factory.mktemp("adapter") / "FTT"
    train(student, examples(8), RECIPE, folder, cpu=True)
    return student, folder


def logits(student):
    rows = [whole_sequence(student.tokenize(e)) for e in examples(3)]
    with torch.no_grad():
        return student.logits_at(student.collate(rows))


def tied(student):
    return student.model.get_input_embeddings().weight


def test_only_adapters_are_trained_and_saved(mine, trained):
    student, folder = trained
    start = load_student(str(mine)).model.state_dict()
    moved = 0
    for name, value in student.model.named_parameters():
        if "lora_" in name:
            assert value.requires_grad
            moved += bool(value.abs().max() > 0)
        else:
            assert not value.requires_grad
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, start[plain]), name
    layers = student.model.config.num_hidden_layers
    assert moved == 2 * 7 * layers  # q, k, v, o, gate, up, down: a pair each
    assert (folder / "adapter_config.json").exists()
    assert not (folder / "model.safetensors").exists()
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert size < (mine / "model.safetensors").stat().st_size / 4


def test_an_adapter_folder_loads_as_a_student_that_trains_on(trained, tmp_path):
    student, folder = trained
    again = load_student(str(folder))
    assert torch.equal(logits(again), logits(student))
    assert not torch.equal(logits(again), logits(tiny()))
    names = [n for n, p in again.model.named_parameters() if p.requires_grad]
    assert names == [n for n, p in student.model.named_parameters() if p.requires_grad]
    train(again, examples(8), RECIPE, tmp_path / "on", cpu=True)
    assert torch.equal(logits(load_student(str(tmp_path / "on"))), logits(again))
    assert not torch.equal(logits(again), logits(student))


def test_merged_weights_give_the_same_logits_and_answers(trained, tmp_path, capsys):
    student, folder = trained
    main(["merge", "--student", str(folder), "--out", str(tmp_path / "whole")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "whole")
    whole = load_student(str(tmp_path / "whole"))
    assert not hasattr(whole.model, "peft_config")
    torch.testing.assert_close(logits(whole), logits(student), rtol=1e-4, atol=1e-4)
    answers = [[g.text for g in evaluate(s, examples(2), 20)[1]] for s in (student, whole)]
    assert answers[0] == answers[1]
    with pytest.raises(SystemExit):
        main(["merge", "--student", str(folder), "--out", str(tmp_path / "whole")])
    assert "is there and not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge", "--student", str(tmp_path / "whole"), "--out", str(tmp_path / "x")])
    assert "is not the folder of an adapter" in capsys.readouterr().err


def test_an_adapter_on_the_head_changes_the_logits_and_is_trained(mine, tmp_path):
    student = load_student(str(mine), lora="r=4,alpha=8,targets=lm_head")
    before = logits(student)
    assert torch.equal(before, logits(tiny()))  # adapters begin as nothing
    assert student.model.get_output_embeddings().weight is tied(student)
    train(student, examples(8), RECIPE, tmp_path, cpu=True)
    after = logits(student)
    hidden = student.hidden_states(batch := student.collate(
        [whole_sequence(student.tokenize(e)) for e in examples(3)]
    ))[batch.bears_loss]  # fmt: skip
    head = student.model.get_output_embeddings()
    a, b = head.lora_A["default"].weight, head.lora_B["default"].weight
    wanted = hidden @ (head.base_layer.weight + 8 / 4 * b @ a).T
    torch.testing.assert_close(after, wanted.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)
    merge(str(tmp_path), tmp_path / "whole")  # the embedding, tied to the head, stays
    whole = load_student(str(tmp_path / "whole"))
    torch.testing.assert_close(logits(whole), after, rtol=1e-4, atol=1e-4)


def test_judges_work_with_adapters(trained):
    shorter, decisions = find_skips(trained[0], examples(2))
    assert len(shorter) == 2
    assert {d.id for d in decisions} <= {e.id for e in examples(2)}


def test_a_run_with_adapters_goes_on_from_them(mine, tmp_path, capsys):
    out = tmp_path / "r"
    main([
        "run", "--student", str(mine), "--lora", "r=2,alpha=4", "--dtype", "float32", "--methods",
        "STT-at-once", "--data.train-size", "12", "--data.validation-size", "2",
        "--data.test-size", "2",
        "--budget", "600", "--skip.rounds", "2", "--eval.max-new-tokens", "8",
        "--eval.latency-questions", "0", "--train.validations", "0", "--out", str(out),
    ])  # fmt: skip
    capsys.readouterr()
    for name in ("FTT-small-batch", "STT-at-once-round-1", "STT-at-once-round-2"):
        config = read_json(out / f"students/{name}/adapter_config.json")
        assert (config["r"], config["base_model_name_or_path"]) == (2, str(mine.resolve()))
    recipe = read_json(out / "students/FTT-small-batch/train.json")["recipe"]
    assert recipe["learning_rate"] == 1e-4
    plan = read_json(out / "run.json")
    assert plan["student"]["trained"] < plan["student"]["parameters"] / 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r", "wanted r=16,alpha=32,targets=auto,dropout=0, got 'r'"),
        ("rank=3", "wanted r=16"),
        ("r=many", "r must be a number, got 'many'"),
        ("r=0", "wanted r >= 1, alpha > 0"),
        ("r=4,dropout=1", "wanted r >= 1, alpha > 0"),
    ],
)
def test_options_that_cannot_be(text, message):
    with pytest.raises(UserError, match=message):
        parse_lora(text)


def test_a_target_that_no_module_has_is_named(mine):
    with pytest.raises(UserError, match=r"--lora: targets=wq: Target modules .* not found"):
        load_student(str(mine), lora="targets=wq")
