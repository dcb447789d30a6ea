"""How a search may end, each way with its own sentence, and what is then known."""

from dataclasses import dataclass
from enum import Enum

Bracket = tuple[int | None, int | None]
"""Largest d that failed and smallest d that passed, None where there is none."""


class Outcome(Enum):
    """The ways a search may stand; the value is the sentence that a table or a log shows.

    Only `found` comes with a d. Every other outcome has none, so that no number can be mistaken for an answer.
    """

    found = "a d reached the threshold; the next smaller one did not"
    below_range = "the smallest d reached the threshold: what is asked for is at most that"
    above_range = "no d reached the threshold: what is asked for is above the largest d (censored)"
    not_monotone = "a larger d fell short by more than sampling error explains: no single d fits these trials"
    baseline_missing = (
        "the baseline has no score (no full fine-tuning has ended yet, or it failed or diverged): there is no threshold"
    )
    baseline_at_chance = "the baseline is not above chance: the threshold means nothing"
    trial_failed = "a trial that decides it ended in an error: the bracket is as far as the others reach"
    budget_spent = "the budget ended before the search did: the bracket is as far as it got"
    undecided = "the trials that decide the search leave this threshold open"
    open = "trials are still to come"

    @property
    def is_over(self) -> bool:
        """Whether no further trial is coming."""
        return self is not Outcome.open


@dataclass(frozen=True)
class Thresholds:
    """The scores that a subspace has to reach, and what they were made from; each times its metric's sign.

    Attributes:
        full: Full fine-tuning: the best, over its learning rates, of the mean over its seeds; None where the rule is a
            value, for which none is trained.
        chance: Score of always predicting the majority class (0 for correlations), or mean score of theta_0 where the
            rule says so; None if no row gave it.
        score: fraction * full, the paper's, or the value; it decides the search. Of a metric that is better when lower
            the same as `chance_corrected`.
        chance_corrected: chance + fraction * (full - chance); None without chance, and for a value.
        floor: The best score known that takes no training; full fine-tuning that is not above it has not learned.
    """

    full: float | None
    chance: float | None
    score: float
    chance_corrected: float | None
    floor: float = 0.0

    def shown(self, sign: float) -> "Thresholds":
        """Return the scores as rows have them."""
        values = (self.full, self.chance, self.score, self.chance_corrected, self.floor)
        return Thresholds(*(value if value is None else sign * value for value in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Finding:
    """What one search knows: the first passing d or why there is none, and what that rests on.

    Attributes:
        outcome: How the search ended, judged by the paper's relative threshold, or open.
        d: The first passing d; None unless found.
        bracket: Largest d that failed and smallest d that passed so far; of not_monotone the first is the larger.
        best_score: Best score of any subspace trial, as its row has it; None before the first.
        thresholds: What is to be reached, in scores as rows have them; None until the baseline is complete.
        num_trials: Trials observed, the baseline's included, errors too.
    """

    outcome: Outcome
    d: int | None
    bracket: Bracket
    best_score: float | None
    thresholds: Thresholds | None
    num_trials: int
