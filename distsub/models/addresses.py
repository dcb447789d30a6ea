"""Where a model's files are: an installed package, a local directory, a bucket, or the hub."""

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from distsub import cache, packages
from distsub.errors import UnavailableError, first_line
from distsub.files import parse_json
from distsub.models import weight_files

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja", "*.codes")
"""What a model has beside its weights: configuration and tokenizer, and no code."""


def locate(model: str, revision: str | None = None) -> Path:
    """Find a model's files.

    Args:
        model: "package:NAME", a local directory, an address such as s3://, gs:// or hdfs://, or a hub id such as
            "FacebookAI/roberta-base".
        revision: Hub revision.

    Raises:
        UnavailableError: Nothing there, and the hub cannot be asked or does not know it.
    """
    if model.startswith("package:"):
        return packages.model_directory(model)
    path = cache.copied(model, _wanted, deep=False) if "://" in model else Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnavailableError(f"model {model!r} is a directory without config.json; give a transformers directory")
        return path.resolve()
    if model.startswith((".", "/", "~")) or path.is_file() or "://" in model:
        raise UnavailableError(
            f"model {model!r} is no directory; give a transformers directory, a hub id or package:NAME"
        )
    return _download(model, revision)


def _wanted(folder: Path, names: list[str]) -> Iterator[str]:
    """Name what transformers reads of a folder elsewhere: the small files, then the weights that it looks for."""
    yield from (name for name in names if any(fnmatch(name, pattern) for pattern in SMALL_FILES))
    config = weight_files.read_json(folder / "config.json") if "config.json" in names else {}
    own = config.get("transformers_weights")
    first = own if isinstance(own, str) else next((name for name in weight_files.NAMES if name in names), None)
    if first is not None:
        yield from weight_files.shards(folder / first) if first.endswith(".json") else (first,)


@lru_cache(maxsize=16)
def _download(model: str, revision: str | None) -> Path:
    """Fetch a model from the hub: its small files, then the weights that transformers would take."""
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*SMALL_FILES, *patterns]))

    try:
        found = fetch(weight_files.NAMES[0])
        config = parse_json((found / "config.json").read_text()) if (found / "config.json").is_file() else {}
        if isinstance(own := config.get("transformers_weights"), str):
            found = fetch(own)
        first = weight_files.index_of(found, config)
        if first is None or first.suffix == ".bin" or first.name == weight_files.NAMES[3]:
            found = fetch(weight_files.NAMES[2])
            first = weight_files.index_of(found, config)
        if first is not None and first.suffix == ".json":
            found = fetch(*weight_files.shards(first))
    except UnavailableError as error:
        raise UnavailableError(f"model {model!r}: {error}") from None
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean the same to a user
        raise UnavailableError(
            f"model {model!r} is neither cached here nor reachable on the hub ({first_line(error)}); "
            f"give a local directory, package:NAME, or run once with the network"
        ) from None
    return found
