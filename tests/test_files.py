"""Files that appear whole or not at all, on the local file system and on others."""

import errno
import os
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from distsub.addresses import output_address
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


@pytest.mark.parametrize(
    "given",
    ["s3:/b/x", "s3:b", "s3:", "s3//b/x", "S3:/b", "file:/tmp/x", "file:x", "gs:/b", "hdfs:/x", "https:/x", "new:/x"],
)
def test_what_is_almost_a_uri_is_no_local_directory(given):
    for use in (Files.at, output_address):
        with pytest.raises(OutputError, match=r"two slashes after its scheme; give [a-z0-9]+://") as caught:
            use(given)
        assert repr(given) in str(caught.value) and f"./{given}" in str(caught.value)
    assert Files.at(f"./{given}").is_local


@pytest.mark.parametrize("given", ["S3://b/x", "s3a://b/x", "FILE:///x", "https://h/x", "://x", " s3://b/x", "a b://x"])
def test_an_unknown_scheme_is_refused_before_anything_is_asked(given):
    with pytest.raises(OutputError, match=r"no scheme .*://; give a local path, or a URI with one of s3://, gs://"):
        output_address(given)


@pytest.mark.parametrize("given", ["s3:KEY:SECRET@bucket/x", "s3:/KEY:SECRET@bucket/x", "S3://KEY:SECRET@bucket/x"])
def test_credentials_of_what_is_almost_a_uri_are_not_shown(given):
    with pytest.raises(OutputError, match="bucket/x") as caught:
        output_address(given)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("given", ["run:1", "a/s3:/b", "C:x", "s3", "gs-run", "files", "2024-01-01T10:00"])
def test_a_colon_alone_makes_no_uri(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_address(given) == str(tmp_path / given) and Files.at(given).is_local


@pytest.mark.parametrize("given", ["results", "./results", "../results", "s3", "~"])
def test_a_relative_path_is_refused_in_a_ray_job(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    here = output_address(given)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert output_address(here) == here and output_address("s3://bucket/x") == "s3://bucket/x"
    if given == "~":
        assert output_address(given) == here
        return
    with pytest.raises(OutputError, match="thrown away when the job ends; give an absolute path"):
        output_address(given)


def test_a_jobs_working_directory_is_refused_however_it_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for given in (folder / "results", link / "results", link):
        with pytest.raises(OutputError, match="thrown away when the job ends"):
            output_address(str(given))
    monkeypatch.chdir(folder)
    with pytest.raises(OutputError, match="thrown away when the job ends"):
        output_address("results")


def test_credentials_in_a_uri_are_not_shown():
    assert Files.at("s3://KEY:SECRET@bucket/p?region=eu-west-1").uri == "s3://bucket/p"
