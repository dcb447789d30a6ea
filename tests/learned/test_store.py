"""Analyses as parts: written under their own names, read back whole."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from distsub.errors import OutputError
from distsub.files import Files
from distsub.learned.schema import SPECTRA, TABLES
from distsub.learned.store import read_analysis, write_part
from distsub.results.sql import query


def spectrum(trajectory, values):
    rows = [{"trajectory": trajectory, "layer": "l0", "rank": i, "singular_value": v} for i, v in enumerate(values, 1)]
    return pa.Table.from_pylist(rows, schema=SPECTRA)


def test_parts_are_read_back_in_one_table(tmp_path):
    files = Files.at(tmp_path)
    assert write_part(files, "spectra", "b", spectrum("b", [3.0, 1.0])) == "spectra/b.parquet"
    write_part(files, "spectra", "task a/1", spectrum("a", [2.0]))
    assert sorted(path.name for path in (tmp_path / "spectra").iterdir()) == ["b.parquet", "task-a-1.parquet"]
    table = read_analysis(files, "spectra")
    assert table.schema == SPECTRA and table["singular_value"].to_pylist() == [3.0, 1.0, 2.0]
    assert table["trajectory"].to_pylist() == ["b", "b", "a"]


def test_the_same_part_replaces_itself(tmp_path):
    files = Files.at(tmp_path)
    for values in ([3.0, 1.0], [2.0]):
        write_part(files, "spectra", "b", spectrum("b", values))
    assert read_analysis(files, "spectra")["singular_value"].to_pylist() == [2.0]


def test_what_was_never_made_has_no_rows_and_can_be_queried(tmp_path):
    tables = {name: read_analysis(Files.at(tmp_path), name) for name in TABLES}
    assert set(tables) == set(TABLES) and all(table.num_rows == 0 for table in tables.values())
    write_part(Files.at(tmp_path), "spectra", "b", spectrum("b", [3.0, 1.0]))
    found = query(
        {name: read_analysis(Files.at(tmp_path), name) for name in TABLES},
        "select trajectory, max(singular_value) m from spectra group by 1",
    )
    assert found.to_pylist() == [{"trajectory": "b", "m": 3.0}]


def test_a_damaged_part_is_named(tmp_path):
    files = Files.at(tmp_path)
    write_part(files, "spectra", "b", spectrum("b", [1.0]))
    (tmp_path / "spectra" / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(OutputError, match=r"spectra/b\.parquet cannot be read"):
        read_analysis(files, "spectra")


def test_a_part_from_before_a_column_was_added_has_nulls_there(tmp_path):
    files = Files.at(tmp_path)
    write_part(files, "spectra", "b", spectrum("b", [1.0]))
    file = tmp_path / "spectra" / "b.parquet"
    parquet.write_table(parquet.read_table(file).drop_columns(["task", "rank"]), file)
    table = read_analysis(files, "spectra")
    assert table.schema == SPECTRA and table["task"].to_pylist() == [None] == table["rank"].to_pylist()
    parquet.write_table(parquet.read_table(file).drop_columns(["trajectory"]), file)
    with pytest.raises(OutputError, match=r"spectra/b\.parquet cannot be read"):
        read_analysis(files, "spectra")
