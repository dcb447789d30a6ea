"""Published numbers: as printed, cited, and there for SQL."""

from distsub.results.published import published_tables
from distsub.results.sql import query


def test_d90_of_the_paper_with_its_citation():
    found = query(
        published_tables(),
        "select d90, source from published_d90 where model = 'roberta-large' and task = 'mrpc' order by method",
    ).to_pylist()
    source = "arXiv:2012.13255 Table 1"
    assert found == [{"d90": 322, "source": source}, {"d90": 207, "source": source}]


def test_every_table_has_rows_and_a_source():
    tables = published_tables()
    assert {name: table.num_rows for name, table in tables.items()} == {
        "published_d90": 16,
        "published_subspaces": 8,
        "published_unified": 6,
        "published_outliers": 5,
        "published_dims": 6,
    }
    for name, table in tables.items():
        assert set(table["source"].to_pylist()) & {"arXiv:2012.13255 Table 1"} or "2305.17446" in str(table["source"])
        assert name.startswith("published_")
    assert tables["published_outliers"]["disabled"].to_pylist()[0] == "none"
    assert tables["published_subspaces"]["dim"].to_pylist()[0] is None
