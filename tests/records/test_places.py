"""Identity by content: what is told apart, what is not, and the way back to the files."""

from dataclasses import asdict, fields, replace

import pytest

from distsub.records import Budget, Learned, Model, Seeds, Setup, Source, Span, Subspace, Task, Trial
from distsub.records.identity import canonical
from distsub.records.places import ModelPlace, Places
from distsub.results.schema import setup_from_json

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
TRIAL = Trial(
    Setup(Model("/here/model", content="bb" * 32), TASK, Subspace(), 0.0001, Budget(steps=3), Seeds()), 16, 1.0
)


def _other(task, field):
    return replace(task, **{field: OTHER.get(field, "elsewhere")})


@pytest.mark.parametrize("field", [field.name for field in fields(Task)])
def test_where_rows_lie_and_how_they_are_read_is_no_part_of_what_they_are(field):
    moved = _other(TASK, field)
    same = field in Task.ADDRESS
    assert (moved == TASK) is (hash(moved) == hash(TASK)) is same
    assert (TRIAL.vary(task=moved).id == TRIAL.id) is same
    assert (canonical(moved) == canonical(TASK)) is same


@pytest.mark.parametrize("field", [field.name for field in fields(Task)])
def test_before_rows_are_read_their_address_tells_them_apart(field):
    unread = replace(TASK, content=None)
    moved = _other(unread, field)
    assert moved != unread and TRIAL.vary(task=moved).id != TRIAL.vary(task=unread).id


def test_a_model_is_told_by_its_content_once_that_is_known():
    moved = TRIAL.vary(model=replace(TRIAL.model, name="/there/model", revision="main"))
    assert moved == TRIAL and moved.id == TRIAL.id and moved.model == TRIAL.model
    unread = TRIAL.vary(model=replace(TRIAL.model, content=None))
    assert moved.vary(model=replace(moved.model, content=None)) != unread
    assert TRIAL.vary(model=replace(TRIAL.model, content="cc" * 32)) != TRIAL


def test_an_identity_names_no_address_and_is_given_it_back():
    setup = TRIAL.setup
    assert "here" not in setup.identity
    read = setup_from_json(setup.identity)
    assert read == setup and read.model.name == f"sha256:{TRIAL.model.content}"
    there = replace(TASK, source="/there/tickets", validation="dev")
    places = Places((ModelPlace("org/model", "main", TRIAL.model.content),), (there,))
    found = places.locate(read)
    assert found == setup and found.id == setup.id
    assert (found.model.name, found.model.revision, found.task.source, found.task.validation) == (
        "org/model",
        "main",
        "/there/tickets",
        "dev",
    )
    assert Places().locate(read) is not None and Places().locate(setup).model.name == "/here/model"


def test_the_tasks_of_a_learned_subspace_are_found_too():
    span = Span((Source(TASK), Source()), 1e-4, Budget(steps=3))
    learned = TRIAL.vary(method=Subspace(Learned(span))).setup
    read = setup_from_json(learned.identity)
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
