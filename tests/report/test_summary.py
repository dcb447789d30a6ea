from dataclasses import replace
from itertools import product

import pytest

from distsub.records import (
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
    Task,
    Trial,
)
from distsub.report.curves import draw_curves
from distsub.report.schema import D90, SEARCHES
from distsub.report.summary import D90_COLUMNS, Summary
from distsub.results import Store
from distsub.search import Search

TASK = Task(name="t", source="x", text=("a",))
BUDGET = Budget(steps=10)


def search(seed: int) -> Search:
    baseline = tuple(Trial(Setup(Model("m"), TASK, Full(), 0.0001, BUDGET, Seeds(0, s, s))) for s in (0, 1))
    method = Subspace(Random("fastfood", block_length=1024))
    return Search(
        Setup(Model("m"), TASK, method, 5e-05, BUDGET, Seeds(seed, seed, seed)), (50, 100, 200, 400), (0.3,), baseline
    )


def rows(searches, crossing):
    for trial in searches[0].baseline:
        yield Observation(trial, "finished", score=0.8, chance=0.5, num_params=1000, wall_s=2.0)
    for each in searches:
        for d in each.dims:
            score = 0.79 if d >= crossing[each.seeds.data] else 0.6
            [trial] = each.trials_at(d)
            yield Observation(trial, "finished", score=score, chance=0.5, num_params=1000, num_trained=d, wall_s=1.0)


@pytest.fixture
def summary(tmp_path):
    """Write rows to a store and sum them up."""

    def of(searches, policy, observations):
        store = Store.create(tmp_path / "out", "", "f00d")
        for each in observations:
            store.write(each)
        return Summary(searches, policy, store)

    return of


def test_tables_follow_from_the_rows(summary):
    searches = (search(0), search(1))
    found = summary(searches, "grid", rows(searches, {0: 200, 1: 400}))
    table = found.searches
    assert table.schema == SEARCHES
    first, second = table.to_pylist()
    assert (first["first_passing_d"], first["bracket_low"], second["first_passing_d"]) == (200, 100, 400)
    assert first["threshold"] == pytest.approx(0.72) and first["threshold_chance_corrected"] == pytest.approx(0.77)
    assert first["wall_s"] == 4 * 1.0 + 2 * 2.0 and first["trials"] == 6 and first["num_params"] == 1000
    [row] = found.d90.to_pylist()
    assert found.d90.schema == D90 and set(D90_COLUMNS) <= set(D90.names)
    assert row["trials"] == 4 + 4 + 2 and row["wall_s"] == 8 * 1.0 + 2 * 2.0  # the baseline once, not once a seed
    assert row["first_passing_d"] == [200, 400] and row["outcomes"] == [("found", 2)]
    assert 100 < row["d90"] < 600 and row["d90_low"] < row["d90"]
    assert row["failed_full"] == row["failed_subspace"] == 0
    assert [point["d"] for point in row["fit"]][::40] == pytest.approx([50, 400])
    assert all(point["low"] <= point["middle"] <= point["high"] for point in row["fit"])


def test_a_censored_seed_is_no_number(summary):
    searches = (search(0), search(1))
    found = summary(searches, "grid", rows(searches, {0: 200, 1: 9999}))
    assert [row["outcome"] for row in found.searches.to_pylist()] == ["found", "above_range"]
    [row] = found.d90.to_pylist()
    assert row["first_passing_d"] == [200, None]


def test_no_rows_is_a_table_too(summary):
    found = summary((search(0),), "bisection", [])
    [row] = found.d90.to_pylist()
    assert found.searches.to_pylist()[0]["outcome"] == "open" and row["d90"] is None and row["fit"] == []


LAYER = Subspace(scope="layer", head="trained", embeddings="frozen")
SPAN = Span((Source(),), 1e-4, BUDGET)
PAIRS = {
    "block_length": [Subspace(Random("fastfood", block_length=length)) for length in (1024, 2048)],
    "family": [Subspace(Random(family)) for family in ("fastfood", "partition")],
    "normalization": [Subspace(Random("fastfood", normalization)) for normalization in ("global", "per_tensor")],
    "scales": [Subspace(scales=scales) for scales in ("layer", "tensor")],
    "head": [Subspace(head=head) for head in ("in_subspace", "trained", "frozen")],
    "modules": [replace(LAYER, modules=each) for each in ("all", "attention")],
    "embeddings": [replace(LAYER, embeddings=policy) for policy in ("trained", "frozen")],
    "ensemble": [replace(LAYER, ensemble=number) for number in (2, 3)],
    "start": [replace(LAYER, start=start) for start in ("zero", "random")],
    "step": [replace(LAYER, step=step) for step in (None, 0.01, 0.02)],
    "shift": [replace(LAYER, projection=Learned(replace(SPAN, sources=(Source(shift=n),)))) for n in (1, 2)],
    "mode": [replace(LAYER, projection=Learned(replace(SPAN, mode=mode))) for mode in ("raw", "centered")],
    "recorded": [replace(LAYER, projection=Learned(replace(SPAN, every=every))) for every in (5, 10)],
    "revision": [Model("org/m", revision=revision) for revision in ("a", "b")],
    "head_from": [Model("org/m", head_from=head) for head in ("seed", "checkpoint")],
    "owner": [Model(name) for name in ("org/m", "other/m")],
}


FAST = ("block_length", "scales", "step", "mode", "revision")


@pytest.mark.parametrize(
    "entries", [pytest.param(PAIRS[key], id=key, marks=[] if key in FAST else pytest.mark.slow) for key in PAIRS]
)
def test_entries_that_differ_in_any_field_have_a_d90_a_label_and_a_panel_each(summary, entries):
    searches = []
    for entry, seed in product(entries, (0, 1)):
        model, method = (entry, Subspace()) if isinstance(entry, Model) else (Model("org/m"), entry)
        baseline = tuple(Trial(Setup(model, TASK, Full(), 1e-4, BUDGET, Seeds(0, s, s))) for s in (0, 1))
        setup = Setup(model, TASK, method, 5e-5, BUDGET, Seeds(seed, seed, seed))
        searches.append(Search(setup, (50, 100, 200, 400), (0.3,), baseline))
    alike = [[each for each in searches if each.model == one.model] for one in searches[::2]]
    seen = list({row.trial: row for group in alike for row in rows(group, {0: 200, 1: 400})}.values())
    found = summary(searches, "grid", seen)
    table = found.d90.to_pylist()
    assert len(table) == len({row["condition_id"] for row in table}) == len(entries)
    assert len({(row["model"], row["label"]) for row in table}) == len(entries)
    assert [row["searches"] for row in table] == [2] * len(entries)
    figure = draw_curves(seen, found.searches, d90=found.d90)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible() and axes.has_data()]
    assert len(set(titles)) == len(entries)
