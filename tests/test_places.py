"""Identity by content: what is told apart, what is not, and the way back to the files."""

from dataclasses import asdict, fields, replace

import pytest

from distsub.identity import canonical
from distsub.places import ModelPlace, Places
from distsub.results.schema import trial_from_json
from distsub.trial import Budget, Method, Seeds, Source, Span, Task, Trial

OTHER = {
    "text": ("other",),
    "where": (("kept", "no"),),
    "labels": ("no", "yes"),
    "holdout": 0.5,
    "empty": "drop",
    "quote": "none",
    "metric": "matthews",
    "num_labels": 3,
}
ODD_MODELS = ({"name": 3}, {"name": None}, {"content": 5}, {"content": None}, {"revision": 1}, {"extra": 1})
ODD_TASKS = ({"content": 5}, {"source": []}, {"text": "a"}, {"text": [1]}, {"where": [1]}, {"where": [["a"]]})
ODD_TASKS += ({"num_labels": "2"}, {"num_labels": 2.5}, {"holdout": "x"}, {"labels": [None]})
TASK = Task("tickets", "/here/tickets", ("text",), content="aa" * 32)
TRIAL = Trial("/here/model", TASK, Method("did"), 16, 1e-4, 1.0, Seeds(), Budget(steps=3), weights="bb" * 32)


def _other(task, field):
    return replace(task, **{field: OTHER.get(field, "elsewhere")})


@pytest.mark.parametrize("field", [field.name for field in fields(Task)])
def test_where_rows_lie_and_how_they_are_read_is_no_part_of_what_they_are(field):
    moved = _other(TASK, field)
    same = field in Task.ADDRESS
    assert (moved == TASK) is (hash(moved) == hash(TASK)) is same
    assert (replace(TRIAL, task=moved).id == TRIAL.id) is same
    assert (canonical(moved) == canonical(TASK)) is same


@pytest.mark.parametrize("field", [field.name for field in fields(Task)])
def test_before_rows_are_read_their_address_tells_them_apart(field):
    unread = replace(TASK, content=None)
    moved = _other(unread, field)
    assert moved != unread and replace(TRIAL, task=moved).id != replace(TRIAL, task=unread).id


def test_a_model_is_told_by_its_content_once_that_is_known():
    moved = replace(TRIAL, model="/there/model", revision="main")
    assert moved == TRIAL and moved.id == TRIAL.id and moved.base == TRIAL.base
    assert replace(moved, weights=None) != replace(TRIAL, weights=None)
    assert replace(TRIAL, weights="cc" * 32) != TRIAL


def test_an_identity_names_no_address_and_is_given_it_back():
    assert "here" not in TRIAL.identity
    read = trial_from_json(TRIAL.identity)
    assert read == TRIAL and read.model == f"sha256:{TRIAL.weights}"
    there = replace(TASK, source="/there/tickets", validation="dev")
    places = Places((ModelPlace("org/model", "main", TRIAL.weights),), (there,))
    found = places.locate(read)
    assert found == TRIAL and found.id == TRIAL.id
    assert (found.model, found.revision, found.task.source, found.task.validation) == (
        "org/model",
        "main",
        "/there/tickets",
        "dev",
    )
    assert Places().locate(read) is not None and Places().locate(TRIAL).model == "/here/model"


def test_the_tasks_of_a_learned_subspace_are_found_too():
    span = Span((Source(TASK), Source()), 1e-4, Budget(steps=3))
    learned = replace(TRIAL, method=Method("did", span=span))
    read = trial_from_json(learned.identity)
    found = Places((), (TASK,)).locate(read)
    assert found == learned and found.method.span.sources[0].task.source == "/here/tickets"
    assert found.method.span.sources[1].task is None


def test_places_survive_json_and_name_what_changed():
    places = Places((ModelPlace("/here/model", None, "b" * 64),), (replace(TASK, where=(("kept", "yes"),)),))
    again = Places.from_json(places.to_json())
    assert again == places and again.tasks[0].where == (("kept", "yes"),)
    now = Places((ModelPlace("/here/model", None, "d" * 64),), (replace(TASK, content="e" * 64),))
    assert [(each.what, each.new[0]) for each in places.changes_to(now)] == [
        ("model /here/model", "d"),
        ("task tickets", "e"),
    ]
    assert places.changes_to(places) == [] and places.changes_to(Places()) == []


@pytest.mark.parametrize(
    "record",
    [
        *({"models": [{"name": "m", "revision": None, "content": "c", **odd}]} for odd in ODD_MODELS),
        *({"tasks": [{**asdict(TASK), **odd}]} for odd in ODD_TASKS),
        *({"models": [{"nome": 1}]}, {"tasks": [{"source": "x"}]}, {"tasks": 3}, {"models": "x"}, [], None, "x"),
    ],
    ids=lambda record: str(record)[-40:],
)
def test_what_is_no_record_of_places_is_refused(record):
    with pytest.raises(ValueError, match="places"):
        Places.from_json(record)
