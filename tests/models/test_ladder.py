import pytest

from distsub.models.ladder import ONE_SIZE, SIZES, ladder, nearest
from distsub.records import PEFT_STEPS

SHAPES = [(32, 32), (64, 32), (32, 64)]


def test_every_type_has_its_sizes():
    assert SIZES.keys() == PEFT_STEPS.keys()


@pytest.mark.parametrize("peft", [name for name, options in SIZES.items() if options])
def test_sizes_are_options_of_that_type(peft):
    values, options = ladder(peft, {}, SHAPES)
    assert len(values) > 1
    for value in (values[0], values[-1]):
        assert set(options(value)) == set(SIZES[peft])


def test_what_is_given_is_not_varied():
    assert ladder("LORA", {"r": 4}, SHAPES) is ONE_SIZE
    assert ladder("IA3", {}, SHAPES) is ONE_SIZE
    assert ladder("LORA", {"lora_alpha": 7}, SHAPES).options(3) == {"r": 3, "lora_alpha": 7}
    assert ladder("TINYLORA", {"u": 4, "weight_tying": 0.5}, SHAPES) is ONE_SIZE
    values, options = ladder("TINYLORA", {"u": 4}, SHAPES)  # then the layers are tied more or less
    assert [options(value)["weight_tying"] for value in values] == pytest.approx([2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("d", [1, 7, 20, 29, 31, 45, 999, 5000])
@pytest.mark.parametrize("size", [lambda r: 20 * r, lambda r: 7 + 3 * r, lambda r: r * r])
def test_the_nearest_in_ratio_is_found_with_few_counts(d, size):
    asked = []

    def count(value):
        asked.append(value)
        return size(value)

    found = nearest(range(1, 101), d, count)
    best = min(max(size(r) / d, d / size(r)) for r in range(1, 101))
    assert max(size(found) / d, d / size(found)) == best
    assert len(set(asked)) <= 20
