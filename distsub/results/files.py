"""Small files under one root, local or on an object store, that appear whole or not at all.

A local file is written under a hidden temporary name, flushed to disk and renamed. An object store makes
an object visible only once it is complete, so there the bytes go straight to their final key.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from distsub.errors import OutputError

_PUT_IS_ATOMIC = ("s3", "gcs", "abfs")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


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
            OutputError: The URI names no file system that pyarrow can reach.
        """
        text = os.fspath(uri)
        if "://" not in text:
            return cls(text, pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        try:
            filesystem, root = pafs.FileSystem.from_uri(text)
            if not root.strip("/"):
                raise ValueError("it names no directory")
        except (pa.ArrowException, OSError, ValueError) as error:
            shown = _public(text)
            if "@" in shown:  # a secret with a slash in it is what could not be read
                shown = _public(f"{text.partition('://')[0]}://{text.rpartition('@')[2]}")
            reason = first_line(error).replace(text, shown)
            raise OutputError(
                f"cannot use {shown!r} as a results directory ({reason}); "
                "give a local path, or a URI with s3://, gs://, abfs://, hdfs:// or file://"
            ) from None
        return cls(_public(text), filesystem, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a file system of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Give the full path of a file below the root."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Tell whether a file of that name is there."""
        return self.filesystem.get_file_info(self.path(name)).type == pafs.FileType.File

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            OSError: It is not there or cannot be read.
        """
        with self.filesystem.open_input_file(self.path(name)) as stream:
            return stream.readall()

    def names(self, folder: str) -> list[str]:
        """List the files directly in a folder, sorted; none when there is no such folder."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector) if info.is_file)

    def make(self, folder: str) -> None:
        """Create a folder where folders exist; object stores have none."""
        if self.filesystem.type_name not in _PUT_IS_ATOMIC:
            self.filesystem.create_dir(self.path(folder), recursive=True)

    def put(self, name: str, data: bytes, *, replace: bool = True) -> bool:
        """Write a whole file so that no reader ever sees a part of it.

        Args:
            name: Path below the root; its folder exists.
            data: All of its bytes.
            replace: Whether a file of that name may be replaced. Locally "no" is exact even among processes;
                an object store is asked first, which two writers can both do at once.

        Returns:
            Whether it was written.
        """
        if not replace and self.exists(name):
            return False
        if self.is_local:
            return _put_local(Path(self.path(name)), data, replace)
        if self.filesystem.type_name in _PUT_IS_ATOMIC:
            self._stream(self.path(name), data)
            return True
        folder, _, base = self.path(name).rpartition("/")
        temporary = f"{folder}/{_temporary_name(base)}"
        self._stream(temporary, data)
        if self.exists(name):  # HDFS does not rename onto an existing file
            self.filesystem.delete_file(self.path(name))
        self.filesystem.move(temporary, self.path(name))
        return True

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

    def _stream(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, or its class when it has none."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _public(uri: str) -> str:
    """Drop credentials and options from a URI so that it may be printed."""
    scheme, _, rest = uri.partition("://")
    rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


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
