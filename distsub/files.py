"""Small files under one root, local or on an object store, that appear whole or not at all.

A local file is written under a hidden temporary name, flushed to disk and renamed. An object store makes
an object visible only once it is complete, so there the bytes go straight to their final key.
"""

import contextlib
import errno
import json
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from distsub.addresses import check_scheme, reach, without_credentials
from distsub.errors import OutputError, first_line

_PIECE_BYTES = 1 << 24
_PUT_IS_ATOMIC = ("s3", "gcs", "abfs")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

ATTEMPTS = 8
"""How often an operation is tried on a storage that fails: one that fails one in five is given up once in 400,000."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0

READING_S, WRITING_S = 10.0, 60.0
"""Seconds after which no further attempt begins. Reading comes first and costs nothing yet, so a dead endpoint fails
soon; what is written may be the end of a long training."""

_PASSING = {
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "EINTR", "EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH",
                 "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "EPIPE", "EREMOTEIO", "ENOLCK")
    if hasattr(errno, name)
}  # fmt: skip
_FINAL_ANSWERS = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH", "Unauthorized", "Forbidden",
)  # fmt: skip

_T = TypeVar("_T")


@dataclass(frozen=True)
class Files:
    """A root directory, addressed by a local path or any URI that pyarrow.fs understands.

    Attributes:
        uri: The root as it was given, for messages.
        filesystem: Where it lies.
        root: Its path on that file system.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def at(cls, uri: str | os.PathLike[str]) -> "Files":
        """Address a local path, or a URI such as s3://bucket/prefix, gs://, hdfs:// or file://.

        Raises:
            OutputError: The URI names no file system that pyarrow can reach, or something is almost a URI.
        """
        text = os.fspath(uri)
        check_scheme(text)
        if "://" not in text:
            return cls(text, pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        try:
            filesystem, root = reach(text, READING_S)
            if not root.strip("/"):
                raise ValueError("it names no directory")
        except (pa.ArrowException, OSError, ValueError) as error:
            shown = without_credentials(text)
            if "@" in shown:  # a secret with a slash in it is what could not be read
                shown = without_credentials(f"{text.partition('://')[0]}://{text.rpartition('@')[2]}")
            reason = first_line(error).replace(text, shown)
            raise OutputError(
                f"cannot use {shown!r} as a results directory ({reason}); "
                "give a local path, or a URI with s3://, gs://, abfs://, hdfs:// or file://"
            ) from None
        return cls(without_credentials(text), filesystem, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a file system of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def puts_whole(self) -> bool:
        """Whether this is an object store: an object appears at once, folders are none, and every request costs."""
        return self.filesystem.type_name in _PUT_IS_ATOMIC

    @property
    def lists_in_order(self) -> bool:
        """Whether a listing goes through names in their order, as object stores do; S3's directory buckets do not."""
        return self.puts_whole and not self.root.partition("/")[0].endswith("--x-s3")

    def path(self, name: str) -> str:
        """Give the full path of a file below the root."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Tell whether a file of that name is there."""
        if not self.puts_whole:
            return patiently(lambda: self.filesystem.get_file_info(self.path(name))).type == pafs.FileType.File
        try:  # one request; for the information it would list what lies below that name too
            self.open(name).close()
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for reading parts of it.

        Raises:
            OSError: It is not there or cannot be read.
        """
        return patiently(lambda: self.filesystem.open_input_file(self.path(name)))

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            OSError: It is not there or cannot be read.
        """

        def whole() -> bytes:
            with self.filesystem.open_input_file(self.path(name)) as stream:
                return stream.readall()

        return patiently(whole)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Read a large file piece by piece.

        Raises:
            OSError: It is not there or cannot be read.
        """
        with self.open(name) as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece

    def names(self, folder: str, *, deep: bool = False) -> list[str]:
        """List the files directly in a folder, sorted; none when there is no such folder.

        Args:
            folder: Where to look.
            deep: Whether also in its folders, whose files are named as seen from it.
        """
        return list(self.times(folder, deep=deep))

    def folders(self, folder: str) -> list[str]:
        """List the folders directly in a folder, sorted; none when there is no such folder."""
        return sorted(info.base_name for info in self._list(folder) if info.type == pafs.FileType.Directory)

    def sizes(self, folder: str) -> dict[str, int]:
        """Give the bytes of each file directly in a folder."""
        return {info.base_name: info.size for info in self._list(folder) if info.is_file}

    def times(self, folder: str, *, deep: bool = False) -> dict[str, float]:
        """List files as `names` does, with when each was last written in seconds since the epoch; 0 where unknown."""
        start = len(self.path(folder)) + 1
        found = {info.path[start:]: (info.mtime_ns or 0) / 1e9 for info in self._list(folder, deep) if info.is_file}
        return dict(sorted(found.items()))

    def _list(self, folder: str, deep: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=deep)
        return patiently(lambda: self.filesystem.get_file_info(selector))

    def make(self, folder: str) -> None:
        """Create a folder where folders exist; object stores have none."""
        if not self.puts_whole:
            patiently(lambda: self.filesystem.create_dir(self.path(folder), recursive=True))

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: self.filesystem.delete_file(self.path(name)))

    def delete_all(self, folder: str) -> None:
        """Remove a folder with all that is in it, on an object store a thousand files per request."""
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: self.filesystem.delete_dir(self.path(folder)))

    def put(self, name: str, data: bytes, *, replace: bool = True) -> bool:
        """Write a whole file so that no reader ever sees a part of it; tried again where a failure may pass.

        Args:
            name: Path below the root; its folder exists.
            data: All of its bytes.
            replace: Whether a file of that name may be replaced. Locally "no" is exact even among processes;
                an object store is asked first, which two writers can both do at once.

        Returns:
            Whether it was written. False also when a first attempt was reported as failed and had not.

        Raises:
            OSError: It cannot be written: the disk is full or read-only, or a failure did not pass.
        """
        return patiently(lambda: self._put(name, data, replace), WRITING_S)

    def send(self, name: str, source: Path) -> None:
        """Write a file of this machine, of any size, so that no reader ever sees a part of it.

        Args:
            name: Path below the root; its folder exists.
            source: The file.

        Raises:
            OSError: It cannot be read or written.
        """

        def copy(stream: pa.NativeFile) -> None:
            with source.open("rb") as file:
                shutil.copyfileobj(file, stream, _PIECE_BYTES)

        patiently(lambda: self._stream(name, copy), WRITING_S)

    def _put(self, name: str, data: bytes, replace: bool) -> bool:
        if not replace and self.exists(name):
            return False
        if self.is_local:
            return _put_local(Path(self.path(name)), data, replace)
        self._stream(name, lambda stream: stream.write(data))
        return True

    def _stream(self, name: str, write: Callable[[pa.NativeFile], object]) -> None:
        """Write a file under its own name where it appears whole, else under a hidden one that is then renamed."""
        path = target = self.path(name)
        if not self.puts_whole:
            folder, _, base = path.rpartition("/")
            target = f"{folder}/{_temporary_name(base)}"
        try:
            with self.filesystem.open_output_stream(target) as stream:
                write(stream)
            if target != path:
                if not self.is_local and self.exists(name):  # HDFS does not rename onto an existing file
                    self.filesystem.delete_file(path)
                self.filesystem.move(target, path)
        except BaseException:
            if target != path:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(target)
            raise

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock file while something is read and then replaced; does nothing off this machine."""
        if not self.is_local:
            yield
            return
        import fcntl

        with Path(self.path(name)).open("w") as lock:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def patiently(action: Callable[[], _T], seconds: float = READING_S) -> _T:
    """Do something, again after growing waits of random length while it fails in a way that may pass.

    Args:
        action: What to do.
        seconds: How long after the first attempt another may begin.

    Raises:
        OSError: It failed for good, or `ATTEMPTS` times, or for that long.
    """
    until = time.monotonic() + seconds
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except OSError as error:
            # Many writers that failed together do not return together.
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            if attempt == ATTEMPTS or not _may_pass(error) or time.monotonic() + wait > until:
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


def _may_pass(error: OSError) -> bool:
    """Tell a busy server, a lost connection or a disk's hiccup from what will fail the same way again."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError | NotADirectoryError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    return not any(answer in str(error) for answer in _FINAL_ANSWERS)  # an object store's error has no number


def parse_json(data: str | bytes) -> Any:
    """Parse JSON that another program may have written.

    Raises:
        ValueError: It is none, or nested so deeply that Python gives up on it.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _temporary_name(base: str) -> str:
    return f".tmp-{base}-{os.getpid()}-{secrets.token_hex(6)}"


def _put_local(path: Path, data: bytes, replace: bool) -> bool:
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if replace or not _link(temporary, path):
            if not replace and path.exists():
                return False
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power cut too
    finally:
        os.close(folder)
    return True


def _link(temporary: Path, path: Path) -> bool:
    """Give a complete file its name unless the name is taken; False when it is, or links do not exist here."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            return False
        raise
    return True
