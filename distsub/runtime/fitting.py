"""The model to take away: at the d that a sweep found to be enough, best of its seeds, scored on rows not looked at."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distsub import metrics, paths
from distsub.adapters.predictor import load
from distsub.config.sweep import Sweep
from distsub.data import unseen
from distsub.errors import ConfigError, DistsubError, OutputError, first_line
from distsub.estimate.interval import Estimate
from distsub.records import Observation, Peft, Trial, label, sign
from distsub.report.summary import Summary
from distsub.results import Store
from distsub.search import Search


@dataclass(frozen=True)
class Choice:
    """The model at d under every seed of the sweep, and in words how d was chosen."""

    trials: tuple[Trial, ...]
    why: str


def choose(
    sweep: Sweep,
    store: Store,
    summary: Summary,
    d: int | None = None,
    task: str | None = None,
    model: str | None = None,
    method: str | None = None,
) -> Choice:
    """Choose condition, d and eta from what a sweep has found.

    Args:
        sweep: The sweep.
        store: Its results.
        summary: Of the two.
        d: As asked for; None takes the upper end of d90's interval, the next larger d of the grid.
        task: Its name, where the sweep has several.
        model: The end of its address, likewise.
        method: Its label, likewise; None takes the one whose d is smallest.

    Raises:
        ConfigError: There is no such condition, several tasks or models fit, or no d follows from the results.
    """
    groups = _conditions(sweep, task, model, method)
    searches = sweep.searches()
    estimates = (
        {} if d is not None else {searches[members[0]].condition.id: each for members, each in summary.estimates}
    )
    wanted = [_wanted(own[0], estimates.get(own[0].condition.id), d) for own in groups]
    # Of several methods, the one that needs the fewest numbers.
    least = min((each for each in wanted if each.d is not None), key=lambda each: each.d or 0, default=None)
    if least is None or least.d is None:
        largest = max(own[0].dims[-1] for own in groups)
        raise ConfigError(
            f"no d follows from the results ({'; '.join(each.why for each in wanted)}): run the sweep to its end, give "
            f"it larger dims or more seeds, or choose a d yourself, such as the largest of the grid: --d {largest}"
        )
    own = groups[wanted.index(least)]
    setups = {each.setup.id for each in own}
    rows = [row for row in store.scores() if row.score is not None and row.trial.setup.id in setups]
    eta, at = _best_eta([row for row in rows if row.trial.d is not None], own[0], least.d)
    how = f"best on evaluation rows at d = {at}" if at else "the middle of the sweep's, untried"
    trials = tuple(dict.fromkeys(Trial(each.setup, least.d, eta) for each in own))
    return Choice(trials, f"{least.why}; eta = {eta:g}, {how}")


def _conditions(sweep: Sweep, task: str | None, model: str | None, method: str | None) -> list[list[Search]]:
    """List the searches of every condition that fits, which are of one task and model."""
    searches = sweep.searches()
    groups: dict[str, list[Search]] = {}
    for search in searches:
        names = (search.task.name, search.model.short_name, label(search.method))
        if all(asked in (None, name) for asked, name in zip((task, model, method), names, strict=True)):
            groups.setdefault(search.condition.id, []).append(search)
    arms = {(each[0].task.name, each[0].model.short_name): None for each in groups.values()}
    if len(arms) != 1:
        known = {f"--task {a} --model {b}": None for a, b in arms} or {_flags(each): None for each in searches}
        what = "several tasks or models fit" if arms else "no search of the sweep fits"
        raise ConfigError(f"{what}; give one of: {', '.join(known)}")
    return list(groups.values())


class _Wanted(NamedTuple):
    """The d to train a condition at, and why; None where none follows."""

    d: int | None
    why: str


def _wanted(search: Search, estimate: Estimate | None, d: int | None) -> _Wanted:
    """Take the d that is asked for, or the next one of the grid above the interval of d90."""
    if d is not None:
        return _Wanted(_offered(search, d), f"d = {d} as asked")
    name = label(search.method)
    if estimate is None:
        return _Wanted(None, f"{name}: no estimate")
    if not estimate.outcome.name.startswith(("found", "below")) or estimate.high is None:
        return _Wanted(None, f"{name}: {estimate.text}")
    larger = next((each for each in search.dims if each >= estimate.high), None)
    if larger is None:
        return _Wanted(None, f"{name}: {estimate.text}, and the grid ends at {search.dims[-1]}")
    return _Wanted(larger, f"upper end of {estimate.text}, next d of the grid")


def _flags(search: Search) -> str:
    return f"--task {search.task.name} --model {search.model.short_name} --method {label(search.method)}"


def _offered(search: Search, d: int) -> int:
    """Give a d that the method can have: of PEFT the next that it offers."""
    if d < 1:
        raise ConfigError(f"d = {d}; allowed: 1 or more")
    if not isinstance(search.method, Peft):
        return d
    if (larger := next((each for each in search.dims if each >= d), None)) is None:
        raise ConfigError(f"d = {d} is above what the sweep counted for {label(search.method)}: {search.dims[-1]}")
    return larger


def _best_eta(rows: Sequence[Observation], search: Search, d: int) -> tuple[float, int | None]:
    """Give the eta of the best mean score at d, or at the d nearest to it that was trained."""
    if not rows:
        return search.etas[len(search.etas) // 2], None
    nearest = min({row.trial.d or 1 for row in rows}, key=lambda each: abs(math.log(each / d)))
    scores: dict[float, list[float]] = {}
    for row in rows:
        if row.trial.d == nearest and row.trial.eta is not None and row.score is not None:
            scores.setdefault(row.trial.eta, []).append(sign(search.task.metric) * row.score)
    # A rate that only some seeds have tried is not preferred for their luck.
    most = max(map(len, scores.values()))
    means = {eta: sum(found) / len(found) for eta, found in scores.items() if len(found) == most}
    return max(means, key=lambda eta: means[eta]), nearest


def ask(store: Store, choice: Choice) -> None:
    """Note which trainings are asked for, before they start: a `fit` that is killed leaves no rows without a reason.

    Raises:
        OutputError: The results cannot be written.
    """
    place = paths.asked(choice.trials[0].id)
    try:
        store.files.make(place.rpartition("/")[0])
        store.files.put(place, (json.dumps({"trials": sorted(trial.id for trial in choice.trials)}) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {store.uri}/{place} ({first_line(error)})") from None


def take(sweep: Sweep, store: Store, choice: Choice, address: str | None = None) -> dict[str, Any]:
    """Keep the adapter of the best seed as the one to take away, score it on unseen rows, and say what it is, by name.

    `address` is the store's with its options, where it has any; the store itself keeps none.

    Raises:
        DistsubError: No training has a score, or the adapter was not kept.
    """
    ids = {trial.id for trial in choice.trials}
    rows = [row for row in store.scores() if row.trial.id in ids and row.score is not None]
    if not rows:
        raise DistsubError(f"no training at d = {choice.trials[0].d} has a score: distsub query {store.uri} tells why")
    task, up = choice.trials[0].task, sign(choice.trials[0].task.metric)
    best = max(rows, key=lambda row: (up * (row.score or 0.0), row.trial.id))
    place = _copy(store, best.trial)
    root, mark, options = (address or store.uri).partition("?") if "://" in store.uri else (store.uri, "", "")
    predictor = load(f"{root.rstrip('/')}/{place}{mark}{options}")
    located = store.places.locate_trial(best.trial)
    facts: dict[str, Any] = {
        "adapter": f"{store.uri.rstrip('/')}/{place}",
        "bytes": sum(store.files.sizes(paths.adapter(best.trial.id)).values()),
        "task": task.name,
        "model": best.trial.model.name,
        "method": label(best.trial.method),
        "d": best.trial.d,
        "chosen": choice.why,
        "seed": f"{best.trial.seeds.text}, the best of {len(rows)} on evaluation rows",
        "metric": task.metric,
        "evaluation_scores": [row.score for row in rows],
        "evaluation_score": best.score,
    }
    found = unseen.find(located.task, sweep.budget, sweep.tasks)
    if found is None:
        facts["unseen_score"] = None
        facts["unseen"] = (
            "every row was trained on or looked at by the search, which chose by evaluation_score: that is too good by "
            "some; leave rows out by [budget] eval_examples, or add a split called test"
        )
    else:
        score = predictor.evaluate(found.texts, found.labels)[task.metric]
        facts["unseen_score"], facts["unseen_examples"] = score, len(found.labels)
        facts["unseen"] = f"{len(found.labels)} rows: {found.origin}"
        if task.metric in ("accuracy", "exact_match"):
            facts["unseen_standard_error"] = math.sqrt(metrics.variance(score, task.metric, len(found.labels)))
    # The file lies beside the adapter, wherever both are moved to.
    written = facts | {"adapter": ".", "trials": sorted(ids)}
    store.files.put(paths.fit(best.trial.id), (json.dumps(written, indent=1) + "\n").encode())
    if store.files.exists(note := paths.asked(choice.trials[0].id)):
        store.files.delete_all(note.rpartition("/")[0])
    return facts


def _copy(store: Store, trial: Trial) -> str:
    """Copy a trial's adapter to where it is kept as the one to take away."""
    source, target = paths.adapter(trial.id), f"{paths.FITTED}/{trial.id}"
    names = store.files.names(source)
    if not names:
        raise OutputError(
            f"{store.uri} has no adapter of trial {trial.id}, whose row is there: its run had --no-adapters; give fit "
            "the sweep file and another --out"
        )
    try:
        store.files.make(target)
        for name in names:
            store.files.put(f"{target}/{name}", store.files.read(f"{source}/{name}"))
    except OSError as error:
        raise OutputError(f"cannot write {store.uri}/{target} ({first_line(error)})") from None
    return target
