"""Published numbers beside measured ones: what agrees, and above all what is not compared."""

import dataclasses
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.data.tasks import TASKS
from distsub.learned.comparison import COMPARISON, STEP, comparison, why_empty
from distsub.learned.schema import ABLATIONS
from distsub.records import (
    Ablation,
    Budget,
    Full,
    Learned,
    Model,
    Observation,
    Random,
    Seeds,
    Setup,
    Source,
    Span,
    Subspace,
    Trial,
)
from distsub.report.schema import D90

BERT, BUDGET = Model("google-bert/bert-base-uncased"), Budget(steps=10)
CASED = Model("google-bert/bert-base-cased")
SAID = Subspace(Random("fastfood"), scales="layer")
PAPER = {"head": "trained", "embeddings": "trained", "ensemble": 16, "start": "random", "step": 0.01}
SPAN = Span((Source(),), 1e-4, BUDGET)
INTRINSIC = Subspace(Learned(SPAN), scope="layer", **PAPER)


def row(method, d, score=0.8, seed=0, model=BERT, task=TASKS["mrpc"], budget=BUDGET):
    eta = None if d is None else 1.0
    return Observation(
        Trial(Setup(model, task, method, 1e-4, budget, Seeds(seed, seed, seed)), d, eta), "finished", score, 0.5
    )


def d90_of(observation, low, middle, high, rule="0.9 x full"):
    names = {"condition_id": observation.trial.condition.id, "task": observation.trial.task.name, "label": "said"}
    names |= {"model": observation.trial.model.name, "threshold_rule": rule, "d90_text": "d90 unknown"}
    return pa.Table.from_pylist([names | {"d90_low": low, "d90": middle, "d90_high": high}], schema=D90)


SIZES = st.floats(100, 1e6)


@given(st.lists(SIZES, min_size=3, max_size=3).map(sorted), st.booleans(), st.booleans())
def test_reproduced_means_inside_the_interval_or_within_a_grid_step(ends, below, above):
    published = 1608.0  # BERT-base, MRPC, SAID
    low, middle, high = ends
    seen = row(SAID, 64)
    table = comparison(d90_of(seen, None if below else low, middle, None if above else high), [seen], TASKS)
    assert table.schema == COMPARISON
    [found] = table.to_pylist()
    near = abs(math.log(middle / published)) <= math.log(STEP)
    inside = not below and not above and low <= published <= high
    assert (found["published"], found["published_model"]) == (published, "bert-base")
    if near or inside:
        assert found["verdict"] == "reproduced" and found["reason"] is None
    elif (below and published < middle) or (above and published > middle):
        assert found["verdict"] == "open"
    else:
        assert found["verdict"] == "differs" and "not known" in found["reason"]


MRPC = TASKS["mrpc"]


@pytest.mark.parametrize(
    ("changes", "rule", "reason"),
    [
        ({"model": Model("/models/minilm")}, None, "another model"),
        ({"budget": Budget(steps=10, train_examples=512)}, None, "a subset (512 of training)"),
        ({"budget": Budget(steps=10, eval_examples=100)}, None, "a subset (100 of evaluation)"),
        (
            {"task": dataclasses.replace(MRPC, source="/data/mrpc")},
            None,
            "rows from another place, which may not be the paper's",
        ),
        ({"task": dataclasses.replace(MRPC, metric="f1")}, None, "columns or a metric of its own"),
        ({"method": dataclasses.replace(SAID, head="trained")}, None, "head = trained"),
        ({"method": dataclasses.replace(SAID, embeddings="frozen")}, None, "embeddings = frozen"),
        ({"method": dataclasses.replace(SAID, modules="attention")}, None, "modules = attention"),
        ({"method": dataclasses.replace(SAID, projection=Random("partition"))}, None, "projection = partition"),
        ({}, "accuracy >= 0.8", "another threshold (accuracy >= 0.8)"),
    ],
)
def test_what_is_not_comparable_is_not_compared(changes, rule, reason):
    seen = row(**{"method": SAID, "d": 64} | changes)
    found = comparison(d90_of(seen, 1600.0, 1608.0, 1620.0, rule or "0.9 x full"), [seen], TASKS).to_pylist()
    assert len(found) == (4 if "model" in changes else 1)  # of a model that is none of theirs beside all of them
    assert {each["verdict"] for each in found} == {"not comparable"} and {each["reason"] for each in found} == {reason}


