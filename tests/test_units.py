import json

import pytest
from app_fixtures import DATA, needs_data
from cwt.data.units import split_units
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = st.sampled_from(
    ["One apple. ", "1. Identify it: 3. ", "So, 4 + 5 = 9", "\n", "\n\n", "  ", "Dr. Who left! ",
     "The answer is 7", "the answer is", "Step 2) Add. ", "\u00e9t\u00e9? ", "3.14", "...", ""]
)  # fmt: skip


@pytest.mark.parametrize("kind", ["sentence", "line", "step"])
@settings(max_examples=80, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8))
def test_joining_the_units_gives_the_text_back(kind, pieces):
    text = "".join(pieces)
    units = split_units(text, kind)
    assert "".join(units) == text
    assert all(units)


def test_numbered_sentences_stay_whole_and_the_answer_is_its_own_unit():
    text = "We divide. 1. Identify the total: 290 bananas. 2. Divide by 2. The answer is 145"
    assert split_units(text) == (
        "We divide.",
        " 1. Identify the total: 290 bananas.",
        " 2. Divide by 2.",
        " The answer is 145",
    )


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("It is 4 kids on TuesdayThe answer is 4", "The answer is 4"),  # no white space before
        ("The answer is 3. Wait. So the answer is 5.", " So the answer is 5."),  # the last counts
        ("No answer here. None.", " None."),
    ],
)
def test_where_the_answer_begins(text, last):
    assert split_units(text)[-1] == last


def test_lines_and_steps():
    assert split_units("a b\nc d\n\ne\nThe answer is 1", "line") == (
        "a b", "\nc d", "\n\ne", "\nThe answer is 1",
    )  # fmt: skip
    assert split_units("Plan: 1. do x. 2. do y. The answer is 1", "step") == (
        "Plan:", " 1. do x.", " 2. do y.", " The answer is 1",
    )  # fmt: skip


def test_unknown_kind():
    with pytest.raises(ValueError, match="unit must be sentence, line or step, got 'word'"):
        split_units("x", "word")


@needs_data
@pytest.mark.parametrize("kind", ["sentence", "line", "step"])
def test_every_real_rationale_is_recovered_exactly(kind):
    files = ["svamp/SVAMP_ChatGPT_level5_ranked.json", "svamp/SVAMP_ChatGPT_level6_ranked.json",
             "svamp/SVAMP_ChatGPT_level1_ranked.json"]  # fmt: skip
    for name in files:
        for row in json.loads((DATA / name).read_text())[:: 3 if kind == "sentence" else 1]:
            assert "".join(split_units(row["output"], kind)) == row["output"]
