import pytest

from distsub.analysis.summary import D90_COLUMNS, Summary
from distsub.results import D90, SEARCHES, Store
from distsub.search import Search
from distsub.trial import Budget, Method, Observation, Seeds, Task, Trial

TASK = Task(name="t", source="x", text=("a",))
BUDGET = Budget(steps=10)


def search(seed: int) -> Search:
    baseline = tuple(Trial("m", TASK, Method("full"), None, 1e-4, None, Seeds(0, s, s), BUDGET) for s in (0, 1))
    method = Method("did", "fastfood", "global", None, block_length=1024)
    return Search(TASK, "m", method, Seeds(seed, seed, seed), BUDGET, (50, 100, 200, 400), (0.3,), 5e-5, baseline)


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
