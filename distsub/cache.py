"""This machine's cache: directories made once, whole or not at all, whichever process comes first."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from pyarrow import fs as pafs

from distsub.addresses import refuse_credentials
from distsub.errors import OutputError, UnavailableError, first_line
from distsub.files import Files, patiently


def cache_directory() -> Path:
    """Give the directory for converted weights and fetched inputs: DISTSUB_CACHE, or the user's cache.

    Raises:
        UnavailableError: Neither is known.
    """
    if own := os.environ.get("DISTSUB_CACHE"):
        return Path(own).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "distsub"
    try:
        return Path.home() / ".cache" / "distsub"
    except RuntimeError:  # no HOME, and the system does not know this user
        raise UnavailableError("no home directory is known; set DISTSUB_CACHE to a directory for weights") from None


def remembered(about: str, compute: Callable[[], str]) -> str:
    """Give a short text that is costly to compute, such as a hash, once per machine; all of `about` decides it."""
    kept = cache_directory() / "hashes" / hashlib.sha256(about.encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        about_it, _, found = kept.read_text().partition("\n")
        if about_it == hashlib.sha256(found.encode()).hexdigest():  # else it is damaged
            return found
    found = compute()
    with contextlib.suppress(OSError, OutputError):  # a cache that cannot be written only makes it slow
        kept.parent.mkdir(parents=True, exist_ok=True)
        Files.at(kept.parent).put(kept.name, f"{hashlib.sha256(found.encode()).hexdigest()}\n{found}".encode())
    return found


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Make a directory of the cache, which `make` fills, unless it is there; its name says what decides its content.

    Of several processes that want it at once, one makes it and the others wait; where the lock does not work, as on
    some network file systems, each makes one of its own and the first rename wins.

    Raises:
        UnavailableError: The cache cannot be written, or what `make` says.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target) as alone:
            if not target.is_dir():
                for dead in target.parent.glob(f".{target.name}-*") if alone else ():  # of a killed process
                    shutil.rmtree(dead, ignore_errors=True)
                _make(target, make)
    except UnavailableError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"the cache {cache_directory()} cannot be written ({error.strerror or error}); set DISTSUB_CACHE to a "
            "directory with room for the weights in float32"
        ) from None
    return target


def fetched(files: Files, names: Callable[[Path], Iterable[str]], target: Path) -> Path:
    """Copy files from another machine or a bucket to a directory of the cache, once per machine.

    `names` names them, given the folder that they are copied to, so that it may look at those copied already.

    Raises:
        UnavailableError: They cannot be read, or the cache cannot be written.
    """

    def fetch(folder: Path) -> None:
        for name in names(folder):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as sink:
                for piece in _pieces(files, name):
                    sink.write(piece)

    return once(target, fetch)


def copied(address: str, wanted: Callable[[Path, list[str]], Iterable[str]], deep: bool) -> Path:
    """Give a local copy of what lies at s3://, gs:// or hdfs://, made once per machine for what is there now.

    Args:
        address: Of a file or a folder; credentials come from the environment.
        wanted: Of a folder, says which files to copy: given where they are copied to and the names of all there are.
        deep: Whether files in folders below count.

    Returns:
        The file or folder; of file:// the place itself.

    Raises:
        UnavailableError: It is not there or cannot be read, or the cache cannot be written.
        ConfigError: The address has credentials in it.
    """
    try:
        files = Files.at(refuse_credentials(address))
    except OutputError as error:
        raise UnavailableError(str(error).replace("a results directory", "the address of a model or data")) from None
    if files.is_local:
        return Path(files.root)
    folder, _, base = files.root.rpartition("/")
    selector = pafs.FileSelector(files.root, allow_not_found=True, recursive=deep)
    try:
        infos = patiently(lambda: files.filesystem.get_file_info(selector))  # of a folder that is the only request
        if is_file := not infos:
            infos = [patiently(lambda: files.filesystem.get_file_info(files.root))]
    except (OSError, pa.ArrowException) as error:
        raise UnavailableError(f"{files.uri} cannot be read ({first_line(error)})") from None
    if is_file:
        files = replace(files, uri=files.uri.rpartition("/")[0], root=folder)
    found = {info.path[len(files.root) + 1 :]: (info.size, info.mtime_ns) for info in infos if info.is_file}
    if not found:
        raise UnavailableError(f"no file is at {address.partition('?')[0]}")
    known = json.dumps([address, sorted(found.items())])
    target = cache_directory() / "fetched" / hashlib.sha256(known.encode()).hexdigest()[:24]
    fetched(files, lambda folder: [base] if is_file else wanted(folder, sorted(found)), target)
    return target / base if is_file else target


def _pieces(files: Files, name: str) -> Iterator[bytes]:
    try:
        yield from files.pieces(name)
    except OSError as error:
        raise UnavailableError(f"{files.uri}/{name} cannot be read ({first_line(error)})") from None


def _make(target: Path, make: Callable[[Path], None]) -> None:
    work = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    work.mkdir()  # not tempfile's: that is for its owner alone
    try:
        make(work)
        try:
            work.rename(target)
        except OSError:  # another process was first; its directory is the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Wait while another process makes the same directory; tells whether a lock is held; it goes with its process."""
    lock = FileLock(f"{target}.lock", mode=0o666)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # no locks on this file system, or the lock is another user's
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
