"""Which sizes a method of PEFT can have, from the smallest on, and which of them is nearest to a number of numbers.

Every type has one option, or two, that decide how many numbers it trains. What a person gives is not varied.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from distsub.errors import ConfigError

Options = dict[str, Any]

MOST_VECTORS = 4096
"""Vectors of VBLORA at most."""


class Ladder(NamedTuple):
    """The sizes of a method, with counts that rise.

    Attributes:
        values: What is varied.
        options: PEFT's options at one of the values.
    """

    values: Sequence[int]
    options: Callable[[int], Options]


ONE_SIZE = Ladder((1,), lambda value: {})

SIZES = {
    "BEFT": (), "FOURIERFT": ("n_frequency",), "IA3": (), "LN_TUNING": (), "LORA": ("r", "lora_alpha"),
    "RANDLORA": ("r", "randlora_alpha"), "SHIRA": ("r",), "TINYLORA": ("u", "weight_tying"),
    "UNILORA": ("theta_d_length",), "VBLORA": ("num_vectors", "vector_length"), "VERA": ("r",),
}  # fmt: skip
"""The options of each type that follow from d."""


def ladder(peft: str, given: Mapping[str, Any], shapes: Sequence[tuple[int, int]]) -> Ladder:
    """List the sizes of a PEFT type: `given` is not varied, `shapes` are inputs and outputs of each adapted layer.

    Raises:
        ConfigError: No size fits the layers.
    """
    if not SIZES[peft] or (SIZES[peft][0] in given and peft != "TINYLORA"):
        return ONE_SIZE
    if peft == "TINYLORA":
        return _tied(given, shapes)
    if peft == "VBLORA":
        return _vectors(given, shapes)
    narrow = [min(shape) for shape in shapes]
    if peft == "RANDLORA":  # as many bases as make up full rank: of the ranks with as many, the smallest
        ranks = {math.ceil(max(narrow) / bases) for bases in range(1, max(narrow) + 1)}
        return Ladder(sorted(ranks, reverse=True), lambda r: {"r": r, "randlora_alpha": 20 * r} | dict(given))
    if peft == "LORA":
        return Ladder(range(1, max(narrow) + 1), lambda r: {"r": r, "lora_alpha": 2 * r} | dict(given))
    name = SIZES[peft][0]
    most = {
        "VERA": max(map(max, shapes)),
        "FOURIERFT": min(inputs * outputs for inputs, outputs in shapes),
        "SHIRA": min(inputs * outputs // (inputs + outputs) for inputs, outputs in shapes),
        "UNILORA": given.get("r", 4) * sum(map(sum, shapes)),
    }[peft]
    if most < 1:
        raise ConfigError(f"{name} = 1 is more than the smallest adapted layer has: narrow it by target_modules")
    return Ladder(range(1, most + 1), lambda value: {name: value})


def _tied(given: Mapping[str, Any], shapes: Sequence[tuple[int, int]]) -> Ladder:
    """Vary u with one vector for all layers; where u is given, how many vectors they share."""
    rank, layers = given.get("r", 2), len(shapes)
    if "u" in given:
        if "weight_tying" in given:
            return ONE_SIZE
        return Ladder(range(1, layers + 1), lambda vectors: {"weight_tying": 1 - vectors / layers})
    tying = given.get("weight_tying", 1.0)
    vectors = max(1, round(layers * (1 - tying)))
    spanned = sum(min(rank, *shape) ** 2 for shape in shapes)  # more numbers than that would be redundant
    return Ladder(range(1, max(1, spanned // vectors) + 1), lambda u: {"u": u, "weight_tying": tying})


def _vectors(given: Mapping[str, Any], shapes: Sequence[tuple[int, int]]) -> Ladder:
    """Vary the number of vectors, of the length with which they and the logits are fewest."""
    common = math.gcd(*(size for shape in shapes for size in shape))
    logits = given.get("r", 4) * sum(map(sum, shapes))
    lengths = [length for length in range(1, common + 1) if common % length == 0]
    length = given.get("vector_length", min(lengths, key=lambda each: each + logits / each))
    first = given.get("topk", 2)
    return Ladder(range(first, MOST_VECTORS + 1), lambda number: {"num_vectors": number, "vector_length": length})


def nearest(values: Sequence[int], d: int, count: Callable[[int], int]) -> int:
    """Find the value whose count, which rises with the values and is asked a few times only, is nearest to d in ratio.

    >>> nearest(range(1, 101), 70, lambda rank: 20 * rank)
    3
    """
    low, step = 0, 1
    if count(values[0]) >= d or len(values) == 1:
        return values[0]
    while (high := min(low + step, len(values) - 1)) > low and count(values[high]) < d:
        slope = max(1, count(values[high]) - count(values[low])) / (high - low)
        low, step = high, max(2 * step, math.ceil((d - count(values[high])) / slope))
    while high - low > 1:  # counts are close to a straight line
        below, above = count(values[low]), count(values[high])
        guess = low + round((d - below) * (high - low) / max(1, above - below))
        guess = min(max(guess, low + 1), high - 1)
        if count(values[guess]) <= d:
            low = guess
        else:
            high = guess
    below, above = count(values[low]), count(values[high])
    return values[low] if d / below <= above / d else values[high]
