"""A transformers model held in a subspace: theta = theta_0 + lambda * P theta_d, one layer at a time.

theta_0 is never written. When a unit (see `layout`) is about to run, its weights are made in one buffer and lent to
it; what autograd would save of them is replaced by a note, and the buffer is dropped when the unit is done. The
backward pass makes it again, unit by unit, and each unit's weight gradient is reduced to d numbers as soon as it is
complete. So at any moment the weights, and the weight gradients, of one unit exist beside theta_0.
"""

import json
import math
import os
from collections.abc import Callable
from typing import Any, Never

import torch
from torch import Tensor, nn

from distsub.errors import ConfigError
from distsub.records import DEFAULT_FAMILY
from distsub.subspace import bits, guard, selftest
from distsub.subspace import layout as layouts
from distsub.subspace.doors import Door
from distsub.subspace.families import Kind, assemble
from distsub.subspace.fastfood import next_power_of_two
from distsub.subspace.lending import Lending
from distsub.subspace.trajectory import Snapshots
from distsub.subspace.weights import Numbers, Weights
from distsub.subspace.wrapper import Original, Wrapper

METHODS = ("did", "said")


class SubspaceModel(Wrapper):
    """Train exactly d numbers of a frozen model.

    DID: theta = theta_0 + P theta_d (Aghajanyan et al. 2020, Eq. 1). SAID: theta_i = theta_0i + lambda_i (P theta)_i
    with one scale per group, paid for out of d (Eq. 3). theta starts at 0 and lambda at 1, so that the start is
    theta_0. `coordinates` and `scales` are the only parameters that require gradients, and those of the head where
    it is trained beside the subspace.

    Args:
        model: Any transformers model; its parameters are frozen in place and never written.
        d: Numbers to train, scales included.
        method: "did" or "said".
        projection: Family of P: dense, sparse, fastfood, fastfood_per_tensor, partition or trajectory.
        normalization: "global" or "per_tensor".
        groups: What one scale covers, "layer" or "tensor"; read by SAID only.
        head: "in_subspace", "trained" or "frozen".
        projection_seed: Seed of P.
        block_length: Fastfood block length; None takes the smallest that holds d.
        scope: "model", or "layer": one theta of d numbers for each transformer block, and nothing else in the subspace.
        embeddings: Policy of the base model's parameters outside its blocks; as `head`.
        ensemble: Coordinate vectors whose mean is theta; `coordinates` is then [ensemble, d].
        start: "zero", or "random" for coordinates from N(0, 1/d).
        snapshots: Checkpoints that projection "trajectory", or `match_norms`, is made of.
        match_norms: Give each tensor's rows of a random P the size of the last snapshot's update there.
        recompute: Share of the blocks, from the first on, whose activations are computed again in the backward pass
            instead of kept; the same gradient to the bit, for less memory and more time.
        check: Compare loss and gradient with the plain model's on one tiny batch, once for each kind of model in a
            process; see `selftest`.

    Raises:
        DimensionError: d does not exceed the number of scales, or exceeds D.
        ConfigError: An option is unknown, or the model cannot be held (see `check`).
        TrajectoryError: The snapshots are of another layout.
    """

    def __init__(
        self,
        model: nn.Module,
        d: int,
        method: str = "did",
        projection: str = DEFAULT_FAMILY,
        normalization: str = "global",
        groups: str = "layer",
        head: str = "in_subspace",
        projection_seed: int = 0,
        block_length: int | None = None,
        scope: str = "model",
        embeddings: str = "in_subspace",
        ensemble: int = 1,
        start: str = "zero",
        snapshots: Snapshots | None = None,
        match_norms: bool = False,
        recompute: float = 1 / 6,
        check: bool = True,
    ) -> None:
        """Lay the model out, draw P and hook the units."""
        super().__init__()
        if method not in METHODS:
            raise ConfigError(f"method = {method!r} is unknown; use one of {', '.join(METHODS)}")
        if scope == "layer" and method == "said":
            raise ConfigError('scope = "layer" has a theta for each layer and no scales; take method "did"')
        if any(isinstance(module.__dict__.get("forward"), Door) for module in model.modules()):
            raise ConfigError("this model is held in a subspace already and would move twice; build a fresh one")
        self.original = Original(model)
        model.requires_grad_(False)
        self.entries = layouts.entries(model, head, embeddings)
        self.groups = layouts.scale_groups(self.entries, groups if method == "said" else None)
        num_scales = layouts.check_dimension(d, self.entries, self.groups, method)
        block_length = block_length or next_power_of_two(max(d, 4))
        kind = Kind(projection, normalization, projection_seed, block_length, scope, match_norms)
        self.projection = assemble(self.entries, d - num_scales, kind, snapshots)
        self.settings: dict[str, Any] = {
            "d": d,
            "method": method,
            "projection": projection,
            "normalization": normalization,
            "groups": groups if method == "said" else None,
            "head": head,
            "projection_seed": projection_seed,
            "block_length": block_length,
        }
        later = {"scope": scope, "embeddings": embeddings, "ensemble": ensemble, "match_norms": match_norms}
        usual = {"scope": "model", "embeddings": "in_subspace", "ensemble": 1, "match_norms": False}
        self.settings |= {key: value for key, value in later.items() if value != usual[key]}
        if snapshots is not None:
            self.settings["snapshots"] = snapshots.describe()
        some = next(model.parameters())
        dtype = _precision(some)
        shape = (self.projection.d,) if ensemble == 1 else (ensemble, self.projection.d)
        coordinates = torch.zeros(shape, dtype=dtype)
        if start == "random":
            coordinates = bits.normals(projection_seed, "start", 0, coordinates.numel()).view(shape) / d**0.5
        self.coordinates = nn.Parameter(coordinates.to(some.device, dtype))
        self.scales = nn.Parameter(torch.ones(num_scales, dtype=dtype, device=some.device))
        self.units = list(layouts.units(model, self.entries))
        apart = layouts.outside(model, head, embeddings)
        self.head = layouts.free(model, {name for name, policy in apart.items() if policy == "trained"})
        self.model = model
        self.weights = Weights(self.projection, self.groups)
        blocks = [number for number, unit in enumerate(self.units) if unit.block]
        self.lending = Lending(self, set(blocks[: math.ceil(recompute * len(blocks))]))
        self.register_load_state_dict_post_hook(_forgive)
        if check:
            selftest.verify(self)
            self.coordinates.grad = self.scales.grad = None

    def __repr__(self) -> str:
        """Say in one line what is held in what; `print(held.model)` shows the modules."""
        settings = self.settings
        base = type(self.model).__name__ if "model" in self._modules else "unloaded"
        return (
            f"SubspaceModel({base}, d={settings['d']}, D={self.num_params}, method={settings['method']!r}, "
            f"projection={settings['projection']!r})"
        )

    @property
    def theta(self) -> Tensor:
        """The coordinates that count, shape [projection.d]: the mean of the ensemble."""
        return self.coordinates if self.coordinates.dim() == 1 else self.coordinates.mean(0)

    @property
    def num_params(self) -> int:
        """D: the parameters that the subspace spans."""
        return self.projection.num_params

    @property
    def num_trained(self) -> int:
        """Numbers trained in the subspace, scales included: d, times layers and ensemble where there are such."""
        return self.coordinates.numel() + self.scales.numel()

    @property
    def num_trained_head(self) -> int:
        """Numbers trained in full beside the subspace, in the head and the embeddings."""
        return sum(parameter.numel() for parameter in self.head.values())

    def trained(self) -> dict[str, nn.Parameter]:
        """Name everything that an optimiser should move."""
        subspace = {"coordinates": self.coordinates} | ({"scales": self.scales} if self.scales.numel() else {})
        return subspace | {f"head.{name}": parameter for name, parameter in self.head.items()}

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """Give the full weights theta_0 + lambda * P theta by name (D numbers: the whole model at once)."""
        spanned = {entry.name for entry in self.entries}
        with self.lending.giving("theta_0"):
            state = self.model.state_dict()
        state = {name: tensor if name in spanned else tensor.clone() for name, tensor in state.items()}
        state |= {entry.name: self.weight(entry) for entry in self.entries}
        tied = {id(p): name for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            state[name] = state[tied[id(p)]]
        return state

    @property
    def numbers(self) -> Numbers:
        """Theta and lambda as they are now, without their history."""
        return Numbers(self.theta.detach(), self.scales.detach())

    @torch.no_grad()
    def weight(self, entry: layouts.Entry) -> Tensor:
        """Make one parameter, theta_0 + lambda * P theta, in its shape and precision."""
        flat = self.weights.make(self.numbers, ((entry.start, entry.stop),), [entry])
        return flat.view(entry.frozen.shape).to(entry.frozen.dtype)

    @torch.no_grad()
    def update(self, start: int, stop: int) -> Tensor:
        """Compute what is added to theta_0 on a slice of the positions, (lambda * P theta)[start:stop]."""
        return self.weights.update(self.numbers, start, stop)

    # States, copies, moves

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Give the trained numbers and the base model's buffers: theta_0 is left out, and named by a hash.

        Load it into a `SubspaceModel` with the same settings and the same base model; another is refused.
        """
        with self.lending.giving("trained"):
            return super().state_dict(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Say what the numbers belong to: settings, and a hash of entries of theta_0, as bytes of JSON."""
        said = json.dumps({"settings": self.settings, "theta_0": guard.sample_hash(self)}, sort_keys=True)
        return torch.frombuffer(bytearray(said.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that numbers which are about to be loaded belong here.

        Raises:
            ConfigError: They were trained under other settings, or on another base model.
        """
        given, own = (json.loads(bytes(each.cpu().tolist())) for each in (state, self.get_extra_state()))
        mine, theirs = own["settings"], given["settings"]
        differ = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if differ:
            said = ", ".join(f"{key} = {theirs.get(key)!r}, here {mine.get(key)!r}" for key in differ)
            raise ConfigError(f"this state was trained under other settings: {said}; wrap the base model with those")
        if given["theta_0"] != own["theta_0"]:
            raise ConfigError(
                "this state was trained on another theta_0: wrap the base model of its training, with that head"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SubspaceModel":
        """Move or cast: the base model as any other, the trained numbers so that they stay precise enough to train."""
        if recurse:
            self.model._apply(fn)
        dtype = _precision(next(self.model.parameters()))
        for parameter in (self.coordinates, self.scales):
            with torch.no_grad():
                parameter.data = parameter.data.to(fn(parameter.data).device, dtype)
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.to(parameter.device, dtype)
        return self

    def _replicate_for_data_parallel(self) -> Never:
        guard.refuse(
            "nn.DataParallel copies weights that a SubspaceModel makes as it runs: use DistributedDataParallel"
        )

    def save_pretrained(self, directory: str | os.PathLike[str], **identity: Any) -> None:
        """Save the trained numbers; see `adapter.save_pretrained` for what else may be said of them."""
        from distsub.subspace import adapter

        adapter.save_pretrained(self, directory, **identity)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], base: nn.Module, snapshots: Snapshots | None = None
    ) -> "SubspaceModel":
        """Rebuild a saved model around its base; see `adapter.from_pretrained`."""
        from distsub.subspace import adapter

        return adapter.from_pretrained(directory, base, snapshots)


def _precision(base: Tensor) -> torch.dtype:
    """Give the precision of the trained numbers: never less than float32."""
    return torch.float64 if base.dtype == torch.float64 else torch.float32


def _forgive(held: SubspaceModel, keys: Any) -> None:
    """Do not count what `state_dict` leaves out as missing where it is loaded."""
    left_out = tuple(
        f"model.{name}" for name, p in held.model.named_parameters(remove_duplicate=False) if not p.requires_grad
    )
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(left_out)]