@pytest.mark.parametrize("method", [dataclasses.replace(SAID, scope="layer", scales=None), INTRINSIC, Full()])
def test_other_methods_and_tasks_have_no_published_d90(method):
    seen = row(method, 64)
    assert comparison(d90_of(seen, 1.0, 2.0, 3.0), [], TASKS).num_rows == 0
    assert "d90" not in comparison(d90_of(seen, 1.0, 2.0, 3.0), [seen], TASKS)["quantity"].to_pylist()
    other = row(SAID, 64, task=TASKS["sst2"])
    assert comparison(d90_of(other, 1.0, 2.0, 3.0), [other], TASKS).num_rows == 0


def test_scores_of_the_second_paper_by_way_dimension_and_model():
    rows = [row(INTRINSIC, 32, 0.843 + 0.002 * seed, seed, CASED) for seed in range(3)]  # published: 84.31
    rows += [row(Full(), None, 0.60 + 0.001 * seed, seed, CASED) for seed in range(3)]  # 84.46
    rows += [row(dataclasses.replace(INTRINSIC, ensemble=1), 32, 0.843, 0, CASED)]
    rows += [row(INTRINSIC, 8, 0.75, 0, CASED), row(INTRINSIC, 16, 0.75, 0, Model("/minilm"))]
    found = comparison(D90.empty_table(), rows, TASKS).to_pylist()
    told = {(each["method"], each["d"], each["published"]): each["verdict"] for each in found}
    assert told.pop(("intrinsic zhang2023", 32, 84.31)) == "reproduced"
    assert told.pop(("full", None, 84.46)) == "differs"
    assert told.pop(("intrinsic zhang2023", 8, 75.05)) == "open"  # one seed
    assert len(told) == 3 and set(told.values()) == {"not comparable"}
    assert [each["measured"] for each in found if each["method"] == "full"] == [pytest.approx(60.1)]


def test_disabled_weights_of_the_second_paper():
    seen = row(Full(Ablation("zero", "m")), None, 0.68, 0, CASED)
    about = {"task": "mrpc", "model": CASED.name, "edit": "zero", "score": 0.684, "score_low": 0.68, "score_high": 0.69}
    rows = [
        about | {"method": method, "mask": mask, "versus": versus}
        for method in ("intrinsic zhang2023", "full")
        for mask in ("outliers", "random", "tensor")
        for versus in ("none", "outliers")
    ]
    found = comparison(D90.empty_table(), [seen], TASKS, pa.Table.from_pylist(rows, schema=ABLATIONS)).to_pylist()
    told = {each["method"].removeprefix("zero at "): (each["published"], each["verdict"]) for each in found}
    assert told["outliers of intrinsic zhang2023"] == (68.38, "reproduced")
    assert told["random of intrinsic zhang2023"] == (84.46, "differs")
    assert told["outliers of full"] == (68.38, "not comparable") and len(told) == 6


def test_an_empty_comparison_says_why():
    peft = row(Subspace(Random("dense"), scope="layer"), 64)
    mine = row(SAID, 64, task=dataclasses.replace(MRPC, name="tickets", content="0" * 64))
    for rows, why in (
        ([], "no rows yet"),
        ([mine], "no number for tickets; they have cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb"),
        ([peft], "no number for mrpc by "),
    ):
        assert comparison(D90.empty_table(), rows, TASKS).num_rows == 0 and why in why_empty(rows)
