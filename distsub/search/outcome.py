"""How a search may end, each way with its own sentence, and what is then known."""

from dataclasses import dataclass
from enum import Enum

Bracket = tuple[int | None, int | None]
"""Largest d that failed and smallest d that passed, None where there is none."""


class Outcome(Enum):
    """The ways a search may stand; the value is the sentence that a table or a log shows.

    Only `found` comes with a d. Every other outcome has none, so that no number can be mistaken for a d90.
    """

    found = "d90 is the smallest d that reached the threshold; the next smaller d did not"
    below_range = "the smallest d reached the threshold: d90 <= smallest d"
    above_range = "no d reached the threshold: d90 > largest d (censored)"
    not_monotone = "a d reached the threshold and a larger one did not: no single d90 fits these trials"
    baseline_missing = "the baseline has no score (a full fine-tuning failed or diverged): there is no threshold"
    baseline_at_chance = "the baseline is not above chance: the threshold means nothing"
    trial_failed = "a trial that decides d90 ended in an error: the bracket is as far as the others reach"
    budget_spent = "the budget ended before the search did: the bracket is as far as it got"
    not_confirmed = "d that passed fell short under fresh seeds, too often to go on: luck and d90 cannot be told apart"
    undecided = "the trials that decide the search leave this threshold open"
    open = "trials are still to come"

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        return self.value

    @property
    def is_over(self) -> bool:
        """Whether no further trial is coming."""
        return self is not Outcome.open


@dataclass(frozen=True)
class Thresholds:
    """The scores that a subspace has to reach, and what they were made from.

    Attributes:
        full: Full fine-tuning: mean over its seeds of the best score over its learning rates.
        chance: Score of always predicting the majority class (0 for correlations); None if no row gave it.
        relative: fraction * full, the paper's; it decides the search.
        chance_corrected: chance + fraction * (full - chance); None without chance.
    """

    full: float
    chance: float | None
    relative: float
    chance_corrected: float | None


@dataclass(frozen=True)
class Verdict:
    """What the trials say about one threshold.

    Attributes:
        outcome: How it ended.
        d: The smallest d that passed, None unless found.
        bracket: Largest d that failed and smallest d that passed; for not_monotone the first is the larger.
    """

    outcome: Outcome
    d: int | None = None
    bracket: Bracket = (None, None)


@dataclass(frozen=True)
class Finding:
    """What one search knows: the d90 or why there is none, and what that rests on.

    Attributes:
        outcome: How the search ended, judged by the paper's relative threshold, or open.
        d: d90; None unless found.
        bracket: Largest d that failed and smallest d that passed so far.
        chance_corrected: The same for the chance-corrected threshold, from the same trials.
        best_score: Best score of any subspace trial, None before the first.
        thresholds: Both thresholds, None until the baseline is complete.
        num_trials: Trials observed, the baseline's included, errors too.
    """

    outcome: Outcome
    d: int | None
    bracket: Bracket
    chance_corrected: Verdict
    best_score: float | None
    thresholds: Thresholds | None
    num_trials: int
