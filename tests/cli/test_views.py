"""What `distsub query` shows without SQL is what it can be asked."""

import subprocess

import pyarrow as pa
import pytest

from distsub.cli.views import MADE_BY, QUESTIONS, columns_of, overview, questions, views_of
from distsub.learned.schema import TABLES
from distsub.report.summary import Summary
from distsub.results import OBSERVATIONS, Store, query


@pytest.fixture
def views(tmp_path):
    store = Store.create(tmp_path / "out", "", "f00d")
    return views_of(store, lambda: Summary((), "grid", store))


def test_every_view_is_listed_with_every_column(views):
    table = columns_of(views)
    assert table["view"].unique().to_pylist() == list(views)
    mine = [row["column"] for row in table.to_pylist() if row["view"] == "observations"]
    assert mine == OBSERVATIONS.names
    text = overview(views)
    assert all(name in text for name in views) and "trial_id VARCHAR" in text


@pytest.mark.parametrize("sql", [sql for _, sql in QUESTIONS])
def test_every_question_has_an_answer(views, sql):
    assert isinstance(query(views, sql), pa.Table)
    assert not set('$`"\\!') & set(sql), "read by a shell inside double quotes"


@pytest.mark.parametrize("address", ["out", "a b", "it's", "$HOME/`x`", "s3://bucket/x y"])
def test_the_commands_are_ready_for_a_shell(address):
    for text, (_, sql) in zip(questions(address), QUESTIONS, strict=True):
        command = text.partition("\n")[2].strip()
        echoed = command.replace("distsub query", "printf '%s|%s'", 1)
        done = subprocess.run(["sh", "-c", echoed], capture_output=True, text=True, check=True)
        assert done.stdout == f"{address}|{sql}"


def test_an_empty_view_says_why_and_what_makes_it(tmp_path):
    store, notes = Store.create(tmp_path / "out", "", "f00d"), []
    views = views_of(store, lambda: Summary((), "grid", store), notes.append)
    assert MADE_BY.keys() == TABLES.keys() and not notes
    query(views, "select count(*) from comparison, modes")
    assert sorted(note.partition(":")[0] for note in notes) == ["comparison is empty", "modes is empty"]
    assert f"distsub transfer {store.uri} makes it" in "".join(notes) and "no rows yet" in "".join(notes)
