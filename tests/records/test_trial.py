"""Identity: what a trial's id hashes, and that rows written under an id keep it."""

import dataclasses
import json

import pytest

from distsub.records import (
    Budget,
    Full,
    Learned,
    Model,
    Random,
    Recording,
    Seeds,
    Setup,
    Source,
    Span,
    Subspace,
    Task,
    Trial,
    method_labels,
    model_labels,
)
from distsub.results.schema import setup_from_json
from distsub.search import Search

TASK = Task(name="toy", source="toy.csv", text=("a", "b"), where=(("source", "toy"),))
BUDGET = Budget(steps=10)
SUBSPACE = Trial(
    Setup(
        Model("package:tiny"),
        TASK,
        Subspace(Random("fastfood", block_length=4096), scales="layer"),
        2e-05,
        BUDGET,
        Seeds(1, 2, 3),
    ),
    100,
    0.3,
)
FULL = Trial(Setup(Model("package:tiny"), TASK, Full(), 2e-05, BUDGET, Seeds(0, 2, 3)))


def test_ids_never_change():
    """Golden: tables written with version 4 name their rows like this."""
    assert SUBSPACE.id == "c187d1e9740f584f"
    assert FULL.id == "b37c8c751955f542"
    search = Search(
        Setup(Model("package:tiny"), TASK, SUBSPACE.method, 2e-05, BUDGET, SUBSPACE.seeds),
        (100, 200),
        (0.3, 1.0),
        (FULL,),
    )
    assert search.id == "8407c2ad8a6df578"
    assert search.trials_at(100)[0] == SUBSPACE


def test_every_field_is_in_the_identity():
    half = dataclasses.replace(SUBSPACE.setup.model, dtype="bfloat16")  # float32 goes without saying
    scaled = dataclasses.replace(TASK, standardise=True)  # as do targets as they are
    record = json.loads(dataclasses.replace(SUBSPACE.setup, model=half, task=scaled).identity)
    parts = {**record, **{Random: record["method"]["projection"]}}
    for kind, values in (
        (Setup, record), (Model, record["model"]), (Task, record["task"]), (Subspace, record["method"]),
        (Random, parts[Random]), (Seeds, record["seeds"]), (Budget, record["budget"]),
    ):  # fmt: skip
        assert {field.name for field in dataclasses.fields(kind)} == set(values) - {"version"}


def test_a_whole_number_is_the_float_that_it_equals():
    assert SUBSPACE.vary(eta=1).id == SUBSPACE.vary(eta=1.0).id
    assert SUBSPACE.vary(learning_rate=1).setup.id == SUBSPACE.vary(learning_rate=1.0).setup.id


def test_a_setup_comes_back_from_its_text():
    assert setup_from_json(SUBSPACE.setup.identity) == SUBSPACE.setup
    with pytest.raises(ValueError, match="not a setup"):
        setup_from_json(SUBSPACE.setup.identity.replace('"warmup"', '"warmdown"'))


CHANGES = [
    *({"method": Subspace(Random(**odd))} for odd in ({"family": "dense"}, {"normalization": "per_tensor"})),
    *({"method": Subspace(Random("fastfood", block_length=length))} for length in (16, 32)),
    *({"method": Subspace(**odd)} for odd in ({"scales": "tensor"}, {"head": "trained"}, {"embeddings": "frozen"})),
    *({"method": Subspace(scope="layer", **odd)} for odd in ({"ensemble": 2}, {"start": "random"}, {"step": 0.1}, {})),
    {"method": Subspace(modules="mlp")},
    *(
        {"model": Model("package:tiny", **odd)}
        for odd in ({"revision": "a"}, {"head_from": "checkpoint"}, {"dtype": "bfloat16"})
    ),
    *({"task": dataclasses.replace(TASK, **odd)} for odd in ({"name": "other"}, {"metric": "macro_f1"})),
    *({"budget": dataclasses.replace(BUDGET, **odd)} for odd in ({"steps": 11}, {"warmup": 0.0})),
    {"learning_rate": 1e-3},
]


def test_whatever_differs_makes_another_condition_setup_and_trial_with_a_label_of_its_own():
    trials = [SUBSPACE.vary(method=Subspace()), *(SUBSPACE.vary(**{"method": Subspace(), **each}) for each in CHANGES)]
    for ids in (
        [each.id for each in trials],
        [each.setup.id for each in trials],
        [each.condition.id for each in trials],
    ):
        assert len(set(ids)) == len(trials)
    methods = list(dict.fromkeys(each.method for each in trials))
    assert len(set(method_labels(methods).values())) == len(methods)
    models = list(dict.fromkeys(each.model for each in trials))
    assert len(set(model_labels(models).values())) == len(models)
    assert SUBSPACE.vary(seeds=Seeds(7)).condition == SUBSPACE.condition


def learned(*sources: Source, **other) -> Trial:
    span = Span(sources, 1e-4, Budget(steps=20), **other)
    method = Subspace(Learned(span), head="trained", scope="layer", embeddings="frozen")
    return SUBSPACE.vary(method=method)


RTE = dataclasses.replace(TASK, name="rte", source="rte.csv")


def test_a_learned_subspace_is_part_of_the_identity_and_comes_back_from_text():
    trial = learned(Source(), Source(RTE, shift=1), every=5, last=True)
    assert setup_from_json(trial.setup.identity) == trial.setup
    others = [learned(Source()), learned(Source(), first=3), learned(Source(), mode="raw"), learned(Source(RTE))]
    assert len({each.id for each in (trial, *others)}) == 5


def test_the_recordings_of_a_trial():
    own, other = learned(Source(), Source(RTE, shift=10), every=5).recordings
    assert own == Recording(Trial(Setup(Model("package:tiny"), TASK, Full(), 0.0001, Budget(20), FULL.seeds)), 5)
    assert other.trial.task == RTE and other.trial.seeds == Seeds(0, 12, 13)
    assert [each.trial.task for each in learned(Source(TASK), Source(RTE), leave_out=True).recordings] == [RTE]
    assert SUBSPACE.recordings == ()
    # What is done with the checkpoints later does not make another recording.
    assert learned(Source(), every=5, first=2, mode="raw").recordings == (own,)
