"""Which files of a folder hold a split: one file, shards, folders of `save_to_disk`, a copy of a hub repository."""

import fnmatch
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from distsub.data.tasks import FILE_SUFFIXES, bare_name, is_file
from distsub.errors import DataError, nearest
from distsub.files import parse_json

_SHARD = re.compile(r".+-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?")


def split_files(directory: Path, splits: Sequence[str], config: str | None = None) -> list[list[Path]]:
    """Find the files of each split, in the order of their rows; `config` is one of a copied hub repository.

    Raises:
        DataError: None or several candidates, or a shard is missing; without the directory's name.
        UnavailableError: The directory cannot be read.
    """
    declared = _declared(directory, config)
    return [_found(directory, split, config, declared) for split in splits]


def dataset_files(directory: Path) -> list[Path] | None:
    """Find the files of a folder that `Dataset.save_to_disk` wrote, which holds one table and no splits; else None.

    Raises:
        DataError: It is damaged, or written by a version that kept the order of its rows apart.
    """
    state = directory / "state.json"
    if not state.is_file():
        return None
    content = _json(state)
    if content.get("_indices_data_files") or content.get("_indices_files"):
        raise DataError("was saved with an order of rows apart; load it with datasets and save it again")
    names = [each["filename"] for each in content.get("_data_files") or []]
    files = [directory / Path(name).name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"lacks {missing[0]}, which its state.json names")
    return files


def _found(directory: Path, split: str, config: str | None, declared: dict[str, list[str]] | None) -> list[Path]:
    if declared is not None and split in declared:
        try:
            globbed = [file for pattern in declared[split] for file in sorted(directory.glob(pattern))]
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"has a README.md with a pattern of files that cannot be used: {error}") from error
        files = [file for file in dict.fromkeys(globbed) if is_file(file.name)]
        if not files:
            raise DataError(
                f'has none of the files that its README.md names for "{split}": {", ".join(declared[split])}'
            )
        return _whole(files)
    candidates = []
    for folder in {directory / name: None for name in ("", "data", config or "")}:
        if folder.is_dir():
            candidates += _in(folder, split)
    if len(candidates) > 1:
        names = " and ".join(each[0].relative_to(directory).as_posix() for each in candidates)
        raise DataError(f'has several candidates for "{split}": {names}; keep one')
    if candidates:
        return _whole(candidates[0])
    if declared is not None:
        raise DataError(f'has no split "{split}" in its README.md; {nearest(split, declared)}')
    raise DataError(_nothing(directory, split))


def _in(folder: Path, split: str) -> list[list[Path]]:
    """List the ways in which a folder holds a split; shards of one format are one way."""
    exact, shards = [], {}
    named = re.compile(rf"(.+-)?{re.escape(split)}(-\d+-of-\d+(?:-[0-9a-f]+)?)?")
    for file in sorted(folder.iterdir()):
        if is_file(file.name) and (found := named.fullmatch(_stem(file))):
            if found[1] and file.suffix != ".arrow":
                # Only the cache of datasets puts the name of the dataset before that of the split.
                continue
            if found[2]:
                shards.setdefault("".join(file.suffixes), []).append(file)
            else:
                exact.append([file])
    below, inner = folder / split, []
    if below.is_dir():
        saved = dataset_files(below)
        inner = saved if saved is not None else sorted(file for file in below.iterdir() if is_file(file.name))
    return [*exact, *shards.values(), *([inner] if inner else [])]


def _whole(files: list[Path]) -> list[Path]:
    """Refuse a set of shards of which some are missing or too many, and put them in order."""
    stems = [_stem(file) for file in files]
    shards = {file: _SHARD.fullmatch(stem) for file, stem in zip(files, stems, strict=True)}
    if not all(shards.values()):
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            names = " and ".join(file.name for file in files if _stem(file) == twice)
            raise DataError(f"holds {names} for one split; keep one")
        return files
    numbers = {file: (int(shard["number"]), int(shard["count"])) for file, shard in shards.items() if shard}
    if len({count for _, count in numbers.values()}) > 1 or len(set(numbers.values())) < len(files):
        raise DataError(f"mixes shards of several versions: {', '.join(file.name for file in files[:4])}; keep one set")
    count = next(iter(numbers.values()))[1]
    there = {number for number, _ in numbers.values()}
    if missing := sorted(set(range(count)) - there):
        raise DataError(f"lacks shard {missing[0]:05d} of {count} beside {files[0].name}; fetch all of them")
    return sorted(files, key=lambda file: numbers[file])


def _declared(directory: Path, config: str | None) -> dict[str, list[str]] | None:
    """Read which files the card of a hub repository names for each split, if it does."""
    readme = directory / "README.md"
    if not readme.is_file():
        return None
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(readme)
    except Exception:  # whatever the parser of somebody's prose raises: then it says nothing, and names must do
        return None
    configs = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(configs, list) or not configs:
        return None
    named = {str(each.get("config_name", "default")): each for each in configs if isinstance(each, dict)}
    chosen = config or next((name for name, each in named.items() if each.get("default") or name == "default"), None)
    chosen = chosen or (next(iter(named)) if len(named) == 1 else None)
    if chosen is None:
        raise DataError(f"is a dataset of several configurations; set config to one of: {', '.join(named)}")
    if chosen not in named:
        raise DataError(f'has no configuration "{chosen}"; {nearest(chosen, named)}')
    return _patterns(named[chosen].get("data_files"))


def _patterns(content: Any) -> dict[str, list[str]] | None:
    """Take the forms in which a card names files: a pattern, a list of them, or one for each split."""
    if isinstance(content, str):
        return {"train": [content]}
    if isinstance(content, list) and all(isinstance(each, str) for each in content):
        return {"train": content}
    if not isinstance(content, list) or not all(isinstance(each, dict) and "split" in each for each in content):
        return None
    found = {}
    for each in content:
        paths = each.get("path", [])
        found[str(each["split"])] = [paths] if isinstance(paths, str) else list(map(str, paths))
    return found


def _nothing(directory: Path, split: str) -> str:
    files = sorted(file for file in islice(directory.rglob("*"), 5000) if is_file(file.name))
    names = [file.relative_to(directory).as_posix() for file in files]
    if folders := {Path(name).parts[0] for name in names if fnmatch.fnmatch(name, f"*/*{split}*")}:
        return f'holds "{split}" in {", ".join(sorted(folders)[:8])}; set path to one of these folders'
    there = f"{', '.join(names[:8]) or 'no data files'}{', ...' if len(names) > 8 else ''}"
    if not names and any(directory.glob("*.py")):
        there += ", but a program, which is never run"
    suffixes = ",".join(FILE_SUFFIXES)
    return (
        f"holds no {split}{{{suffixes}}} (there: {there}); set train or validation to a file stem, or holdout to rows"
    )


def _stem(file: Path) -> str:
    return Path(bare_name(file.name)).stem


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"holds a damaged {path.name}") from error
    return content if isinstance(content, dict) else {}
