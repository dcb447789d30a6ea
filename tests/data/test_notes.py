import pytest

from distsub.data.dataset import Split, Splits
from distsub.data.notes import notes, repeated
from distsub.data.tasks import resolve

TASK = resolve("mine", path="/x", text=("text",), num_labels=2)


def of(train, validation, task=TASK):
    return notes(Splits(train, validation, "", task))


def test_nothing_to_say():
    assert of(Split((["a", "b"],), [0, 1]), Split((["c"],), [0])) == []


def test_repeated_and_contradictory_texts_are_counted_once_each():
    train = Split((["Good  day", "good day", "GOOD DAY ", "b", "b", "c"],), [0, 1, 1, 0, 0, 1])
    assert repeated(train) == (3, 1)
    (said,) = of(train, Split((["good\tday", "new", "C"],), [0, 0, 1]))
    assert said == (
        "mine: 2 of 3 texts to evaluate on are training texts too; 3 of 6 training texts repeat another; "
        "1 training texts have contradictory labels (case and white space aside)"
    )


def test_a_pair_is_repeated_only_as_a_whole():
    train = Split((["a", "a"], ["b", "c"]), [0, 1])
    assert of(train, Split((["a"], ["d"]), [0])) == []
    assert "1 of 1 texts to evaluate on" in of(train, Split((["A"], [" c"]), [0]))[0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("neg", "pos"), 'mine: 2 classes, 0 = "neg", 1 = "pos"'),
        (("A", "a"), 'mine: 2 classes, 0 = "A", 1 = "a"; A and a differ in case only'),
    ],
)
def test_names_of_classes_are_told(names, said):
    task = resolve("mine", path="/x", text=("text",), labels=names)
    assert of(Split((["a", "b"],), [0, 1]), Split((["c"],), [0]), task) == [said]


def test_a_class_without_training_rows_is_told():
    task = resolve("mnli", path="/x")
    pair = (["a"], ["b"])
    assert of(Split(pair, [1]), Split((["c"], ["d"]), [0]), task) == ["mnli: of 3 classes 2 have no training row: 0, 2"]
