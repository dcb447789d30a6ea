"""The numbers that searches go by, each with its reason; docs/settings.md says which were measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """Tuned numbers of the searches and of the threshold.

    Attributes:
        failed_share: Share of the way from chance to a good baseline below which a full fine-tuning failed to train.
        failed_errors: Standard errors by which it must lie below a good one besides: of few examples any score may be
            low.
        unknown_examples: Evaluation examples where nothing tells.
        fall_errors: Standard errors by which a score must fall with d before it is said that no d90 fits.
        steps: Steps of the grid by which a search goes out from where it expects its answer, before it halves what is
            left. With the published grid of 16% a step, seeds differ by two to four.
        reach: A search may take so many times the trials of bisection's worst case; it rarely takes a third of one.
        earlier: Searches of earlier seeds that a search learns from; bounds what one result can set in motion.
        patience: Ranks by which a search gives way to each of them that is still open.
        worlds: Simulated searches that a plan's expectation is the mean of.
    """

    failed_share: float = 0.25
    failed_errors: float = 3.0
    unknown_examples: int = 400
    fall_errors: float = 3.5
    steps: tuple[int, ...] = (0, 1, 4, 9)
    reach: int = 3
    earlier: int = 8
    patience: int = 2
    worlds: int = 7


SETTINGS = SearchSettings()
