"""Ways of training side by side: full, freeze, random, intrinsic and the rest, over seeds, as in the paper's tables."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from distsub.learned.ablation import known_score, score_of, t_interval
from distsub.learned.schema import MODES
from distsub.records import Full, Imported, Learned, Method, Observation, Subspace, Trial, label, sign

Key = tuple[Any, ...]


def modes_table(observations: Sequence[Observation]) -> pa.Table:
    """Compute one row per model, task, budget, way of training and d.

    Where several step sizes were tried, the one with the best mean over the seeds counts, for all of them: picking for
    each seed its own would be a maximum over noise. A seed whose training diverged has the chance score; one whose
    training ended in an error has none. Ablated trainings and theta_0 are not compared here.

    Args:
        observations: Rows of trials.

    Returns:
        Rows of MODES, in the order of model, task, way and d; the scores of each in the order of the seeds.
    """
    tried: dict[Key, dict[float, dict[Key, Observation]]] = defaultdict(lambda: defaultdict(dict))
    for observation in observations:
        trial = observation.trial
        if trial.ablation is None and not trial.is_theta_0 and score_of(observation) is not None:
            rate = trial.learning_rate if trial.eta is None else trial.eta
            seeds = (trial.seeds.projection, trial.seeds.head, trial.seeds.data)
            tried[_key(trial)][rate][seeds] = observation
    chosen = {key: max(by_rate.items(), key=lambda item: _strength(item[1])) for key, by_rate in tried.items()}
    full = {key[:3]: trials for key, (_, trials) in chosen.items() if isinstance(key[3], Full)}
    random: dict[Key, dict[Key, Observation]] = {}
    for key in sorted((key for key in chosen if _is_random(key[3])), key=lambda key: key[3].family):
        random.setdefault((key[:3], key[4], _alike(key[3])), chosen[key][1])
    rows = []
    for key, (rate, trials) in chosen.items():
        row = _row(key, [trials[seeds] for seeds in sorted(trials)]) | {"rate": rate, "rates": len(tried[key])}
        row |= _against(trials, full.get(key[:3], {}))
        rows.append(row | _recovered(row, random.get((key[:3], key[4], _alike(key[3])))))
    rows.sort(key=lambda row: (row["model"], row["task"], row["method"], row["projection"] or "", row["d"] or 0))
    return pa.Table.from_pylist(rows, schema=MODES)


def _row(key: Key, observations: Sequence[Observation]) -> dict[str, Any]:
    _, task, budget, method, d = key
    scores = np.array([known_score(each) for each in observations], dtype=float)
    low, high, _ = t_interval(scores)
    return {
        "model": observations[0].trial.model.name,
        "task": task.name,
        "method": label(method),
        **dict(zip(("source", "training"), _source(method, task.name), strict=True)),
        "projection": method.family if isinstance(method, Subspace) else None,
        "d": d,
        "steps": budget.steps,
        "metric": task.metric,
        "chance": observations[0].chance,
        "seeds": len(observations),
        "score": float(scores.mean()),
        "score_low": low,
        "score_high": high,
        "scores": scores.tolist(),
    }


def _against(trials: dict[Key, Observation], full: dict[Key, Observation]) -> dict[str, Any]:
    """Compare with full fine-tuning under the same head and data seed."""
    if not full:
        return {}
    mean = float(np.mean([known_score(observation) for observation in full.values()]))
    by_seeds = {seeds[1:]: known_score(observation) for seeds, observation in full.items()}
    pairs = [(known_score(row), by_seeds[seeds[1:]]) for seeds, row in trials.items() if seeds[1:] in by_seeds]
    if not pairs:
        return {"full": mean}
    differences = np.array([ours - theirs for ours, theirs in pairs], dtype=float)
    low, high, p = t_interval(differences)
    found = {"difference": float(differences.mean()), "difference_low": low, "difference_high": high, "t_p": p}
    return {"full": mean} | found


def _recovered(row: dict[str, Any], random: dict[Key, Observation] | None) -> dict[str, Any]:
    """Give the share of the way from a random subspace to full fine-tuning, or the reason why there is none."""
    if row["d"] is None:
        return {}
    below = float(np.mean([known_score(observation) for observation in random.values()])) if random else None
    above, chance, recovered, reason, up = row.get("full"), row["chance"], None, None, sign(row["metric"])
    if above is None:
        reason = "no full fine-tuning"
    elif chance is not None and up * above <= up * chance:
        reason = "full is not above chance"
    elif below is None:
        reason = "no random subspace of this d"
    elif up * above <= up * below:
        reason = "full is not above random"
    else:
        recovered = (row["score"] - below) / (above - below)
    return {"random": below, "recovered": recovered, "reason": reason}


def _is_random(method: Method) -> bool:
    return isinstance(method, Subspace) and method.scope == "layer" and method.span is None


def _alike(method: Method) -> Key:
    """Give what two ways of training in layers share when they differ in the subspace alone."""
    fields = ("scope", "head", "embeddings", "modules", "ensemble", "start", "step")
    return tuple(getattr(method, name, None) for name in fields)


def _source(method: Method, task: str) -> tuple[str | None, str | None]:
    """Name the task whose trajectory a subspace is made of, and how it was trained; controls have no source."""
    if not isinstance(method, Subspace) or not isinstance(method.projection, Learned):
        return None, None
    span = method.projection.span
    if len(span.sources) != 1:
        return None, None
    [source] = span.sources
    own = isinstance(source, Imported) or source.task is None
    if own and (getattr(source, "shift", 0) or span.first or span.last):
        return None, None
    name, origin = "intrinsic", task
    if isinstance(source, Imported):
        name = origin = source.name
    elif source.task is not None:
        name, origin = f"inductive:{source.task.name}", source.task.name
    return origin, label(method).removeprefix(name).strip() or "default"


def _key(trial: Trial) -> Key:
    d = trial.d if isinstance(trial.method, Subspace) else None
    return trial.model, trial.task, trial.budget, trial.method, d


def _strength(trials: dict[Key, Observation]) -> tuple[int, float]:
    """Prefer what has run under the most seeds, then the best mean."""
    up = sign(next(iter(trials.values())).trial.task.metric)
    return len(trials), up * float(np.mean([known_score(observation) for observation in trials.values()]))
