"""How many bits it takes to write down trained numbers: rounded to few levels, and coded without a fitted table.

Every length here is -log2 of a probability that was fixed before the numbers were seen, so that such lengths may stand
in a bound as they are: by Kraft's inequality an arithmetic coder writes them in as many bits, and two more.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def integer(number: int) -> float:
    """Bits of a positive integer under P(n) = 1 / (n (n + 1)).

    >>> integer(1), round(integer(1000), 2)
    (1.0, 19.93)
    """
    if number < 1:
        raise ValueError(f"number should be 1 or more, got {number}")
    return math.log2(number) + math.log2(number + 1)


def sequence(symbols: Tensor, levels: int) -> float:
    """Bits of a sequence of symbols under the mixture of Krichevsky and Trofimov (1981), which learns as it goes.

    Args:
        symbols: Integers from 0 to levels - 1, any shape.
        levels: How many symbols there are.

    Returns:
        -log2 of the Dirichlet(1/2, ..., 1/2) mixture of memoryless sources at this sequence: at most (levels - 1) / 2 *
        log2(n) and a constant more than the best memoryless code.

    >>> round(sequence(torch.tensor([0, 0, 0, 0]), 2), 3)
    1.871
    """
    if symbols.numel() and not 0 <= int(symbols.min()) <= int(symbols.max()) < levels:
        raise ValueError(f"symbols should lie in 0 to {levels - 1}")
    counts = torch.bincount(symbols.reshape(-1).long(), minlength=levels).tolist()
    total = math.lgamma(sum(counts) + levels / 2) - math.lgamma(levels / 2)
    return (total - sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts)) / math.log(2)


@dataclass(frozen=True)
class Rounded:
    """Numbers on a grid of 2 * largest + 1 levels.

    Attributes:
        symbols: Which level each has, from 0.
        step: Between levels; a number of float16.
        largest: Levels on either side of the middle.
        middle: The level in the middle.
    """

    symbols: Tensor
    step: float
    largest: int
    middle: float

    @property
    def values(self) -> Tensor:
        """The numbers themselves, float32."""
        return (self.middle + self.step * (self.symbols - self.largest).double()).float()

    @property
    def bits(self) -> float:
        """What they take, step and number of levels included."""
        return 16 + integer(self.largest) + sequence(self.symbols, 2 * self.largest + 1)


def rounded(
    values: Tensor, largest: int, middle: float = 0.0, step: float | None = None, shrink: float = 0.0
) -> Rounded:
    """Round numbers to a grid; what lies beyond its last levels goes to those.

    Args:
        values: Any shape; finite.
        largest: Levels on either side of the middle, 1 or more.
        middle: What is likeliest: 0 for coordinates, 1 for scales.
        step: Between levels, of which float16 is kept; None reaches from the smallest number to the largest.
        shrink: How far numbers are drawn to the middle before they are rounded, in steps: more of them then lie there.
    """
    away = values.detach().double().cpu() - middle
    if step is None:
        step = (away.abs().max().item() if away.numel() else 0.0) / largest
    step = torch.tensor(step).half().item()
    levels = away / step if step else torch.zeros_like(away)
    levels = torch.nn.functional.softshrink(levels, shrink)
    symbols = levels.round().clamp(-largest, largest).long()
    return Rounded(symbols + largest, step, largest, middle)
