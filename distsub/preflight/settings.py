"""The numbers that the rehearsal goes by; docs/settings.md says which were measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RehearsalSettings:
    """How far a text's logits, or a completion's loss, in a batch may be from those of the text alone.

    Attributes:
        absolute: In their own unit.
        relative: Of the largest, in float32, beside that.
        rounded: The same share in bfloat16, of 8 bits.
    """

    absolute: float = 1e-5
    relative: float = 1e-4
    rounded: float = 0.05


SETTINGS = RehearsalSettings()
