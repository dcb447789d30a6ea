"""One table of rows, written in every way that people write rows: the same rows and hash, or one line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zipfile
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsub.data import dataset, reading
from distsub.data.tasks import TASKS, resolve
from distsub.errors import DataError, DistsubError, UnavailableError
from distsub.records import Budget

NASTY = [
    *("007", "1e5", "1.0", "-0", "NA", "null", "None", "nan", "true", "False", "2024-01-31", "2024-01-31T00:00:00Z"),
    *('"', '""', '"quoted"', '"begins', 'ends"', 'in "the" middle', "it's", "a, b", "a; b", "a | b", "a\tb", "\ta"),
    *("two\nlines", "two\r\nlines", "a\rb", "\n", "blank\n\nline", ' "x", 1\n"y"', "comma, 1\nand 0", "\\n", '\\"'),
    *(
        " space before",
        "after ",
        " ",
        "  \t ",
        "é ü ß",
        "日本語",
        "😀",
        "\u2028 line",
        "\x85",
        "\x0b\x0c\x1c",
        "\ufeffmark",
    ),
    *(
        "e\u0301",
        "\u00a0",
        "#comment",
        "=1+1",
        "sep=;",
        "text",
        "label",
        "{",
        "[1]",
        '{"text": 1}',
        "\x00 nul",
        "x" * 9000,
    ),
    "\\u00e9",
]
ROWS = [(text, number % 2, number % 3) for number, text in enumerate(NASTY)]


def as_csv(rows, path, **how):
    with path.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **how)
        writer.writerow(["text", "label", "part"])
        writer.writerows(rows)


def objects(rows):
    return [{"text": text, "label": label, "part": part} for text, label, part in rows]


def as_lines(rows, path, ascii_only=True):
    path.write_text(
        "".join(json.dumps(each, ensure_ascii=ascii_only) + "\n" for each in objects(rows)), "utf-8", newline=""
    )


def typed(text=None, number=None, other=None):
    """Make an Arrow table of the rows with columns of these types."""

    def made(values, kind):
        if pa.types.is_dictionary(kind):
            return pa.array(values, kind.value_type).dictionary_encode()
        if pa.types.is_float16(kind):
            return pa.array([np.float16(value) for value in values], kind)
        if pa.types.is_decimal(kind):
            return pa.array([Decimal(value) for value in values], kind)
        return pa.array(list(map(str, values)) if pa.types.is_string(kind) else values, kind)

    def table(rows):
        texts, labels, parts = zip(*rows, strict=True)
        return pa.table(
            {
                "text": made(texts, text or pa.string()),
                "label": made(labels, number or pa.int64()),
                "part": made(parts, other or number or pa.int64()),
            }
        )

    return table


def as_parquet(rows, path, **types):
    pq.write_table(typed(**types)(rows), path)


def as_arrow(rows, path, stream=False, **types):
    table = typed(**types)(rows)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


NUMBERS = {
    str(kind): kind
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2), pa.decimal256(40, 0), pa.string()),
        pa.dictionary(pa.int32(), pa.int64()),
    )
}
TEXTS = {
    str(kind): kind
    for kind in (pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()))
}
WAYS = {
    "csv": ("csv", as_csv),
    "csv of lf": ("csv", lambda rows, path: as_csv(rows, path, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)),
    "csv of floats": ("csv", lambda rows, path: as_csv([(t, float(a), float(b)) for t, a, b in rows], path)),
    "csv all quoted": ("csv", lambda rows, path: as_csv(rows, path, quoting=csv.QUOTE_ALL)),
    "csv of semicolons": ("csv", lambda rows, path: as_csv(rows, path, delimiter=";")),
    "csv of bars": ("csv", lambda rows, path: as_csv(rows, path, delimiter="|")),
    "csv of tabs": ("csv", lambda rows, path: as_csv(rows, path, delimiter="\t", quoting=csv.QUOTE_ALL)),
    "csv with mark": ("csv", lambda rows, path: as_csv(rows, path, encoding="utf-8-sig")),
    "csv in utf-16": ("csv", lambda rows, path: as_csv(rows, path, encoding="utf-16")),
    "tsv": ("tsv", lambda rows, path: as_csv(rows, path, delimiter="\t")),
    "tsv strings quoted": ("tsv", lambda rows, path: as_csv(rows, path, delimiter="\t", quoting=csv.QUOTE_NONNUMERIC)),
    "json lines": ("jsonl", as_lines),
    "json lines called json": ("json", as_lines),
    "json lines in utf-8": ("ndjson", lambda rows, path: as_lines(rows, path, ascii_only=False)),
    "json array": ("json", lambda rows, path: path.write_text(json.dumps(objects(rows)))),
    "json array called jsonl": ("jsonl", lambda rows, path: path.write_text(json.dumps(objects(rows), indent=2))),
    "json of floats": (
        "jsonl",
        lambda rows, path: as_lines([(t, float(a), str(b)) for t, a, b in rows], path),
    ),
    **{
        f"parquet {n}": ("parquet", lambda rows, path, k=k: as_parquet(rows, path, number=k))
        for n, k in NUMBERS.items()
    },
    **{f"parquet {n}": ("parquet", lambda rows, path, k=k: as_parquet(rows, path, text=k)) for n, k in TEXTS.items()},
    "arrow": ("arrow", as_arrow),
    "arrow views": ("arrow", lambda rows, path: as_arrow(rows, path, text=pa.string_view())),
    "arrow stream": ("arrow", lambda rows, path: as_arrow(rows, path, stream=True)),
    "feather": ("feather", lambda rows, path: pyarrow.feather.write_feather(typed()(rows), str(path))),
}


def zipped(raw):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", raw)
        archive.writestr("__MACOSX/._rows.csv", b"\0")
    return held.getvalue()


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
    "zip": zipped,
}


def load(path, **other):
    return dataset.load(resolve("mine", path=str(path), text=("text",), **{"empty": "keep", **other}), Budget(steps=1))


def texts_of(path, **other):
    (table,) = reading.read(resolve("mine", path=str(path), text=("text",), **other), ["train"])
    return table["text"].to_pylist()


def folder(path, suffix, write, rows):
    path.mkdir()
    for split in ("train", "validation"):
        write(rows, path / f"{split}.{suffix}")
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", [(), (("part", "1"),)], ids=["all", "where"])
def test_the_same_rows_from_every_format(tmp_path, way, where):
    wanted = [row for row in ROWS if not where or row[2] == 1]
    splits = load(folder(tmp_path / "it", *WAYS[way], ROWS), where=where)
    assert splits.train.texts == ([text for text, _, _ in wanted],)
    assert list(map(int, splits.train.labels)) == [label for _, label, _ in wanted]
    reference = load(folder(tmp_path / "reference", "parquet", as_parquet, ROWS), where=where)
    assert splits.dataset_hash == reference.dataset_hash


@pytest.mark.timeout(120)
def test_a_long_array_takes_time_in_proportion(tmp_path):
    # Counting lines from the start for every element took hours for 400,000 of them, and here minutes.
    count = 60_000
    (tmp_path / "rows.json").write_text(
        "[" + ",\n".join(json.dumps({"text": "word " * 40, "label": i % 2}) for i in range(count)) + "]"
    )
    assert len(texts_of(tmp_path / "rows.json", holdout=1)) == count


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("way", ["csv", "json lines", "parquet int8", "arrow stream"])
@pytest.mark.parametrize("named", [True, False])
def test_the_same_rows_compressed(tmp_path, packed, way, named):
    if packed == "zip" and way != "csv":
        pytest.skip("the member is called rows.csv")
    suffix, write = WAYS[way]
    plain = folder(tmp_path / "plain", suffix, write, ROWS)
    (tmp_path / "packed").mkdir()
    for file in plain.iterdir():
        name = f"{file.name}.{packed}" if named else file.name
        (tmp_path / "packed" / name).write_bytes(PACKED[packed](file.read_bytes()))
    assert load(tmp_path / "packed").dataset_hash == load(plain).dataset_hash


words = st.text(st.sampled_from('ab "\t,;\n\r01é'), min_size=1, max_size=8)


@given(st.lists(st.tuples(words, st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_that_look_like_syntax_are_read_or_refused(tmp_path_factory, rows):
    place = tmp_path_factory.mktemp("rows")
    texts = [text for text, _, _ in rows]
    exact = {"json lines", "json array", "parquet int8"}
    for way in (*exact, "csv", "csv of lf", "csv all quoted", "csv of semicolons", "tsv", "tsv strings quoted"):
        try:
            found = texts_of(folder(place / way, *WAYS[way], rows))
        except DistsubError as error:
            assert way not in exact and "\n" not in str(error) and "quot" in str(error), (way, error)
        else:
            assert found == texts, way


plain_words = st.text(st.sampled_from('ab" 01'), min_size=1, max_size=8).filter(lambda text: text.strip())


@given(st.lists(st.tuples(plain_words, st.integers(0, 1), st.integers(0, 2)), min_size=2, max_size=8))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tsv_written_without_quoting_keeps_its_rows(tmp_path_factory, rows):
    place = tmp_path_factory.mktemp("rows")
    body = "text\tlabel\tpart\n" + "".join(f"{t}\t{a}\t{b}\n" for t, a, b in rows)
    folder(place / "it", "tsv", lambda _, path: path.write_text(body, newline=""), rows)
    assert texts_of(place / "it", quote="none") == [text for text, _, _ in rows]
    try:
        found = texts_of(place / "it")
    except DataError as error:
        assert 'quote = "none"' in str(error)
    else:
        # A cell that doubles all its quotation marks is one that a CSV writer made.
        assert found == [text for text, _, _ in rows] or any('""' in text for text, _, _ in rows)


def test_rows_that_a_quotation_mark_would_swallow(tmp_path):
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["good", "bad", "w1"], k=4)) for _ in range(128)]
    for number in (5, 40, 77, 100):
        texts[number] = '"' + texts[number]
    for suffix, mark in (("tsv", "\t"), ("csv", ",")):
        body = f"text{mark}label\n" + "".join(f"{text}{mark}{i % 2}\n" for i, text in enumerate(texts))
        splits = load(folder(tmp_path / suffix, suffix, lambda _, path, body=body: path.write_text(body), None))
        assert splits.train.texts == (texts,)
    ambiguous = 'text{0}label\n"one{0}1\ntwo{0}0\nthree"{0}1\nfour{0}0\n'
    for suffix, mark in (("tsv", "\t"), ("csv", ",")):
        body = ambiguous.format(mark)
        place = folder(tmp_path / f"2{suffix}", suffix, lambda _, path, body=body: path.write_text(body), None)
        with pytest.raises(DataError, match=r"train\.[ct]sv lines 2 to 4 are one row if .* else 3 rows; set quote"):
            load(place)
        assert len(load(place, quote="none").train) == 4
        assert load(place, quote="double").train.texts[0] == [f"one{mark}1\ntwo{mark}0\nthree", "four"]


BODY = "text,label\ncafé good,1\nbad,0\n"


@pytest.mark.parametrize("given", ["utf-16", "utf-16-le", "utf-32", "utf-8", "ascii"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_in_another_encoding_than_is_said(tmp_path, name, given):
    body = BODY if name == "a.csv" else '{"text": "café", "label": 1}\n'
    for written in {"utf-8": ("cp1252", "utf-16"), "ascii": ("utf-8",)}.get(given, ("utf-8", "utf-8-sig", "cp1252")):
        (tmp_path / name).write_bytes(body.encode(written))
        with pytest.raises(DataError) as caught:
            load(tmp_path / name, holdout=1, encoding=given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.csv", BODY.encode("cp1252"), r'a\.csv line 2: not UTF-8 \(byte 0xe9\); in cp1252 it is "café good,1": if'),
        ("a.csv", BODY.encode("utf-16-le"), r'looks like UTF-16 without a byte order mark; set encoding = "utf-16-le"'),
        ("a.csv", BODY.encode("utf-16-be"), r'set encoding = "utf-16-be"'),
        ("a.csv", b"caf good,1\nbad,0\n", r'no column "text"; known: .* \(the first line must name the columns\)'),
        ("a.csv", b"text,label\na,1\nb\n", r"a\.csv line 3: 1 cell where the header has 2"),
        ("a.csv", b'text,label\n"a\nb",1,2\n', r"line 2: 3 cells where the header has 2 \(the row ends in line 3\)"),
        ("a.csv", b"text,label\na,1\ntext,label\nb,0\n", r"line 3: the header once more; remove it"),
        ("a.csv", b"\xef\xbb\xbftext,label\na,1\n" * 2, r"line 3: the header once more; remove it"),
        ("a.csv", b"text,text,label\na,b,1\n", r'more than one column "text"; keep one'),
        ("a.csv", b'text,label\n"a, b,1\nc, d,0\n', r"line 3: a cell begins with a quotation mark and none ends it"),
        ("a.csv", b'"text","label"\n"a \\"b\\"",1\n', r"quotation mark"),
        ("a.csv", b"\n\n", r"a\.csv is empty"),
        ("a.csv", b'"a\nb",\x1b[31m\n', r'no column "text"; known: a\?b, \?\[31m '),
        ("a.csv", b"text,label\n\xe9\x1b,1\n", r"line 2: not UTF-8 \(byte 0xe9\); set encoding to the one"),
        ("a.tsv", b"text\tlabel\ncaf\xe9\t\xad1\n", r'line 2: not UTF-8 \(byte 0xe9\); in cp1252 it is "café \?1"'),
        ("a.csv.bz2", bz2.compress(gzip.compress(b"text,label\na,1\n")), r"compressed twice"),
        ("a.tar.gz", gzip.compress(b"a".ljust(257, b"\0") + b"ustar"), r"is a tar archive; unpack it"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"git-lfs pointer .* git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"git-lfs pointer"),
        ("a.parquet", b"text,label\na,1\n", r"is no \.parquet file"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet is damaged"),
        ("a.arrow", b"ARROW1\0\0 and no more", r"a\.arrow is damaged"),
        ("a.csv.gz", gzip.compress(BODY.encode() * 99)[:-20], r"a\.csv\.gz is damaged"),
        ("a.csv.bz2", bz2.compress(BODY.encode() * 99)[:-20], r"a\.csv\.bz2 is damaged"),
        ("a.csv.xz", lzma.compress(BODY.encode() * 99)[:-20], r"a\.csv\.xz is damaged"),
        ("a.csv.zst", pa.compress(BODY.encode() * 99, "zstd", asbytes=True)[:-9], r"a\.csv\.zst is damaged"),
        ("a.csv.zip", zipped(b"x")[:-9], r"a\.csv\.zip is damaged"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": 0},\n', r"line 2: .* remove the comma"),
        ("a.json", b'[{"text": "a", "label": 1},\n{"text": "b", "label": 0},\n]', r"line 3: a comma after the last"),
        ("a.json", b'[{"text": "a", "label": 1}\n', r"line 2: the array does not end"),
        ("a.json", b'[{"text": "a", "label": 1}\n{"text": "b"}]', r"line 2: no comma between"),
        ("a.json", b'{\n"text": "a"}', r"line 1: .* in one line, or all in one array"),
        ("a.json", b'{"text": ["a"], "label": [1]}', r'line 1: "text" is a list'),
        ("a.json", b'{"data": [{"text": "a"}]}', r'no column "text"; known: data'),
        ("a.jsonl", b'{"text": "a", "label": {"x": 1}}', r'line 1: "label" is an object'),
        (
            "a.jsonl",
            b'{"text": "a", "label": 1}\n\n{"text": 5, "label": 1}',
            r'line 3: column "text" holds 5, not text',
        ),
        ("a.jsonl", b'{"text": "a", "label": 1, "label": 0}', r'line 1 has the key "label" twice'),
        ("a.jsonl", b'{"text": "\\ud83d", "label": 1}', r"line 1: \"text\" holds half of a character"),
        ("a.jsonl", b'["a", 1]\n', r'line 1, element 1 is "a" and not an object'),
        ("a.jsonl", b'{"text": "a"}\n7\n', r"line 2 is 7 and not an object"),
        ("a.jsonl", b"[" * 100_000, r"too deep"),
        ("a.jsonl", b"[]", r"holds no rows"),
        ("a.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}", r"line 1: Exceeds the limit"),
        ("a.json", b"{'text': 'a'}", r"line 1: no JSON at column 2"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # packed bytes hold the time: other names every run
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, body, message):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name, holdout=1)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_two_splits_of_one_file_of_a_package_are_refused():
    try:
        reading.read(TASKS["rotten_tomatoes"], ["train", "validation"])
    except UnavailableError as error:
        pytest.skip(str(error))
    except DataError as error:
        assert "is one table without splits; set holdout" in str(error)
    else:
        pytest.fail("both splits were all rows")
