"""Which etas to try at a d, asked of an Optuna study that holds what was scored at the other d.

The study is made anew for every question and is nothing but a fold: the same results in any order give the same
answer, and resuming costs nothing. What one d taught thereby serves the next, also where the best eta drifts with d.

Samplers leave a parameter that is fixed out of their model, so a fixed log d would be forgotten. Here it enters
through the value: a gain is carried from the d where it was seen to the d in question along the rise that `belief`
assumes, in logits, and the rows nearest in log d are told.

The results of the d in question are not: a second eta is wanted only if the first failed, which is what the sampler
assumes of an answer that is still open (a constant liar; Ginsbourger et al. 2010). So all the etas of a d are known
before the first ends, may be trained side by side, and none is withdrawn because another has failed.
"""

import math
from collections.abc import Iterable

SLOPE = 1.0
"""Rise of logit(gain) per unit of log d."""
NEAREST = 24
"""Rows that are told, at most; an answer takes longer with more."""
CLIPPED = 0.02
"""Gains nearer to 0 or 1 than this count as this: further out a logit is nothing but noise."""
PATIENCE = 3
"""Questions per eta; the sampler may answer what it did before."""

Scored = tuple[float, int, float]
"""log d, index of the eta, and gain: the way from chance (0, also for what diverged) to full fine-tuning (1)."""


def ask(rows: Iterable[Scored], log_d: float, num_etas: int, tries: int) -> tuple[int, ...]:
    """Rank the etas to be tried at one d.

    Args:
        rows: What was scored at other d, in any order.
        log_d: Natural logarithm of the d in question.
        num_etas: Length of the list of etas.
        tries: How many of them a d is given.

    Returns:
        All indices, first those that the sampler (TPE; Bergstra et al. 2011) answered, then the ones nearest to them
        in the list. Without rows there is nothing to ask about: from the middle of the list outwards.
    """
    told = sorted(rows, key=lambda row: (abs(row[0] - log_d), row))[:NEAREST]
    answers: list[int] = []
    if told and num_etas > 1:
        answers = _answers([(j, _carried(gain, at - log_d)) for at, j, gain in told], num_etas, tries)
    centre = answers or [(num_etas - 1) / 2]
    rest = (j for j in range(num_etas) if j not in answers)
    return (*answers, *sorted(rest, key=lambda j: min(abs(j - each) for each in centre)))


def _carried(gain: float, step: float) -> float:
    """Return the logit of a gain as it would be expected at a d that is `step` smaller in log d."""
    share = min(max(gain, CLIPPED), 1 - CLIPPED)
    return math.log(share / (1 - share)) - SLOPE * step


def _answers(told: list[tuple[int, float]], num_etas: int, tries: int) -> list[int]:
    import optuna  # here, because it takes a third of a second and few sweeps ask for it

    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        etas = optuna.distributions.IntDistribution(0, num_etas - 1)
        space: dict[str, optuna.distributions.BaseDistribution] = {"eta": etas}
        # Ten random answers first, as is usual, would be all that a search ever asks.
        sampler = optuna.samplers.TPESampler(n_startup_trials=0, constant_liar=True, seed=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(
            optuna.trial.create_trial(params={"eta": j}, distributions=space, value=value) for j, value in told
        )
        answers: dict[int, None] = {}
        for _ in range(PATIENCE * tries):
            answers[study.ask(space).params["eta"]] = None
            if len(answers) == tries:
                break
        return list(answers)
    finally:
        optuna.logging.set_verbosity(loud)
