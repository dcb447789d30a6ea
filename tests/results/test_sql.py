"""SQL over the views: what it reads, what it refuses, and what it says."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset as pads

from distsub.errors import QueryError
from distsub.report.schema import D90, SEARCHES
from distsub.results.schema import OBSERVATIONS, to_table
from distsub.results.sql import View, query
from distsub.results.store import Store

not_a_view = pa.table({"a": [1]})


@pytest.fixture
def views(observation):
    rows = pa.concat_tables([to_table(observation(number, score=number / 10)) for number in range(4)])
    return {"observations": rows, "searches": SEARCHES.empty_table(), "d90": D90.empty_table()}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select max(score) m from observations", [{"m": 0.3}]),
        ("SELECT count(*) n FROM observations WHERE scales = 'layer' AND head = 'in_subspace';", [{"n": 4}]),
        ("with x as (select d from observations) select min(d) d from x", [{"d": 100}]),
        ("from observations select metrics['f1'] f1 limit 1", [{"f1": 0.7}]),
        ("select provenance['torch'] v, curve[-1].step s from observations limit 1", [{"v": "2.13.0", "s": 10}]),
        ("select avg(c::int) a from (select unnest(correct) c from observations)", [{"a": 0.5}]),
        ("select d90 from d90", []),
        ("select 'a;b' x -- two; statements?", [{"x": "a;b"}]),
    ],
)
def test_the_views_are_read(views, sql, expected):
    assert query(views, sql).to_pylist() == expected


@pytest.mark.parametrize(
    "sql",
    [
        "describe observations",
        "show tables",
        "summarize searches",
        "explain select 1",
        "explain analyze select 1",
        "values (1)",
        "pivot observations on status using count(*) group by task",
    ],
)
def test_other_reading_statements_work(views, sql):
    assert query(views, sql).num_rows > 0


def test_a_dataset_is_a_view_too(observation):
    dataset = pads.InMemoryDataset(to_table(observation()))
    assert query({"observations": dataset}, "select d from observations").to_pylist() == [{"d": 100}]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from '{csv}'",
        "select * from read_csv('{csv}')",
        "select * from read_parquet('{csv}')",
        "select * from read_json('{csv}')",
        "select * from read_text('{csv}')",
        "select * from read_blob('{csv}')",
        "select * from glob('{folder}/*')",
        "select * from read_csv('http://127.0.0.1:1/x.csv')",
        "select * from 's3://bucket/x.parquet'",
        "select * from query('select * from read_csv(''{csv}'')')",
        "pivot (from read_csv('{csv}')) on a",
        "copy observations to '{new}'",
        "explain analyze copy observations to '{new}'",
        "export database '{new}'",
        "import database '{folder}'",
        "attach '{new}' as other",
        "install httpfs",
        "load httpfs",
        "install httpfs from community",
        "pragma database_list",
        "pragma enable_external_access",
        "call pragma_version()",
        "set enable_external_access = true",
        "reset enable_external_access",
        "set lock_configuration = false",
        "create table t as select 1",
        "create view v as select 1",
        "drop view observations",
        "insert into observations values (1)",
        "delete from observations",
        "update observations set d = 1",
        "create secret (type s3)",
        "use memory",
        "begin",
        "prepare p as select 1",
        "checkpoint",
        "vacuum",
        "select 1; select 2",
        "select 1; copy observations to '{new}'",
        "pivot observations on status; drop view observations",
        "select * from not_a_view",
        "",
        "  ",
        "-- nothing",
        ";",
        "selct 1",
        "select '",
        "select foo(d) from observations",
        "select 'a'::int",
    ],
)
def test_anything_else_is_refused_in_one_line(views, tmp_path, sql):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    before = sorted(os.listdir(tmp_path))
    text = sql.format(csv=tmp_path / "x.csv", folder=tmp_path, new=tmp_path / "new")
    with pytest.raises(QueryError) as caught:
        query(views, text)
    assert "\n" not in str(caught.value)
    assert "Views: observations, searches, d90" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_python_variables_are_out_of_reach(views):
    local_table = pa.table({"a": [1]})
    assert local_table.num_rows
    for name in ("local_table", "not_a_view", "views"):
        with pytest.raises(QueryError, match="does not exist"):
            query(views, f"select * from {name}")


@pytest.mark.parametrize(
    ("sql", "nearest"),
    [
        ("select scor from observations", "Nearest: score"),
        ("select o.lerning_rate from observations o", "Nearest: learning_rate"),
        ("select * from observation", "Nearest: observations"),
        ("select * from search", "Nearest: searches"),
        ("select SCOR from OBSERVATIONS", "Nearest: score"),
        ("select brackets from searches", "Nearest: bracket_low"),
        ("from trials", "Nearest: observations"),
        ("select * from runs", "Nearest: observations"),
        ("select label from observations", "Nearest: method"),
        ("select bracket_low from observations", '"bracket_low" is a column of searches. '),
        ("select dimension from observations", "Columns of observations: schema_version, trial_id, "),
        ("label", '"label" is a column of searches, d90. Nearest: method'),
        ("trials;", '"trials" alone is no statement. "trials" is a column of searches, d90. Nearest: observations'),
        ("qqqqqq", '"qqqqqq" alone is no statement. Views: '),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_ones(views, sql, nearest):
    with pytest.raises(QueryError) as caught:
        query(views, sql)
    assert nearest in str(caught.value)


@pytest.mark.parametrize("name", ["observations", " d90 ;", "SEARCHES"])
def test_the_name_of_a_view_alone_gives_all_of_it(views, name):
    table = views[name.strip(" ;").lower()]
    found = query(views, name)
    assert (found.column_names, found.num_rows) == (table.column_names, table.num_rows)


def test_the_tables_are_as_before_after_any_query(views):
    before = dict(views)
    with pytest.raises(QueryError):
        query(views, "drop view observations")
    assert views == before


LAZY = [
    (
        "select d, max(score) s from observations where status = 'finished' group by d order by d",
        ["d", "score", "status"],
    ),
    ("select count(*) from observations", ["schema_version"]),
    ("select count(*) from observations where eta > 0.1", ["eta"]),
    ("with x as (select * from observations) select d from x order by score limit 2", ["d", "score"]),
    ("select o from observations o order by d", None),
    ("select * exclude (correct) from observations order by d", None),
    ("select columns('s[ct].*') from observations order by all", None),
    ("from observations select len(correct) n order by d", ["correct", "d"]),
    ("select o.d from observations o natural join searches", None),
    ("pivot observations on status using max(score) group by d order by d", None),
    ("describe observations", None),
    ("select d from observations where task in (select task from searches where first_passing_d > 3)", ["d", "task"]),
    ("select curve[1].step from observations order by d", ["curve", "d"]),
    ("select d from observations union all by name select first_passing_d d from searches order by d", ["d"]),
    (
        "select (select max(first_passing_d) from searches where task = o.task), score "
        "from observations o order by all",
        ["score", "task"],
    ),
    ("select 'observations' word", []),
    ("with d90 as (select d d90 from observations) select max(d90) from d90", ["d"]),
]


@pytest.mark.parametrize(("sql", "columns"), LAZY)
def test_a_view_loads_what_a_query_reads_and_gives_the_same(views, sql, columns):
    asked = []

    def load(names):
        asked.append(list(names))
        return views["observations"].select(names)

    def forbidden(names):
        raise AssertionError("d90 is not read")

    lazy = {**views, "observations": View(OBSERVATIONS, load), "d90": View(D90, forbidden)}
    assert query(lazy, sql).to_pylist() == query(views, sql).to_pylist()
    if columns is not None:
        assert [sorted(names) for names in asked] == ([sorted(columns)] if columns else [])


def test_a_view_that_is_spelled_at_run_time_is_told_not_empty(views):
    lazy = {**views, "observations": View(OBSERVATIONS, views["observations"].select)}
    assert query(lazy, "select count(*) n from query('from obser' || 'vations')").to_pylist() == [{"n": 4}]


def test_an_error_in_the_values_is_told_once(views):
    lazy = {**views, "observations": View(OBSERVATIONS, views["observations"].select)}
    with pytest.raises(QueryError, match="Conversion Error"):
        query(lazy, "select cast(task as int) from observations")


@pytest.mark.parametrize("names", [("access", "billing", "vpn"), ()])
def test_documented_scores_of_classes_are_those_of_scikit_learn(observation, names):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 60)
    guess = np.where(draw.random(60) < 0.6, truth, draw.integers(0, 2, 60))
    best = observation(1, score=0.9, predicted=tuple(map(float, guess)), target=tuple(map(float, truth)), labels=names)
    rows = {"observations": pa.concat_tables([to_table(best), to_table(observation(2, score=0.1))])}
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    block = next(block for block in re.findall(r"```sql\n(.*?)```", page, re.S) if "confusion" in block)
    scores, confusion = (query(rows, sql).to_pylist() for sql in block.split(";\n")[-3:-1])
    shown = names or ("0", "1", "2")
    expected = precision_recall_fscore_support(truth, guess, zero_division=0.0)
    for i, row in enumerate(scores):
        found = [row[name] for name in ("precision", "recall", "f1", "examples")]
        assert row["class"] == shown[i] and found == pytest.approx([column[i] for column in expected])
    table = confusion_matrix(truth, guess)
    cells = {(row["truth"], row["predicted"]): row["examples"] for row in confusion}
    assert cells == {(shown[i], shown[j]): n for (i, j), n in np.ndenumerate(table) if n}


HEAVY = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3"


@pytest.mark.parametrize(
    "sql",
    [
        "select list(range) from range(300000000)",
        "select count(*) from (select distinct hash(range) from range(300000000))",
        "select * from range(300000000) order by hash(range) desc",
        "select a.range, list(b.range) from range(30000) a, range(30000) b group by all",
    ],
)
def test_a_query_that_needs_too_much_memory_ends_in_one_line(views, sql, monkeypatch):
    monkeypatch.setattr("distsub.results.sql.memory_limit", lambda: 2**26)
    with pytest.raises(QueryError, match=r"needs more than 0\.1 GiB.*aggregate or select less") as caught:
        query(views, sql)
    assert "\n" not in str(caught.value)


def test_a_result_that_is_too_large_ends_in_one_line_before_it_is_there(views, monkeypatch):
    monkeypatch.setattr("distsub.results.sql.LARGEST_RESULT", 2**24)
    before = pa.total_allocated_bytes()
    with pytest.raises(QueryError, match=r"result is larger than 0\.0 GiB.*LIMIT"):
        query(views, "select * from range(1000000000)")
    assert pa.total_allocated_bytes() - before < 2**26
    assert query(views, "select * from range(1000000)").num_rows == 1_000_000


def test_an_error_in_the_middle_of_a_result_is_told_in_one_line(views):
    sql = "select cast(case when range > 500000 then 'x' else '1' end as int) from range(1000000)"
    with pytest.raises(QueryError, match="Conversion Error") as caught:
        query(views, sql)
    assert "\n" not in str(caught.value)


def test_an_interrupt_ends_a_running_query(views):
    """Ctrl-C is heard while DuckDB computes, and nothing computes on after it."""
    clock = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    clock.start()
    with pytest.raises(KeyboardInterrupt):
        query(views, HEAVY)
    clock.join()
    used = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - used < 0.4
    assert query(views, "select count(*) n from observations").to_pylist() == [{"n": 4}]


def test_an_interrupted_command_says_so_and_exits_with_130(tmp_path):
    store = Store.create(tmp_path / "out", "", "f00d")
    command = [sys.executable, "-m", "distsub.cli", "query", store.uri, HEAVY]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while run.poll() is None and time.monotonic() - began < 250:
        time.sleep(2)  # to be started and to compute; one that comes too early ends it too
        run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130 and "Traceback" not in said, said
    assert len(said.splitlines()) == 1
