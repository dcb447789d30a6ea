"""From searches and observations to the rows of one estimate: one model, task and method, each training once."""

from collections.abc import Iterable, Sequence

from distsub.errors import ConfigError
from distsub.estimate.rows import Row, Rows, prepare
from distsub.metrics import influences
from distsub.records import Condition, Observation, sign
from distsub.search.evidence import tuned
from distsub.search.ranges import KEPT
from distsub.search.rule import check_score
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search
from distsub.search.thresholds import Result, mean_known


def gather(searches: Sequence[Search], observations: Iterable[Observation]) -> Rows:
    """Pick the rows of one model, task and method, each training once; arguments and errors are those of `d90.fit`."""
    if isinstance(searches, Search):
        raise ConfigError(f"searches is a single Search ({searches.name}): give a list of them, as [search]")
    if isinstance(observations, Observation):
        raise ConfigError("observations is a single Observation: give a list of them, as [observation]")
    condition, asked, observations = _common_condition(searches), searches, list(observations)
    searches = tuned(searches, observations)
    rates = {trial.learning_rate for search in searches for trial in search.baseline}
    budgets = {trial.budget for search in searches for trial in search.baseline}
    etas = {eta for search in searches for eta in search.etas}
    theta_0 = {trial.id for search in searches for trial in search.theta_0}
    best: dict[str, tuple[Result, Observation]] = {}
    for observation in observations:
        trial = observation.trial
        if trial.is_theta_0:
            is_ours = trial.id in theta_0
        elif trial.is_baseline:
            same = (trial.model, trial.task) == (condition.model, condition.task)
            is_ours = same and trial.learning_rate in rates and trial.budget in budgets
        else:
            is_ours = trial.eta in etas and trial.condition == condition
        if is_ours:
            result = Result.of(observation)
            known = best.get(trial.id)
            # Of equal results the one with answers says more.
            if known is None or (known[0].merge(result), bool(known[1].predicted)) != (known[0], True):
                merged = known[0].merge(result) if known else result
                best[trial.id] = (merged, observation if merged == result else known[1])  # type: ignore[index]
    found = [(result, observation) for result, observation in best.values() if result.status != "error"]
    metric, rule = searches[0].task.metric, searches[0].rule
    rows = [_row(result, observation, metric) for result, observation in found if not observation.trial.is_theta_0]
    untouched = [result.score for result, observation in found if observation.trial.is_theta_0]
    chances = mean_known([result.chance for result, _ in found])
    warnings = _unknown_examples(found) + (_tries(asked, len(rates)) if rule.value is None else ())
    return prepare(rows, chances, metric, rule, mean_known(untouched)).with_warnings(warnings)


def _row(result: Result, observation: Observation, metric: str) -> Row:
    trial = observation.trial
    if result.score is not None:
        check_score(sign(metric) * result.score, metric, f"the score of trial {trial.id}")
    answers = None if result.score is None else influences(observation)
    eta = trial.learning_rate if trial.eta is None else trial.eta
    return Row(
        d=trial.d,
        arm=eta,
        seeds=(trial.seeds.projection, trial.seeds.head, trial.seeds.data),
        score=result.score,
        num_examples=result.num_examples or trial.budget.eval_examples or SETTINGS.unknown_examples,
        influences=None if answers is None else sign(metric) * answers,
    )


def _common_condition(searches: Sequence[Search]) -> Condition:
    found = {search.condition: search.name for search in searches}
    if len({search.rule for search in searches}) > 1:
        raise ConfigError("an estimate is of one threshold: give searches of one rule")
    if len(found) != 1:
        given = ", ".join(found.values()) or "none"
        raise ConfigError(
            f"an estimate is of one model, task, method, learning rate and budget, given searches of {len(found)} kinds"
            f" ({given}): give the searches that differ in seeds only"
        )
    return next(iter(found))


def _unknown_examples(found: Sequence[tuple[Result, Observation]]) -> tuple[str, ...]:
    scored = [observation for result, observation in found if result.score is not None]
    if all(row.num_examples or row.predicted or row.trial.budget.eval_examples for row in scored):
        return ()
    return (f"rows do not tell how many examples were evaluated: {SETTINGS.unknown_examples} are assumed",)


def _tries(searches: Sequence[Search], rates: int) -> tuple[str, ...]:
    """Tell where one arm has more tries than the other, and so more luck; `rates` learning rates count."""
    etas = {eta for search in searches for eta in search.etas}
    tries = len(etas) if any(search.tries is None for search in searches) else max(s.num_tries for s in searches)
    drawn = [
        next((found for s in searches if (found := getattr(s, name))), None) for name in ("eta_range", "rate_range")
    ]
    # How many were tried, and how many of those under all seeds.
    numbers = [(r.tries, KEPT) if r else (n, n) for r, n in zip(drawn, (tries, rates), strict=True)]
    if numbers[0] == numbers[1]:
        return ()
    of_etas, of_rates = (f"{tried}" if tried == kept else f"{tried} ({kept} of them kept)" for tried, kept in numbers)
    return (
        f"equal tries for every arm: number of etas at each d {of_etas}, of full fine-tuning's learning rates"
        f" {of_rates}; the best of more is luckier, give as many of both",
    )
