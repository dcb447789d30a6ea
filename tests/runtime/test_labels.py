from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from distsub.config import parse_sweep
from distsub.runtime.labels import PARTS, Labels, shorten

SWEEP = """
name = "named"
models = ["org/a", "other/a", "package:b"]
tasks = ["sst2", "mrpc"]
methods = [
    "said",
    "did",
    {{ name = "did", projection = "fastfood" }},
    {{ name = "did", projection = "fastfood", block_length = 4096 }},
    {{ name = "said", groups = "tensor", head = "trained" }},
]
seeds = 2
dims = [100, 200]
search = {{ etas = [0.3], learning_rate = 1e-5 }}
baseline = {{ learning_rates = [1e-5] }}
budget = {{ steps = 10 }}
"""


def searches_of(**changes):
    return parse_sweep(SWEEP.format()).searches()


def test_every_search_has_a_name_of_its_own():
    searches = searches_of()
    labels = Labels(searches)
    names = [labels.name(index) for index in range(len(searches))]
    assert len(searches) == 60 and len(set(names)) == 60
    assert labels.varying == PARTS and labels.common == ""
    assert {labels.parts(index)["model"] for index in range(60)} == {"org/a", "other/a", "b"}
    methods = {labels.parts(index)["method"] for index in range(60)}
    assert len(methods) == 5 and {"did partition", "said tensor"} <= {" ".join(name.split()[:2]) for name in methods}
    trials = {labels.trial(search.trials_at(100)[0]) for search in searches}
    assert len(trials) == 60
    assert len({labels.name(index, seed=False) for index in range(60)}) == 30


def test_what_all_have_in_common_is_said_once():
    searches = [search for search in searches_of() if search.model.name == "org/a" and search.task.name == "mrpc"]
    labels = Labels([search for search in searches if search.seeds.data == 1])
    assert labels.varying == ("method",) and labels.common == "task mrpc, model a, seed 1"
    assert "mrpc" not in labels.trial(searches[0].trials_at(100)[0])


def test_searches_that_differ_in_what_has_no_name_are_numbered():
    one = searches_of()[0]
    tasks = [replace(one.task, source="elsewhere"), replace(one.task, source="nowhere")]
    others = [one.vary(task=task, baseline=tuple(trial.vary(task=task) for trial in one.baseline)) for task in tasks]
    labels = Labels([one, *others])
    assert [labels.parts(index)["task"] for index in range(3)] == ["sst2", "sst2 #2", "sst2 #3"]


def test_without_searches_a_trial_is_named_by_all_that_it_has():
    assert Labels([]).trial(searches_of()[0].trials_at(100)[0]) == "sst2 said d=100 eta=0.3 s0"


@given(st.lists(st.text(st.characters(exclude_categories=["C", "M"]), max_size=40), max_size=12), st.integers(6, 30))
def test_names_are_cut_to_the_width_and_stay_apart(names, width):
    cut = shorten(names, width)
    assert len(set(cut.values())) == len(set(names)) == len(cut)
    assert all(cell_len(made) <= width for made in cut.values())
    assert all(cut[name] == name for name in names if cell_len(name) <= width)
