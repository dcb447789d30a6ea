"""Identity: what a trial's id hashes, and that rows written under an id keep it."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from distsub.results.schema import trial_from_json
from distsub.search import Search
from distsub.trial import Budget, Method, Seeds, Task, Trial, canonical, later

TASK = Task(name="toy", source="toy.csv", text=("a", "b"), where=(("source", "toy"),))
BUDGET = Budget(steps=10)
SUBSPACE = Trial(
    model="package:tiny",
    task=TASK,
    method=Method("said", "fastfood", "global", "layer", block_length=4096),
    d=100,
    learning_rate=2e-5,
    eta=0.3,
    seeds=Seeds(1, 2, 3),
    budget=BUDGET,
)
FULL = Trial("package:tiny", TASK, Method("full"), None, 2e-5, None, Seeds(0, 2, 3), BUDGET)


def test_ids_never_change():
    """Golden: tables written with version 1 name their rows like this."""
    assert SUBSPACE.id == "a3d3178f2d96005f"
    assert FULL.id == "a5d6df9efcb1bf83"
    search = Search(
        TASK, "package:tiny", SUBSPACE.method, SUBSPACE.seeds, BUDGET, (100, 200), (0.3, 1.0), 2e-5, baseline=(FULL,)
    )
    assert search.id == "9249402d7b043cad"
    assert search.trials_at(100)[0] == SUBSPACE


def test_every_field_but_a_later_one_at_its_default_is_in_the_identity():
    record = json.loads(SUBSPACE.identity)
    for kind, values in ((Trial, record), (Task, record["task"]), (Method, record["method"]), (Seeds, record["seeds"])):
        assert {f.name for f in dataclasses.fields(kind) if "later" not in f.metadata} == set(values) - {"version"}
    assert {f.name for f in dataclasses.fields(Budget) if "later" not in f.metadata} == set(record["budget"])


def test_a_later_field_counts_once_it_says_something():
    @dataclass(frozen=True)
    class Inner:
        old: int = 1
        new: bool = later(False)

    @dataclass(frozen=True)
    class Outer:
        many: tuple[Inner, ...]
        note: str | None = later(None)

    assert canonical(Outer((Inner(), Inner(2, True)))) == {"many": [{"old": 1}, {"old": 2, "new": True}]}
    assert canonical(Outer((), "said")) == {"many": [], "note": "said"}


def test_a_text_without_later_fields_gives_the_defaults():
    assert trial_from_json(SUBSPACE.identity) == SUBSPACE
    with pytest.raises(ValueError, match="not a trial"):
        trial_from_json(SUBSPACE.identity.replace('"warmup"', '"warmdown"'))
