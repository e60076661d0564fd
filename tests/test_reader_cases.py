"""Collected cases and real files: how many rows are used, and why the others are not."""

import json

import pytest
from app_fixtures import DATA, needs_data
from cwt.data.answers import same_answer
from cwt.data.readers import read_examples

CASES = DATA.parent / "cases" / "inputs"
needs_cases = pytest.mark.realdata(CASES)


# What each collected case gives: (rationales wanted, examples, reasons), and the first answer.
CASE_RESULTS = {
    "D1_bom.json": (True, 8, {}, "5"),
    "D2b_u2028_inside.json": (True, 60, {}, "5"),
    "D3_null.json": (True, 6, {"no rationale": 6}, "5"),
    "D4b_output_list.json": (True, 24, {}, "5"),
    "D5_messages.jsonl": (True, 12, {}, "5"),
    "D5c_prompt_completion.jsonl": (True, 12, {}, "5"),
    "D6d_boxed_rationale.jsonl": (True, 40, {}, "5"),
    "D7_wrapped.json": (True, 8, {}, "5"),
    "D8_wrong_teacher.json": (True, 30, {"rationale contradicts the gold answer": 10}, "10"),
    "D9_self_check.json": (True, 12, {}, "5"),
    "D10_label_and_empty_output.json": (False, 12, {}, "5"),
    "D11_bool_train.json": (True, 40, {}, "no"),
    "D11_bool_test.json": (False, 12, {}, "no"),
    "D12_sorted_test.json": (False, 200, {}, "yes"),
    "D15_crlf.jsonl": (True, 8, {}, "5"),
    "D19_headings.json": (True, 40, {}, "5"),
    "D22_special.json": (True, 40, {}, "5"),
    "D23_think.json": (True, 40, {}, "5"),
    "D29_null_ids.json": (True, 40, {}, "5"),
    "good.json": (True, 60, {}, "5"),
    "good_test.json": (False, 30, {}, "140"),
}


@needs_cases
@pytest.mark.parametrize("name", CASE_RESULTS)
def test_cases(name):
    rationales, count, reasons, answer = CASE_RESULTS[name]
    found = read_examples(CASES / name, rationales=rationales)
    assert (len(found.examples), dict(found.reasons)) == (count, reasons)
    assert found.examples[0].answer == answer
    assert len({e.id for e in found.examples}) == count
    if rationales:
        for e in found.examples:  # the last unit states the answer
            stated = (f"The answer is {e.answer}", f"\\boxed{{{e.answer}}}")
            assert any(words in e.units[-1] for words in stated), e.units
        assert not any("think>" in unit for e in found.examples for unit in e.units)


@needs_cases
@pytest.mark.parametrize("name", ["D21_hang.json", "D30_control_characters.json"])
def test_the_row_that_stopped_the_splitter_is_read_or_listed(name):
    found = read_examples(CASES / name)
    assert len(found.examples) + sum(found.reasons.values()) == 41
    assert set(found.reasons) <= {"not divided into units"}
    assert len(found.examples) >= 40


@needs_cases
def test_the_text_of_a_special_token_is_data():
    found = read_examples(CASES / "D22_special.json")
    assert all(" The tag <eos> ends a line." in e.units for e in found.examples)


# Real files, one line a unit: rows, examples, reasons.
REAL = {
    "gsm8k/test.jsonl": (1319, 1319, {}),
    "gsm8k/test_socratic.jsonl": (1319, 1319, {}),
    "svamp/SVAMP_ChatGPT_level1_ranked.json": (700, 696, {"rationale of one unit": 4}),
    "svamp/SVAMP_ChatGPT_level5_ranked.json": (699, 694, {"rationale of one unit": 5}),
}
REAL_QUESTIONS = {
    "gsm8k/test.jsonl": 1319,
    "svamp/test.jsonl": 300,
    "svamp/SVAMP.json": 1000,
    "strategyqa/strategyQA_test.json": 290,
    "finetune_cot/addsub.json": 119,
    "finetune_cot/date_understanding.json": 111,
    "finetune_cot/strategy_qa.json": 687,
}
# Fine-tune-CoT: samples to train on, and how many of them were cut off at the teacher's limit.
COMPLETIONS = {
    "addsub": (276, 27),
    "coin_flip": (382, 10),
    "date_understanding": (290, 6),
    "last_letter_concatenation": (382, 2),
    "multiarith": (612, 24),
    "single_eq": (356, 54),
    "strategy_qa": (1603, 456),
    "svamp": (700, 94),
    "tracking_shuffled_objects": (557, 16),
}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_rationales(name):
    rows, count, reasons = REAL[name]
    found = read_examples(DATA / name, "line")
    assert (found.rows, len(found.examples), dict(found.reasons)) == (rows, count, reasons)
    assert all("<<" not in e.rationale for e in found.examples)


@needs_data
def test_real_strategyqa():
    found = read_examples(DATA / "strategyqa/strategyQA_chatgpt_level_5_ranked.json", "line")
    assert found.reasons.pop("repeated question with the same rationale") == 1
    assert found.reasons["no answer"] <= 1  # "the answer remains True"
    assert len(found.examples) + len(found.dropped) == found.rows == 1999
    assert {e.answer for e in found.examples} == {"True", "False"}


@needs_data
@pytest.mark.parametrize("name", REAL_QUESTIONS)
def test_real_questions(name):
    found = read_examples(DATA / name, rationales=False)
    assert len(found.examples) == REAL_QUESTIONS[name]


@needs_data
def test_svamp_questions_are_those_of_the_published_file():
    wanted = {row["ID"]: row for row in json.loads((DATA / "svamp/SVAMP.json").read_text())}
    for example in read_examples(DATA / "svamp/SVAMP.json", rationales=False).examples:
        row = wanted.pop(example.id)
        assert example.question.endswith(row["Question"].strip())
        assert example.question.startswith(row["Body"].strip())
        assert float(example.answer) == row["Answer"]
    assert not wanted


@needs_data
@pytest.mark.parametrize("task", COMPLETIONS)
def test_real_fine_tune_cot(task):
    samples, cut = COMPLETIONS[task]
    path = DATA / "finetune_cot" / f"{task}.json"
    train = set(json.loads(path.with_suffix(".split.json").read_text())["train"])
    data = json.loads(path.read_text())["data"]
    given = [row for index in train for row in data[str(index)]]
    whole = [row for row in given if row["reasoning_finish_reason"] != "length"]
    assert (len(given), len(given) - len(whole)) == (samples, cut)
    found = read_examples(path, "line")
    reasons = found.reasons
    assert reasons["rationale was cut off"] == cut
    assert reasons[f"not in the part 'train' of {task}.split.json"] == found.rows - samples
    # The teacher's last words alone, without the rationale before them, tell right from wrong;
    # two go on arguing after their answer.
    wrong = sum(not same_answer(row["completion"].strip(), row["answer"]) for row in whole)
    assert abs(reasons["rationale contradicts the gold answer"] - wrong) <= 2
    texts = {(r["question"], r["reasoning_completion"].strip(), r["completion"]) for r in whole}
    repeated = reasons["repeated question with the same rationale"]
    assert repeated <= len(whole) - len(texts)
    assert len(found.examples) + sum(reasons.values()) == found.rows
    for example in found.examples:
        _, index, k = example.id.rsplit("-", 2)
        source = data[index][int(k)]
        assert int(index) in train
        assert example.answer == source["answer"]
        assert example.rationale.startswith(source["reasoning_completion"].strip())
