"""Adapters from wherever they lie, on their base models: by the address that they carry, or the one given."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn

from distsub import paths
from distsub.adapters import hub, peft_files, units
from distsub.addresses import is_hub_id
from distsub.errors import AdapterError, OutputError, UnavailableError, first_line
from distsub.files import Files
from distsub.finetune import inputs, trajectory
from distsub.models import pretrained
from distsub.subspace import adapter
from distsub.subspace.model import SubspaceModel

_OF_RESULTS = "{0} is a results directory: give one of its adapters, {0}/adapters/ID; distsub status names the smallest"


@dataclass(frozen=True)
class Opened:
    """An adapter on its base model, in evaluation mode, what it says, where its base was found, its files' bytes.

    A base that was given as a model was found nowhere: None.
    """

    model: SubspaceModel | nn.Module
    config: adapter.Config | peft_files.Facts
    base: pretrained.Prepared | None
    num_bytes: int

    @property
    def scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation of its targets, where it learned them standardised; its model gives them back."""
        return self.config.trained_on and self.config.trained_on.scale


def load_adapter(
    directory: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | nn.Module | None = None,
) -> SubspaceModel | nn.Module:
    """Rebuild a saved model: the base by its address, the head by its seed, or as it was saved.

    Args:
        directory: An adapter: a directory, a hub id, or an address such as s3://, gs://, abfs:// or hdfs://.
        results: Results directory with the trajectories that a learned subspace is made of; None takes the one that
            holds the adapter as adapters/ID.
        base: The base model, where it is none that a sweep could name, or is not found: a directory, a hub id, or the
            model itself. One that has moved is looked for where the results say that it lies, and among their inputs.
            It is checked to be the one that the adapter was trained on.

    Returns:
        The held model, in evaluation mode; of a method of PEFT the model with PEFT's adapter on it.

    Raises:
        AdapterError: The adapter is missing, damaged, foreign, or made for other weights.
        TrajectoryError: A trajectory that it needs is missing or damaged.
        UnavailableError: The base model is not here.
    """
    return open_adapter(directory, results, base).model


def open_adapter(
    directory: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | nn.Module | None = None,
) -> Opened:
    """Rebuild a saved model, and say what it was made from; see `load_adapter`."""
    with local(directory) as path:
        config = read_config(path)
        num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        if isinstance(base, nn.Module):
            model, prepared = base, None
        else:
            given = None if base is None else os.fspath(base)
            model, prepared = _base(path, config, given, None if given else _results(directory, results))
        if isinstance(config, peft_files.Facts):
            if prepared is None:
                raise AdapterError(f"{path} is an adapter of PEFT: give the address of its base, not the model")
            if (sha256 := prepared.sha256) != config.base_sha256:
                raise AdapterError(
                    f"{path} was trained on weights {config.base_sha256[:12]}, those of the base model are "
                    f"{sha256[:12]}; give the base model that it was trained on"
                )
            return _in_units(Opened(peft_files.load(path, config, model), config, prepared, num_bytes))
        made_of, span, snapshots = config.snapshots, config.subspace.span, None
        if made_of is not None and span is not None:
            if prepared is None:
                raise AdapterError(f"{path} lives in a learned subspace: give the address of its base, not the model")
            if results is None and "://" in os.fspath(directory):
                raise AdapterError(
                    f"{path} lives in a learned subspace: give results, a local copy of the results directory"
                )
            root = Path(directory).resolve().parents[1] if results is None else Path(results)
            folders = [root / paths.trajectory(name) for name in made_of.recordings]
            snapshots = trajectory.collect(folders, prepared.sha256, span)
        held = SubspaceModel.from_pretrained(path, model, snapshots)
        return _in_units(Opened(held, config, prepared, num_bytes))


def _in_units(opened: Opened) -> Opened:
    units.in_original_units(opened.model, opened.scale)
    return opened


def read_config(path: Path) -> adapter.Config | peft_files.Facts:
    """Read what an adapter in a directory of this machine says.

    Raises:
        AdapterError: It is missing or damaged.
    """
    return peft_files.load_facts(path) if (path / peft_files.FACTS).is_file() else adapter.load_config(path)


def _results(directory: str | os.PathLike[str], results: str | os.PathLike[str] | None) -> Files | None:
    """Find the results directory that holds an adapter as adapters/ID, or the one given; None if there is none."""
    files = Files.at(directory if results is None else results)
    root, uri = os.path.realpath(files.root) if files.is_local else files.root, files.uri.rstrip("/")
    if results is None:
        root = root.rsplit("/", 2)[0]
        uri = root if files.is_local else uri.rsplit("/", 2)[0]
    files = replace(files, root=root, uri=uri)
    with contextlib.suppress(OSError, pa.ArrowException):
        return files if root and files.exists("sweep.json") else None
    return None


def _base(
    path: Path, config: adapter.About, given: str | None, files: Files | None
) -> tuple[nn.Module, pretrained.Prepared]:
    """Build the base model that an adapter names, or the one given, and say where it was found."""
    address = given or config.base_model
    if address is None or config.num_labels is None:
        raise AdapterError(f"{path} does not say its base model; give it as base: its address, or the model itself")
    if config.num_labels and not config.architecture.endswith("ForSequenceClassification"):
        raise AdapterError(
            f"{path} was made for a {config.architecture}, which no sweep builds: build it with transformers and give "
            "it as base"
        )
    try:
        held = "bfloat16" if config.base_dtype == "bfloat16" else "float32"
        if given:
            prepared = pretrained.prepare(given, dtype=held)
        else:
            prepared = inputs.model(address, config.revision, config.base_content, files, held)
        model = pretrained.build(prepared, config.num_labels, config.head_seed or 0, head_from=config.head_from)
    except UnavailableError as error:
        hint = "" if given else f"; where the base model of {path} lies elsewhere now, give its address as base"
        raise UnavailableError(f"{error}{hint}") from None
    if config.base_dtype in ("float16", "float64"):
        model = model.to(getattr(torch, config.base_dtype))
    return model, prepared


@contextmanager
def local(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an adapter's directory on this machine, where it lies elsewhere a copy for as long as it is read.

    Raises:
        AdapterError: There is no such place, or no adapter.
    """
    address = os.fspath(directory)
    if "://" not in address:
        path = Path(address).expanduser()
        if not path.exists() and is_hub_id(address):
            yield hub.fetch(address)
            return
        if (path / paths.IDENTITY).is_file():
            raise AdapterError(_OF_RESULTS.format(address))
        yield path
        return
    try:
        files = Files.at(address)
    except OutputError as error:
        raise AdapterError(str(error).replace("a results directory", "the address of an adapter")) from None
    with tempfile.TemporaryDirectory() as folder:
        for name in hub.FILES:
            if name == peft_files.FACTS and not files.exists(name):
                continue
            try:
                (Path(folder) / name).write_bytes(files.read(name))
            except OSError as error:
                with contextlib.suppress(OSError):
                    if files.exists(paths.IDENTITY):
                        raise AdapterError(_OF_RESULTS.format(files.uri)) from None
                raise AdapterError(
                    f"no adapter in {files.uri}: {name} cannot be read ({first_line(error)}); give the address of "
                    "what save_pretrained wrote"
                ) from None
        try:
            yield Path(folder)
        except (AdapterError, UnavailableError) as error:
            raise type(error)(str(error).replace(folder, files.uri)) from None
