"""Bytes and text of a file, whatever it is compressed with or encoded in: told by its content, not by its name."""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa

from distsub.data.tasks import bare_name
from distsub.errors import DataError, UnavailableError, first_line

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it",
    b"\x1f\x9d": "compressed with compress (.Z); unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV in UTF-8",
    b"SQLite format 3": "a SQLite database; export the rows as CSV",
    b"FEA1": "a Feather file of version 1; write it again as Parquet",
    b"version https://git-lfs": "a git-lfs pointer and not the data; run: git lfs pull",
    b"\x80\x04\x95": "a Python pickle, which is never opened; write the rows as Parquet or CSV",
    b"\x89HDF": "a HDF5 file; write the rows as Parquet or CSV",
    b"Obj\x01": "an Avro file; write the rows as Parquet or CSV",
    b"ORC": "an ORC file; write the rows as Parquet",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


Quote = Literal["double", "none"]
"""Whether a CSV's cells may stand in quotation marks, doubled inside, or a quotation mark is text."""


@dataclass(frozen=True)
class Writing:
    """How a text file is written, as its user says or as it was found; None where it is not known, or means nothing.

    Attributes:
        separator: One character; of CSV.
        quote: Of CSV.
        encoding: A codec of Python.
        nested: A column of lists or objects, which become JSON; None where there must be none.
    """

    separator: str | None = None
    quote: Quote | None = None
    encoding: str | None = None
    nested: str | None = None


class UndecodableError(DataError):
    """Bytes that are no text in the encoding they are read in; `as_cp1252` is what they would be in that, or empty."""

    as_cp1252 = ""


def compression(path: Path) -> str | None:
    """Tell what a file is compressed with: "gzip", "bzip2", "xz", "zstd", "zip" or None."""
    with path.open("rb") as file:
        return _starting(file.read(6), _COMPRESSED)


def content_name(path: Path) -> str:
    """Give the name whose suffix says what the rows are written as: of a zip archive that of its only member."""
    if compression(path) != "zip":
        return bare_name(path.name)
    with zipfile.ZipFile(path) as archive:
        return bare_name(_member(archive).filename)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its bytes, uncompressed, once from start to end.

    Raises:
        DataError: It is damaged, an archive of several files, or of a kind that is not read; without its name.
        UnavailableError: It cannot be read from the disk.
    """
    try:
        with path.open("rb") as file, _uncompressed(file, compression(path)) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowInvalid, gzip.BadGzipFile) as error:
        raise DataError(f"is damaged: {first_line(error)}; fetch it again") from error
    except RuntimeError as error:
        if "encrypted" not in str(error) and "password" not in str(error):
            raise
        raise DataError("is an encrypted archive; unpack it") from error
    except NotImplementedError as error:
        raise DataError(f"is packed in a way that is not read ({first_line(error)}); unpack it") from error
    except OSError as error:
        if isinstance(error, DataError | UnavailableError):
            raise
        if error.errno is None:
            raise DataError(f"is damaged: {first_line(error)}; fetch it again") from error
        raise UnavailableError(f"cannot be read: {error.strerror}") from error


def first_bytes(path: Path) -> bytes:
    """Read how the content begins, and refuse what is known to hold no table of rows.

    Raises:
        DataError: It is damaged, or of a kind that is not read.
        UnavailableError: It cannot be read from the disk.
    """
    with opened(path) as stream:
        start = stream.read(4096)
    if foreign := _starting(start, _FOREIGN):
        raise DataError(f"is {foreign}")
    if _starting(start, _COMPRESSED):
        raise DataError("is compressed twice; unpack it once")
    if start[257:262] == b"ustar":
        raise DataError("is a tar archive; unpack it")
    return start


def encoding_of(start: bytes, given: str | None) -> str:
    """Say how content that starts like this is decoded: by its byte order mark, as given, or as UTF-8.

    Raises:
        DataError: The bytes look like UTF-16 and do not say so.
    """
    mark = _starting(start, _MARKS)
    if given is None:
        if mark is None and start[:4000].count(0) > len(start[:4000]) // 5:
            side = "le" if start[1::2].count(0) > start[::2].count(0) else "be"
            raise DataError(
                f'looks like UTF-16 without a byte order mark; set encoding = "utf-16-{side}", or save it as UTF-8'
            )
        return mark or "utf-8"
    plain = codecs.lookup(given).name
    return mark if mark and mark.startswith(plain) else plain


@contextmanager
def opened_text(path: Path, encoding: str | None, newline: str) -> Iterator[tuple[IO[str], str]]:
    """Open a file for reading its text; also gives the encoding, which `encoding_of` says.

    Raises:
        DataError: A line does not decode, or the file is damaged.
        UnavailableError: It cannot be read from the disk.
    """
    found = encoding_of(first_bytes(path), encoding)
    try:
        with opened(path) as stream:
            yield io.TextIOWrapper(cast("Any", stream), encoding=found, newline=newline), found
    except UnicodeError as error:  # not its child UnicodeDecodeError alone: UTF-16 without a mark is the parent
        raise _undecodable(path, found) from error


def _undecodable(path: Path, encoding: str) -> UndecodableError:
    """Name the first line that does not decode, and say how it may have been meant."""
    advice = 'set encoding to the one it was saved in, such as "cp1252", or save it as UTF-8'
    if not encoding.startswith("utf-8"):
        return UndecodableError(f"does not decode as {encoding}; {advice}")
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where = f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x})"
                try:
                    around = line[max(0, error.start - 15) : error.start + 15].decode("cp1252")
                except UnicodeDecodeError:
                    around = ""
                around = " ".join(around.split())
                if not around or min(around) < " ":
                    # Not text at all: and no message sends control characters to a terminal.
                    return UndecodableError(f"{where}; {advice}")
                around = "".join(letter if letter.isprintable() else "?" for letter in around)
                found = UndecodableError(
                    f'{where}; in cp1252 it is "{around}": if that is right set encoding = "cp1252", or save as UTF-8'
                )
                found.as_cp1252 = around
                return found
    return UndecodableError(f"ends in the middle of a character; {advice}")


@contextmanager
def _uncompressed(file: IO[bytes], how: str | None) -> Iterator[IO[bytes]]:
    if how != "zip":
        with _stream(file, how) as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive, archive.open(_member(archive)) as member:
        start = member.read(6)
        member.seek(0)
        yield _stream(member, _starting(start, _COMPRESSED))  # a compressed file in an archive


def _stream(file: IO[bytes], how: str | None) -> IO[bytes]:
    if how == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if how == "bzip2":
        return cast("IO[bytes]", bz2.BZ2File(file))
    if how == "xz":
        return cast("IO[bytes]", lzma.LZMAFile(file))
    if how == "zstd":
        # Buffered: TextIOWrapper asks for read1, and lines are looked for byte by byte without it.
        return cast("IO[bytes]", io.BufferedReader(cast("Any", pa.CompressedInputStream(file, "zstd")), 1 << 20))
    return file


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Find the one file of an archive; what macOS adds does not count."""
    names = [each for each in archive.infolist() if not each.is_dir() and not each.filename.startswith("__MACOSX/")]
    if any(each.filename.startswith("xl/") for each in names):
        raise DataError("is an Excel workbook; save it as CSV in UTF-8")
    if len(names) != 1:
        raise DataError(f"is an archive of {len(names)} files; unpack it, or keep one in it")
    return names[0]


def _starting(start: bytes, known: dict[bytes, str]) -> str | None:
    return next((what for magic, what in known.items() if start.startswith(magic)), None)
