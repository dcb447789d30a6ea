"""The numbers that the estimate goes by, beside `curves.Noise`; docs/settings.md says which were measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EstimateSettings:
    """Tuned numbers of the posterior and its draws.

    Attributes:
        enough_draws: Independent draws that an estimate must be worth, else it warns.
        wanted_draws: Independent draws from which there are no further rounds.
        draws: Draws in a round.
        rounds: Rounds at most.
        proposal_df: Degrees of freedom of the proposal: tails heavier than the posterior's.
        residual_df: Degrees of freedom of the residual.
        failed_gain: How far from the floor, in gain, a training that failed may end.
        near_gain: Width in gain of the neighbourhood whose rows tell which sampling error is shared there.
        prior_pairs: Pairs of trainings that the usual correlations are worth.
        own_group: Rows from which a triple of seeds has a place of its own.
        most_groups: Triples of seeds with a place of their own, at most.
        sets_per_curve: Evaluation sets drawn for every curve.
        curve_points: Points of the range at which curves are looked up; between them they are straight.
    """

    enough_draws: int = 200
    wanted_draws: int = 800
    draws: int = 1000
    rounds: int = 20
    proposal_df: float = 8.0
    residual_df: float = 8.0
    failed_gain: float = 0.05
    near_gain: float = 0.12
    prior_pairs: float = 4.0
    own_group: int = 4
    most_groups: int = 12
    sets_per_curve: int = 8
    curve_points: int = 80


SETTINGS = EstimateSettings()
