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

from distsub.errors import AdapterError, ConfigError, DistsubError
from distsub.records import Subspace, canonical, label
from distsub.records.reading import parse
from distsub.subspace import adapter, bits, guard, restore, selftest
from distsub.subspace import layout as layouts
from distsub.subspace.doors import Door
from distsub.subspace.families import assemble
from distsub.subspace.lending import Lending
from distsub.subspace.trajectory import Snapshots
from distsub.subspace.weights import Numbers, Weights
from distsub.subspace.wrapper import Original, Wrapper


class SubspaceModel(Wrapper):
    """Train exactly d numbers of a frozen model.

    DID: theta = theta_0 + P theta_d (Aghajanyan et al. 2020, Eq. 1). SAID: theta_i = theta_0i + lambda_i (P theta)_i
    with one scale per group, paid for out of d (Eq. 3). theta starts at 0 and lambda at 1, so that the start is
    theta_0. `coordinates` and `scales` are the only parameters that require gradients, and those of the head where
    it is trained beside the subspace.

    Args:
        model: Any transformers model; its parameters are frozen in place and never written.
        d: Numbers to train, scales included.
        spec: What the subspace is made of, and what becomes of the parameters outside it.
        projection_seed: Seed of P.
        snapshots: The checkpoints that a learned subspace is made of, or a random one scaled to.
        recompute: Share of the blocks, from the first on, whose activations are computed again in the backward pass
            instead of kept; the same gradient to the bit, for less memory and more time.
        check: Compare loss and gradient with the plain model's on one tiny batch, once for each kind of model in a
            process; see `selftest`.

    Attributes:
        d: As asked for.
        spec: As asked for.
        coordinates: theta_d, shape [num_coordinates]; [spec.ensemble, num_coordinates] where several are averaged.
        scales: lambda, shape [number of scales].

    Raises:
        DimensionError: d does not exceed the number of scales, or exceeds D.
        ConfigError: The record holds something else than its fields allow, or the model cannot be held (see `check`).
        TrajectoryError: The snapshots are of another layout.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> base = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    >>> model = SubspaceModel(base, 100, Subspace(scales="layer"))
    >>> model.num_trained, model.num_coordinates
    (100, 96)
    """

    def __init__(
        self,
        model: nn.Module,
        d: int,
        spec: Subspace = Subspace(),  # noqa: B008 (it is frozen)
        projection_seed: int = 0,
        *,
        snapshots: Snapshots | None = None,
        recompute: float = 1 / 6,
        check: bool = True,
    ) -> None:
        """Lay the model out, draw P and hook the units."""
        super().__init__()
        _check(spec)
        if any(isinstance(module.__dict__.get("forward"), Door) for module in model.modules()):
            raise ConfigError("this model is held in a subspace already and would move twice; build a fresh one")
        self.d, self.spec, self.projection_seed = d, spec, projection_seed
        self.original = Original(model)
        model.requires_grad_(False)
        self.entries = layouts.entries(model, spec.head, spec.embeddings)
        self.groups = layouts.scale_groups(self.entries, spec.scales)
        self.projection = assemble(self.entries, d, spec, projection_seed, snapshots)
        self.made_of = snapshots and snapshots.made_of
        num_scales = len({group for *_, group in self.groups}) if spec.scales else 0
        some = next(model.parameters())
        dtype = _precision(some)
        shape = (self.num_coordinates,) if spec.ensemble == 1 else (spec.ensemble, self.num_coordinates)
        coordinates = torch.zeros(shape, dtype=dtype)
        if spec.start == "random":
            coordinates = bits.normals(projection_seed, "start", 0, coordinates.numel()).view(shape) / d**0.5
        self.coordinates = nn.Parameter(coordinates.to(some.device, dtype))
        self.scales = nn.Parameter(torch.ones(num_scales, dtype=dtype, device=some.device))
        self.units = list(layouts.units(model, self.entries))
        apart = layouts.outside(model, spec.head, spec.embeddings)
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
        base = type(self.model).__name__ if "model" in self._modules else "unloaded"
        return (
            f"SubspaceModel({base}, d={self.d}, D={self.num_params}, method={label(self.spec)!r}, "
            f"projection={self.spec.family!r})"
        )

    @property
    def theta(self) -> Tensor:
        """The coordinates that count, shape [num_coordinates]: the mean of the ensemble."""
        return self.coordinates if self.coordinates.dim() == 1 else self.coordinates.mean(0)

    @property
    def num_params(self) -> int:
        """D: the parameters that the subspace spans."""
        return self.projection.num_params

    @property
    def num_coordinates(self) -> int:
        """Length of theta: d without the scales, times the layers where each has a theta of its own."""
        return self.projection.d

    @property
    def num_trained(self) -> int:
        """Numbers trained in the subspace, scales included: d, unless there are several layers or an ensemble."""
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
        """Say what the numbers belong to: the subspace, and a hash of entries of theta_0, as bytes of JSON."""
        text = json.dumps({"subspace": self.describe(), "theta_0": guard.sample_hash(self)}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that numbers which are about to be loaded belong here.

        Raises:
            ConfigError: They were trained in another subspace, or on another base model.
        """
        given, own = (json.loads(bytes(each.cpu().tolist())) for each in (state, self.get_extra_state()))
        theirs, mine = adapter.flat(given["subspace"]), adapter.flat(own["subspace"])
        differ = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if differ:
            each = ", ".join(f"{key} = {theirs.get(key)!r}, here {mine.get(key)!r}" for key in differ)
            raise ConfigError(f"this state was trained in another subspace: {each}; wrap the base model with those")
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

    def describe(self) -> dict[str, Any]:
        """Say, as plain values for JSON, what it takes to make this subspace of the base model again."""
        subspace, made_of = canonical(self.spec), self.made_of and canonical(self.made_of)
        return {"d": self.d, "projection_seed": self.projection_seed, "subspace": subspace, "snapshots": made_of}

    def save_pretrained(self, directory: str | os.PathLike[str], **about: Any) -> None:
        """Save the trained numbers; see `adapter.save` for what else may be said of them."""
        counts = {
            "num_params": self.num_params,
            "num_scales": self.scales.numel(),
            "num_trained": self.num_trained,
            "num_trained_head": self.num_trained_head,
            "fingerprint": self.projection.fingerprint(),
        }
        adapter.save(directory, self.model, self.trained(), self.describe() | counts, **about)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], base: nn.Module, snapshots: Snapshots | None = None
    ) -> "SubspaceModel":
        """Load an adapter onto its base model, after checking that it is the right one.

        Args:
            directory: What `save_pretrained` wrote.
            base: A transformers model with the adapter's theta_0; its head too, where the adapter does not hold it.
            snapshots: The checkpoints that a learned subspace is made of; see `finetune.trajectory`.

        Returns:
            The held model at the saved coordinates, in evaluation mode; on the machine that saved it, its logits are
            the same to the last bit.

        Raises:
            AdapterError: A file is missing or corrupt, or the adapter was made for other weights, another head or
                another projection, or from other checkpoints; the message says which.
        """
        saved = restore.load(directory)
        config = saved.config
        saved.check_base(base)
        saved.check_snapshots(snapshots and snapshots.made_of)
        try:
            model = cls(base, config.d, config.subspace, config.projection_seed, snapshots=snapshots)
        except DistsubError as error:
            raise AdapterError(f"the subspace in {saved.path} does not fit this model: {error}") from error
        saved.check_projection(model.projection, model.scales.numel())
        saved.put(model.trained())
        if config.id2label:
            adapter.name_labels(base, list(config.id2label.values()))
        return model.eval()


def _check(spec: Subspace) -> None:
    """Refuse a record that holds something else than its fields allow."""
    if not isinstance(spec, Subspace):
        raise ConfigError(f'spec = {spec!r} is no subspace; give one, as Subspace() or Subspace(scales="layer")')
    try:
        parse(Subspace, canonical(spec))
    except ValueError as error:
        raise ConfigError(f"Subspace: {error}") from None
    if spec.ensemble < 1:
        raise ConfigError(f"Subspace: ensemble should be 1 or more, got {spec.ensemble}")


def _precision(base: Tensor) -> torch.dtype:
    """Give the precision of the trained numbers: never less than float32."""
    return torch.float64 if base.dtype == torch.float64 else torch.float32


def _forgive(held: SubspaceModel, keys: Any) -> None:
    """Do not count what `state_dict` leaves out as missing where it is loaded."""
    left_out = tuple(
        f"model.{name}" for name, p in held.model.named_parameters(remove_duplicate=False) if not p.requires_grad
    )
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(left_out)]
