"""Identity: what a trial's id hashes, and that rows written under an id keep it."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from distsub.identity import canonical, later
from distsub.results.schema import trial_from_json
from distsub.search import Search
from distsub.trial import Budget, Method, Recording, Seeds, Source, Span, Task, Trial

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
    """Golden: tables written with version 3 name their rows like this."""
    assert SUBSPACE.id == "8e568f86b402fd02"
    assert FULL.id == "973abb1aeae75745"
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


def learned(*sources: Source, **other) -> Trial:
    span = Span(sources, 1e-4, Budget(steps=20), **other)
    method = Method("did", "trajectory", "global", head="trained", scope="layer", embeddings="frozen", span=span)
    return dataclasses.replace(SUBSPACE, method=method)


RTE = dataclasses.replace(TASK, name="rte", source="rte.csv")


def test_a_learned_subspace_is_part_of_the_identity_and_comes_back_from_text():
    trial = learned(Source(), Source(RTE, shift=1), every=5, last=True)
    assert trial_from_json(trial.identity) == trial
    others = [learned(Source()), learned(Source(), first=3), learned(Source(), mode="raw"), learned(Source(RTE))]
    assert len({each.id for each in (trial, *others)}) == 5


def test_the_recordings_of_a_trial():
    own, other = learned(Source(), Source(RTE, shift=10), every=5).recordings
    assert own == Recording(Trial("package:tiny", TASK, Method("full"), None, 1e-4, None, FULL.seeds, Budget(20)), 5)
    assert other.trial.task == RTE and other.trial.seeds == Seeds(0, 12, 13)
    assert [each.trial.task for each in learned(Source(TASK), Source(RTE), leave_out=True).recordings] == [RTE]
    assert SUBSPACE.recordings == ()
    # What is done with the checkpoints later does not make another recording.
    assert learned(Source(), every=5, first=2, mode="raw").recordings == (own,)
