import numpy as np
import pytest

from distsub.finetune import tokens
from distsub.finetune.tokens import Tokens

ROWS = [{"input_ids": [1, 2, 3], "labels": [7]}, {"input_ids": [4], "labels": [8, 9]}, {"input_ids": [], "labels": [5]}]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "FEW", 3)
    monkeypatch.setattr(tokens, "CHUNK", 4)


def test_rows_come_back_as_they_were():
    held = Tokens.of(ROWS)
    assert [*held] == ROWS and held[-1] == ROWS[2] and held[1:] == ROWS[1:] and len(held) == 3
    assert held.lengths("input_ids") == [3, 1, 0] and held.lengths("input_ids", "labels") == [4, 3, 1]
    assert [*Tokens.joined([held, held])] == ROWS * 2
    with pytest.raises(IndexError):
        held[3]


def test_many_rows_are_tokenised_once_and_mapped():
    asked = []

    def make(rows):
        asked.append(rows)
        return [{"input_ids": [row] * (row % 5 + 1)} for row in range(10)[rows]]

    first = tokens.prepared(10, ["content", "train", 16], make)
    again = tokens.prepared(10, ["content", "train", 16], make)
    assert [*first] == [*again] == make(slice(0, 10))
    assert asked[:-1] == [slice(0, 4), slice(4, 8), slice(8, 12)], "in chunks, and by the first who asked"
    values, _ = again._columns["input_ids"]
    assert isinstance(values, np.memmap) and values.dtype == np.int32
    tokens.prepared(10, ["content", "train", 17], make)
    assert len(asked) == 4 + 3, "another length is another key"


def test_few_rows_leave_no_files(tmp_path):
    assert [*tokens.prepared(3, ["content"], lambda rows: ROWS[rows])] == ROWS
    assert [*tokens.prepared(10, None, lambda rows: ROWS)] == ROWS
    assert not (tmp_path / "cache").exists()
