import pytest

from distsub.data import answers
from distsub.finetune import generation
from distsub.records import Task


def task(answer=None):
    return Task("t", "t", ("prompt",), "completion", 0, "exact_match", max_new_tokens=8, answer=answer)


@pytest.mark.parametrize(
    "answer, target, same",
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("1,000", "1000", True),
        ("1,00", "100", False),
        ("$18", "18", True),
        ("18.", "18", True),
        ("018", "18", True),
        ("18.5", "18", False),
        ("5%", "5", False),
        ("positive", "Positive", False),
        ("positive", "positive", True),
        ("-3", "3", False),
        ("1e3", "1000", True),
        ("", "0", False),
        (None, "1", False),
    ],
)
def test_numbers_are_compared_as_numbers_and_words_as_words(answer, target, same):
    assert answers.same(answer, target) is same


def test_the_last_match_of_an_expression_is_the_answer():
    worked = "2 + 3 = 5. #### 5\nthen 5 * 2 = 10. #### 10"
    assert answers.find(worked, task(r"#### (\S+)")) == "10"
    assert answers.find(worked, task(r"#### \S+")) == "#### 10"
    assert answers.find("no mark", task(r"#### (\S+)")) is None
    assert answers.find("  positive \n", task()) == "positive"


def test_matches_hold_generated_texts_against_targets():
    written = ["so #### 1,000", "so 7", "#### 8"]
    targets = ["#### 1000", "#### 7", "#### 9"]
    assert generation.matches(written, targets, task(r"#### (\S+)")) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("text, stop, kept", [("a\nb", "\n", "a"), ("a b", None, "a b"), ("\nb", "\n", "")])
def test_an_answer_ends_before_its_stop(text, stop, kept):
    assert answers.cut(text, stop) == kept
