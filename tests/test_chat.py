"""Chat templates: asked by the tokenizer's own, the turn's end trained, the style saved."""

import pytest
import torch
from app_fixtures import examples, tiny
from cwt.cli import main
from cwt.data.example import Example
from cwt.errors import UserError
from cwt.evaluation.generation import evaluate
from cwt.files import read_json, read_lines
from cwt.skipping.criterion import SkipCriterion
from cwt.skipping.judge import find_skips
from cwt.students.causal import CausalStudent
from cwt.students.chat import PromptStyle
from cwt.students.load import load_student
from cwt.students.tokenized import PromptTokenizer, build_sequence, whole_sequence
from cwt.training.loop import train
from cwt.training.recipe import Recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN = "{{ bos_token }}[{{ messages[-1]['content'] }}]{{ eos_token if not add_generation_prompt }}"
STYLE = PromptStyle(chat=True)
RECIPE = Recipe(target="chunk", budget=3, budget_unit="optimizer_steps", batch_size=4)


def tokenizer(kind):
    """The embedded tokenizer with the special tokens and the template of a family."""
    found = tiny().tokenizer.tokenizer
    if kind == "chatml":
        found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        found.chat_template = CHATML
    elif kind == "gemma":
        found.add_special_tokens({
            "bos_token": "<bos>", "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        })  # fmt: skip
        found.chat_template = GEMMA
    else:
        found.add_special_tokens({"bos_token": "<bos>"})
        found.chat_template = PLAIN
    return found


ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "plain": "<eos>"}


def student(kind, style=STYLE):
    torch.manual_seed(0)
    prompts = PromptTokenizer(tokenizer(kind), style)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(prompts.tokenizer), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=None,
        eos_token_id=prompts.tokenizer.eos_token_id, pad_token_id=prompts.pad,
    )  # fmt: skip
    return CausalStudent(AutoModelForCausalLM.from_config(config).float(), prompts)


def served(folder, question, **options):
    """What a server asks that knows the saved tokenizer and nothing of this package."""
    saved = AutoTokenizer.from_pretrained(folder)
    return saved.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, **options
    )["input_ids"]


@pytest.mark.parametrize("kind", ENDS)
def test_a_row_is_the_templates_conversation(kind):
    own, (example,) = student(kind), examples(1)
    turns = [
        {"role": "user", "content": example.question},
        {"role": "assistant", "content": example.rationale},
    ]
    words = own.tokenizer.tokenizer
    asked = words.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    item = own.tokenize(example)
    assert list(item.prompt) == asked
    whole = whole_sequence(item)
    end = words.convert_tokens_to_ids(ENDS[kind])
    assert own.tokenizer.eos == end == whole.ids[-1]
    text = words.apply_chat_template(turns, tokenize=False)
    if kind != "plain":  # whose brackets close after the answer
        assert text == words.decode(whole.ids) + "\n"
    assert [c >= 0 for c in whole.chunks] == [False] * len(asked) + [True] * (
        len(whole.ids) - len(asked)
    )  # no token of the template bears loss, the end of the turn does
    assert build_sequence(item, chunk=0).ids[: len(asked)] == asked


def test_a_system_turn_and_words_around_the_question():
    style = PromptStyle("Q: {question}\nThink.\n", True, "You are 'careful' \U0001f44d.\n\"Yes\"")
    own, question = student("chatml", style), "What is 1 + 1?"
    wanted = own.tokenizer.tokenizer.apply_chat_template(
        [{"role": "system", "content": style.system},
         {"role": "user", "content": f"Q: {question}\nThink."}],
        add_generation_prompt=True,
    )["input_ids"]  # fmt: skip
    assert list(own.prompt(question)) == wanted


@pytest.mark.parametrize(
    ("kind", "style"),
    [
        ("chatml", STYLE),
        ("gemma", STYLE),
        ("gemma", PromptStyle("Say '{question}' again.\n", True)),
        ("chatml", PromptStyle("Q: {question}\nThink.\n", True, "You are 'careful' \U0001f44d.")),
        ("plain", STYLE),
    ],
)
def test_a_server_asks_as_the_student_was_trained(kind, style, tmp_path):
    own, question = student(kind, style), "What is {x} in 1 + 1?"
    own.save(tmp_path)
    assert served(tmp_path, question) == list(own.prompt(question))
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.eos_token_id[0] == own.tokenizer.eos
    assert set(saved.eos_token_id) == {own.tokenizer.eos, own.tokenizer.tokenizer.eos_token_id}
    again = load_student(str(tmp_path))
    assert again.tokenizer.style == style
    assert again.prompt(question) == own.prompt(question)
    again.save(tmp_path / "again")  # the template is not wrapped twice
    assert served(tmp_path / "again", question) == list(own.prompt(question))
    told = load_student(str(tmp_path / "again"), style)
    assert told.prompt(question) == own.prompt(question)


