"""A saved adapter that is read, and whether what it is loaded onto is what it was made for."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError, DistsubError
from distsub.subspace import layout
from distsub.subspace.adapter import (
    HEAD,
    WEIGHTS,
    Config,
    dtype,
    hash_of,
    load_config,
    short,
    trained_from,
    version,
)
from distsub.subspace.projection import Projection
from distsub.subspace.trajectory import MadeOf

_TOLERANCE = 1e-5
"""Relative: matrix products of another machine are summed in another order, another P is off by more than 1."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read, and whether what it is loaded onto is what it was made for.

    Attributes:
        path: Its directory.
        config: Its JSON.
        tensors: The trained numbers by name, and the head at theta_0 where no seed makes it again.
    """

    path: Path
    config: Config
    tensors: dict[str, Tensor]

    def check_base(self, base: nn.Module) -> None:
        """Check that a model is the adapter's theta_0, after giving it the head that was saved, if one was.

        Raises:
            AdapterError: Its weights or its head are others.
        """
        config, theta_0, heads = self.config, dict(base.named_parameters()), layout.head_names(base)
        saved = {name.removeprefix(HEAD): t for name, t in self.tensors.items() if name.startswith(HEAD)}
        try:
            policies = layout.outside(base, config.subspace.head, config.subspace.embeddings)
        except DistsubError as error:
            raise AdapterError(f"the subspace in {self.path} does not fit this model: {error}") from error
        beside = {name for name, policy in policies.items() if policy == "trained"}
        apart = heads | saved.keys() | beside
        if (found := dtype({name: each for name, each in theta_0.items() if name not in beside})) != config.base_dtype:
            raise AdapterError(
                f"the adapter in {self.path} was made for weights in {config.base_dtype}, this model's are in {found}; "
                f"load the base model in {config.base_dtype}"
            )
        if (found := hash_of(theta_0, theta_0.keys() - apart)) != config.base_sha256:
            name = config.base_model or "no named base model"
            at = f" at revision {config.revision}" if config.revision else ""
            raise AdapterError(
                f"the adapter in {self.path} was made for other weights: sha256 {short(config.base_sha256)} "
                f"({name}{at}), this model has {short(found)}; give the base model that it was trained on, untouched"
            )
        if config.head_sha256 is None:
            return
        fresh = saved.keys() | (heads if config.subspace.head != "trained" else set())
        if all(name in theta_0 and t.shape == theta_0[name].shape for name, t in saved.items()):
            with torch.no_grad():
                for name, tensor in saved.items():
                    theta_0[name].copy_(tensor)
        if (found := hash_of(theta_0, fresh & theta_0.keys())) != config.head_sha256:
            seed = config.head_seed
            of = "that was saved with it," if saved else "of unknown seed" if seed is None else f"of head_seed = {seed}"
            raise AdapterError(
                f"the adapter in {self.path} was made for another head: sha256 {short(config.head_sha256)}, this "
                f"model has {short(found)}, probably from another head_seed; it needs the head {of} with num_labels "
                f"= {config.num_labels}"
            )

    def check_snapshots(self, given: MadeOf | None) -> None:
        """Check that the checkpoints given are those that the subspace was made of.

        Raises:
            AdapterError: They are not there, or others.
        """
        made_of = self.config.snapshots
        if made_of is None or (given is not None and given.fingerprint == made_of.fingerprint):
            return
        what = f"{', '.join(made_of.recordings) or 'no named trajectory'} (sha256 {short(made_of.fingerprint)})"
        hint = ": give it as snapshots (distsub.finetune.trajectory reads it where `distsub trajectory` recorded it)"
        if given is not None:
            hint = f"; the checkpoints given are others (sha256 {short(given.fingerprint)})"
        raise AdapterError(f"the adapter in {self.path} lives in a learned subspace, made of {what}{hint}")

    def check_projection(self, projection: Projection, num_scales: int) -> None:
        """Check that the projection that was rebuilt is the one that the numbers were trained in.

        Raises:
            AdapterError: It is not.
        """
        config, counts = self.config, {"num_params": projection.num_params, "num_scales": num_scales}
        if wrong := [f"{k} = {given}, here {n}" for k, n in counts.items() if (given := getattr(config, k)) != n]:
            raise AdapterError(f"the adapter in {self.path} spans another set of parameters: {', '.join(wrong)}")
        saved, found = config.fingerprint, projection.fingerprint()
        scale = max(abs(value) for value in found)
        if len(saved) != len(found) or not all(
            math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * scale)
            for a, b in zip(saved, found, strict=True)
        ):
            written = config.versions.get("distsub", "unknown")
            raise AdapterError(
                f"the projection of the adapter in {self.path} cannot be rebuilt: its fingerprint begins "
                f"{list(saved[:2])}, here {list(found[:2])}; it was written by distsub {written}, this is "
                f"{version('distsub')}: use that version"
            )

    @torch.no_grad()
    def put(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Write the saved numbers into a model's trained parameters.

        Raises:
            AdapterError: They are not the same set, or not of the same shapes.
        """
        tensors = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(HEAD)}
        for name, parameter in trained.items():
            saved = tensors.pop(name, None)
            if saved is None or saved.shape != parameter.shape:
                given = "no such tensor" if saved is None else f"{list(saved.shape)}"
                raise AdapterError(
                    f"{self.path / WEIGHTS} has {given} for {name!r}, the subspace asks for {list(parameter.shape)}; "
                    f"the adapter is corrupt, save it again"
                )
            parameter.copy_(saved)
        if tensors:
            raise AdapterError(
                f"{self.path / WEIGHTS} has tensors that the subspace does not know: {', '.join(sorted(tensors))}"
            )


def load(directory: str | os.PathLike[str]) -> "Adapter":
    """Read an adapter, whole or not at all.

    Raises:
        AdapterError: A file is missing or damaged.
    """
    path = Path(directory)
    config = load_config(path)
    try:
        content = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{path / WEIGHTS} cannot be read ({error.strerror}); the adapter is incomplete, copy or save it again"
        ) from None
    return Adapter(path, config, trained_from(content, config.weights_sha256, path / WEIGHTS))
