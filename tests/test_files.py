"""Files that appear whole or not at all, on the local file system and on others."""

import errno
import os
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from distsub.errors import OutputError
from distsub.files import Files


def memory() -> Files:
    return Files("mock://", pafs._MockFileSystem(), "root")


@pytest.mark.parametrize("kind", ["local", "file_uri", "other"])
def test_put_read_list(tmp_path, kind):
    files = {"local": Files.at(tmp_path), "file_uri": Files.at(tmp_path.as_uri()), "other": memory()}[kind]
    files.make("sub")
    assert files.names("absent") == []
    assert files.put("sub/b", b"1")
    assert files.put("sub/a", b"2", replace=False)
    assert not files.put("sub/a", b"3", replace=False)
    assert files.put("sub/b", b"4")
    assert files.names("sub") == ["a", "b"]
    assert [files.read("sub/a"), files.read("sub/b")] == [b"2", b"4"]
    assert files.exists("sub/a")
    assert not files.exists("sub")


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    files = Files.at(tmp_path)
    files.put("a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.put("a", b"new")
    monkeypatch.undo()
    assert files.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_file_systems_without_hard_links_work_too(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    files = Files.at(tmp_path)
    assert files.put("a", b"1", replace=False)
    assert not files.put("a", b"2", replace=False)
    assert files.read("a") == b"1"


def test_a_relative_path_is_kept_for_messages_and_used_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = Files.at("out")
    files.make("")
    monkeypatch.chdir("/")
    files.put("a", b"1")
    assert files.uri == "out"
    assert Path(tmp_path, "out", "a").read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s3://", "file://relative"])
def test_an_address_that_cannot_be_is_one_clear_line(uri):
    with pytest.raises(OutputError, match="give a local path") as caught:
        Files.at(uri)
    assert "\n" not in str(caught.value)


def test_credentials_in_a_uri_are_not_shown():
    assert Files.at("s3://KEY:SECRET@bucket/p?region=eu-west-1").uri == "s3://bucket/p"
