import threading

import pytest
from cwt.data.answers import extract_answer, same_answer


@pytest.mark.parametrize(
    ("given", "wanted", "same"),
    [
        ("1,200", "1200", True),
        ("1200.00", "1,200", True),
        ("-3", "3", False),  # open-instruct#1530: a lost minus sign
        ("\u22127", "-7", True),
        ("-3 degrees", "-3", True),
        ("19 pounds.", "19", True),
        ("12 and 13", "13", False),
        ("1,2", "12", False),
        ("$1,234.50", "1234.5", True),
        ("50%", "50", True),
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x=5", "5", True),
        ("Yes", "yes", True),
        ("yes", "no", False),
        ("e y k", "e y k", True),
        ("eyk", "e y m", False),
        ("**145**", "145", True),
        (None, "5", False),
        ("", "5", False),
    ],
)
def test_same_answer(given, wanted, same):
    assert same_answer(given, wanted) is same


def test_judging_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(same_answer(r"\frac{6}{4}", "1.5")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is. The answer is 145", "145"),
        ("The answer is 5. No: the answer is -6.", "-6"),
        ("blah #### 1,000", "1,000"),
        (r"so \boxed{\frac{1}{2}} holds.", r"\frac{1}{2}"),
        ("Therefore, the final answer is: $12.", "$12"),
        ("= 2The answer is 2", "2"),
        ("nothing", None),
        ("The answer is", None),
        (r"\boxed{5", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer
