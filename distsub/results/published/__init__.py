"""Published numbers to compare with: facts out of tables of two papers, cited in every row.

The d90 of Aghajanyan, Zettlemoyer, Gupta 2020, arXiv:2012.13255, Table 1, is the view `published_d90`.
The other views are scores of Zhang, Liu, Shao 2023, arXiv:2305.17446: Table 1 (fine-tuning in tiny subspaces),
Table 2 (unified and zero-shot subspaces), Table 3 (outlier dimensions), Tables 5 and 6 (dimensions 8 to 32).
"""

from importlib import resources

import pyarrow as pa

_SOURCES = {
    "published_d90": ("a20_table1.csv", "arXiv:2012.13255 Table 1"),
    "published_subspaces": ("z23_table1.csv", "arXiv:2305.17446 Table 1"),
    "published_unified": ("z23_table2_unified.csv", "arXiv:2305.17446 Table 2"),
    "published_outliers": ("z23_table3_outliers.csv", "arXiv:2305.17446 Table 3"),
    "published_dims": ("z23_table5_6_dims.csv", "arXiv:2305.17446 Tables 5 and 6"),
}


def published_tables() -> dict[str, pa.Table]:
    """Read every published table by the name of its view; the column `source` cites each row."""
    return {view: published_table(view) for view in _SOURCES}


def published_table(view: str) -> pa.Table:
    """Read one published table, such as "published_d90"."""
    from pyarrow import csv

    name, source = _SOURCES[view]
    data = resources.files(__name__).joinpath(name).read_bytes()
    table = csv.read_csv(pa.BufferReader(data), convert_options=csv.ConvertOptions(strings_can_be_null=True))
    return table.append_column("source", pa.array([source] * table.num_rows, pa.string()))
