"""Addresses of results and data: what may be given, what a Ray job takes away with it, and no secrets in them."""

import os
import re
from pathlib import Path

from pyarrow import fs as pafs

from distsub.errors import ConfigError, OutputError

_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
_ALMOST_URI = re.compile(
    r"[a-z][a-z0-9+.-]*:/(?!/)|(?:s3[an]?|gcs|gs|abfss?|az|wasbs?|hdfs|viewfs|file|https?)(?::(?!//)|//)", re.IGNORECASE
)
"""What was meant to be a URI: one slash after a scheme, or a known scheme without slashes or without its colon."""

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in what it starts as a job, and nowhere else."""

_JOB_FOLDER = "/runtime_resources/working_dir_files/_ray_pkg_"
"""Where Ray unpacks the working directory that a job brings along, to remove it with the job."""

_TRIES_OF_S3 = 2
"""Attempts of pyarrow's own within each of ours; a server that never answers takes three seconds each."""

_SECRET = ("secret", "token", "password", "key")
"""Options of an address that name a secret."""


def check_scheme(text: str) -> None:
    """Refuse what was meant to be a URI and is none, or none of a storage that there is, before anything is spent.

    Raises:
        OutputError: No colon or no two slashes after a scheme, or a scheme that is unknown or in upper case.
    """
    scheme = re.split("[:/]", text)[0]
    shown = (
        without_credentials(text) if "://" in text else f"{scheme}:{text.rpartition('@')[2]}" if "@" in text else text
    )
    refused = f"cannot use {shown!r} as a results directory"
    if _ALMOST_URI.match(text):
        raise OutputError(
            f"{refused}: a URI has a colon and two slashes after its scheme; give {scheme.lower()}://... for a URI, or "
            f"./{shown} for a local directory of that name"
        )
    if "://" in text and scheme not in _SCHEMES:
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise OutputError(f"{refused}: no scheme {scheme}://; give a local path, or a URI with one of {known}")


def absolute(path: str, directory: Path) -> str:
    """Start a path at the sweep file: trials run in other directories, and a link may stand for a moving target."""
    if "://" in path:
        return refuse_credentials(path)
    return os.path.abspath(directory / Path(path).expanduser())


def output_address(given: str) -> str:
    """Give the address of what is to be written, a local one absolute; refuse one that a Ray job takes with it.

    A job runs in a copy of the working directory that it brought along, which Ray removes when the job is over.

    Raises:
        OutputError: It lies in such a copy, is relative to a job's directory, or is almost a URI.
    """
    check_scheme(given)
    if "://" in given:
        return given
    path = os.path.abspath(os.path.expanduser(given))
    relative = not os.path.isabs(os.path.expanduser(given))
    if (relative and _JOB in os.environ) or _JOB_FOLDER in os.path.realpath(path):
        raise OutputError(
            f"{given!r} is in the directory of this Ray job, which is thrown away when the job ends; give an absolute "
            "path that outlives it, on storage that all nodes see, or a URI such as s3://bucket/path"
        )
    return path


def without_credentials(uri: str) -> str:
    """Drop credentials and options from a URI so that it may be printed."""
    scheme, _, rest = uri.partition("://")
    rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def refuse_credentials(address: str) -> str:
    """Give an address back unless it has credentials in it, which a sweep file, a row or a message would keep.

    Raises:
        ConfigError: It has some.
    """
    scheme, _, rest = address.partition("://")
    place, _, options = rest.partition("?")
    host = place.partition("/")[0]
    user, at, _ = host.rpartition("@")
    secret = ":" in user
    if not at and "@" in place and ":" in host:  # a secret with a slash in it, where a port would be a number
        secret = not host.rpartition(":")[2].isdecimal()
    if secret or any(word in option.partition("=")[0].lower() for option in options.split("&") for word in _SECRET):
        shown = f"{scheme}://...{place.rpartition('@')[2] if secret else place}"
        raise ConfigError(
            f"{shown} is given with credentials, which a sweep file and its results would keep; leave them out and set "
            "them in the environment (as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or use a role of the machine"
        )
    return address


def reach(uri: str, seconds: float) -> tuple[pafs.FileSystem, str]:
    """Open a URI's file system so that a write is one request, and that one which is not there is soon given up.

    Args:
        uri: With a scheme.
        seconds: After which Google's storage is given up.
    """
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri:
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={seconds:g}"  # its own limit is a quarter of an hour
    filesystem, root = pafs.FileSystem.from_uri(uri)
    if isinstance(filesystem, pafs.S3FileSystem):
        _, (settings, *_) = filesystem.__reduce__()  # a URI cannot say how often to try
        hasty = {"allow_delayed_open": True, "retry_strategy": pafs.AwsStandardS3RetryStrategy(_TRIES_OF_S3)}
        filesystem = pafs.S3FileSystem(**settings | hasty)
    return filesystem, root


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_hub_id(address: str) -> bool:
    """Tell whether an address reads as a hub id: owner/name, with @revision behind it or not."""
    return _HUB_ID.fullmatch(address) is not None