def test_a_student_without_a_chat_gets_a_template_that_asks_as_trained(tmp_path):
    own = load_student("tiny", "Q: {question}\nA:")
    own.save(tmp_path)
    assert served(tmp_path, "Why?") == list(own.prompt("Why?"))
    again = load_student(str(tmp_path))
    assert again.prompt("Why?") == own.prompt("Why?")
    assert load_student(str(tmp_path), "{question}?").text(
        load_student(str(tmp_path), "{question}?").prompt("Why")
    ) == "Why?"  # fmt: skip
    assert own.tokenizer.tokenizer.chat_template is None


def test_a_student_trained_without_its_chat_keeps_its_template(tmp_path):
    own = student("chatml", PromptStyle())
    own.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML
    assert own.text(own.prompt("Why?")) == "Why?\n"


@pytest.mark.parametrize("kind", ["chatml", "gemma"])
def test_names_of_its_tokens_in_the_data_stay_text(kind):
    own, end = student(kind), ENDS[kind]
    example = Example("a", f"What is {end}?", (f"It is {end}.", " The answer is 1"), "1")
    item = own.tokenize(example)
    words = own.tokenizer.tokenizer
    assert list(item.prompt).count(own.tokenizer.eos) == 1  # the one that ends the user's turn
    assert end in words.decode(item.prompt[:-3]).split("user\n")[1]
    assert [unit.count(own.tokenizer.eos) for unit in item.units] == [0, 1]
    assert own.text(item.units[0]) == f"It is {end}."


@pytest.mark.parametrize("kind", ENDS)
def test_train_judge_and_generate_in_a_chat(kind, tmp_path):
    own, some = student(kind), examples(6)
    train(own, some, RECIPE, tmp_path, cpu=True)
    anything = SkipCriterion(min_probability=0.0, max_answer_nll_rise=1e9)
    shorter, _ = find_skips(own, some[:2], anything)
    assert all({0, len(e.units) - 1} <= e.kept for e in shorter)
    again = load_student(str(tmp_path))
    _, written = evaluate(again, some[:2], max_new_tokens=8)
    assert [g.text for g in written] == [g.text for g in evaluate(own, some[:2], 8)[1]]


@pytest.mark.parametrize("name", ["<|im_end|>", "<eos>"])
def test_generation_stops_at_the_turns_end_and_at_the_sequences(name):
    own = student("chatml")
    end = own.tokenizer.tokenizer.convert_tokens_to_ids(name)
    head = own.model.get_output_embeddings()
    head.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([end]), 99.0))
    (ids,) = own.generate([own.prompt("Why?")], 5)
    assert ids == [end]
    assert own.ended(ids)
    assert not own.ended([*ids, 5])


def test_what_cannot_be_asked_is_said():
    with pytest.raises(UserError, match="tokenizer has no chat template; use --prompt"):
        load_student("tiny", STYLE)
    with pytest.raises(UserError, match="turns of system, user are refused: System role not supp"):
        student("gemma", PromptStyle(chat=True, system="Be brief."))
    words = tokenizer("chatml")
    words.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(UserError, match="the template changes the question"):
        PromptTokenizer(words, STYLE)
    with pytest.raises(UserError, match="--system is a turn of a chat"):
        PromptStyle(system="Be brief.")


def test_a_run_in_a_chat(tmp_path, capsys):
    student("chatml", PromptStyle()).save(tmp_path / "base")
    out = tmp_path / "run"
    flags = (
        "--preset quick --chat-template --system Count. --methods FTT,CWT --data.train-size 8 "
        "--data.validation-size 2 --data.test-size 2 --budget 300 --eval.max-new-tokens 4 "
        "--eval.latency-questions 0 --train.learning-rate 1e-3 --cpu --jobs 1"
    ).split()
    main(["run", "--student", str(tmp_path / "base"), *flags, "--out", str(out)])
    folder = out / "students/CWT"
    assert read_json(folder / "prompt.json") == {
        "template": "{question}\n", "chat": True, "system": "Count.",
    }  # fmt: skip
    wanted = "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    words = AutoTokenizer.from_pretrained(folder)
    assert words.decode(served(folder, "Why?")) == wanted + "<|im_start|>assistant\n"
    main(["export", "--out", str(out), "--to", "messages", "--method", "FTT"])
    (row, *_) = read_lines(out / "export/messages/FTT-rationales.jsonl")
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert not row["messages"][1]["content"].endswith("\n")
    main(["export", "--out", str(out), "--to", "trl", "--method", "FTT"])
    (row, *_) = read_lines(out / "export/trl/FTT-rationales.jsonl")
    assert row["prompt"].startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n")
    capsys.readouterr()
