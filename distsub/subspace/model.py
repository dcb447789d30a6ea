"""A transformers model held in a subspace: theta = theta_0 + lambda * P theta_d, one layer at a time.

theta_0 is never written. When a unit (see `layout`) is about to run, its weights are materialised in one buffer; what
autograd would save of them is replaced by a note, and the buffer is released when the unit is done. The backward pass
makes it again, unit by unit, and each unit's weight gradient is reduced to d numbers as soon as it is complete. So at
any moment the weights, and the weight gradients, of one unit exist beside theta_0.
"""

import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError, ConfigError, DistsubError
from distsub.records import Subspace, canonical, label
from distsub.records.reading import parse
from distsub.subspace import adapter, bits, restore, selftest
from distsub.subspace import layout as layouts
from distsub.subspace.assemble import assemble
from distsub.subspace.hooks import Hooks, PatchedForward
from distsub.subspace.trajectory import Snapshots
from distsub.subspace.weights import Numbers, Weights
from distsub.subspace.wrapper import Original, Wrapper, forgive, precision


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
        keep: Bytes of weights at most that live from a forward pass to its backward pass; what is beyond is made twice,
            which is the same to the bit.
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
        keep: int = 256 * 2**20,
        check: bool = True,
    ) -> None:
        """Lay the model out, draw P and hook the units."""
        super().__init__()
        _check(spec)
        if any(isinstance(module.__dict__.get("forward"), PatchedForward) for module in model.modules()):
            raise ConfigError("this model is held in a subspace already and would move twice; build a fresh one")
        self.d, self.spec, self.projection_seed = d, spec, projection_seed
        self.original = Original(model)
        model.requires_grad_(False)
        self.entries = layouts.entries(model, spec.head, spec.embeddings, spec.modules)
        self.groups = layouts.scale_groups(self.entries, spec.scales)
        self.projection = assemble(self.entries, d, spec, projection_seed, snapshots)
        self.made_of = snapshots and snapshots.made_of
        num_scales = len({group for *_, group in self.groups}) if spec.scales else 0
        some = next(model.parameters())
        dtype = precision(some)
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
        self.hooks = Hooks(self, set(blocks[: math.ceil(recompute * len(blocks))]), keep)
        self.register_load_state_dict_post_hook(forgive)
        if check:
            selftest.verify(self)
            self.projection.forget()  # of embeddings a training needs some rows, where this test needed all
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
        return self.projection.num_coordinates

    @property
    def num_trained(self) -> int:
        """Numbers trained in the subspace, scales included: d, unless there are several layers or an ensemble."""
        return self.coordinates.numel() + self.scales.numel()

    @property
    def num_params_model(self) -> int:
        """Parameters in the model, spanned or not, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

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
        with self.hooks.states_of("theta_0"):
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

    def describe(self) -> dict[str, Any]:
        """Say, as plain values for JSON, what it takes to make this subspace of the base model again."""
        subspace, made_of = canonical(self.spec), self.made_of and canonical(self.made_of)
        return {"d": self.d, "projection_seed": self.projection_seed, "subspace": subspace, "snapshots": made_of}

    def save_pretrained(self, directory: str | os.PathLike[str], **about: Any) -> None:
        """Save the trained numbers; see `adapter.save` for what else may be said of them."""
        counts = {
            "num_params": self.num_params,
            "num_params_model": self.num_params_model,
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
