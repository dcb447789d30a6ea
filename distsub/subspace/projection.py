"""The one mathematical noun: a fixed linear map P from d coordinates to D parameters.

`Projection` says what a subspace is asked for: `apply` and `adjoint` on slices and on rows of a matrix. Everything is
addressed by position: no slice needs the rest of P.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from distsub.errors import ConfigError, DimensionError, ShapeError

CHUNK = 1 << 18
"""Numbers worked on at once on a CPU; 1 MiB in float32, so that a chain of operations stays in a core's cache."""

DEVICE_CHUNK = 1 << 24
"""Numbers worked on at once on other devices, where every operation is a launch; a base-size block is fewer."""

NORMALIZATIONS = ("global", "per_tensor")


def launches(device: torch.device) -> bool:
    """Tell whether a device runs behind the program: operations are launches, and to read a number back is to wait."""
    return device.type != "cpu"


def chunk(device: torch.device) -> int:
    """Say how many numbers a device works on at once."""
    return DEVICE_CHUNK if launches(device) else CHUNK


@dataclass(frozen=True)
class Encoded:
    """What every slice of P theta is made from, computed once."""

    code: Tensor

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.code.device


@dataclass(frozen=True)
class Placed:
    """Rows of a table, cut into groups, found once for both directions.

    Attributes:
        groups: Of each group its place among the rows, the blocks that hold it, and where each row begins in those.
    """

    groups: tuple[tuple[slice, Tensor, Tensor], ...]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own precision, whatever a caller allows: no autocast, no TF32, no bfloat16 in products.

    A Hadamard transform is a product of matrices: in TF32, with 10 bits, P would be another map.
    """
    every: Any = torch.backends
    backends = (every.cuda.matmul, every.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    lowered = any(each not in ("ieee", "none") for each in (*before, every.fp32_precision))
    for backend in backends if lowered else ():
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, each in zip(backends, before, strict=True) if lowered else ():
            backend.fp32_precision = each


Stretch = tuple[int, Tensor, int]
"""(first position, a contiguous tensor that lies there, its group of scales)."""


def exact(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method of a projection in its tensors' own precision; see `full_precision`."""

    @wraps(method)
    def run(self: "Projection", tensor: Any, *args: Any, **kwargs: Any) -> Tensor:
        with full_precision(tensor.device):
            return method(self, tensor, *args, **kwargs)

    return run


class Projection(ABC):
    """A fixed linear map P: R^d -> R^D over tensors laid end to end.

    Normalisation "global" makes P an isometry in expectation over all D rows, E|P z|^2 = |z|^2 (Li et al. 2018).
    "per_tensor" gives every tensor an update of that norm, E|P_i z|^2 = |z|^2 (the released code of Aghajanyan
    et al. 2020): row i of a tensor with D_i entries is larger by sqrt(D / D_i). The two give d90 that cannot be
    compared.

    Args:
        sizes: Entries of each tensor, in the order of the D positions.
        num_coordinates: Length of theta; the d of the formulas, where there are no scales.
        seed: Projection seed.
        normalization: "global" or "per_tensor".

    Raises:
        DimensionError: The coordinates are not between 1 and D.
        ConfigError: The normalisation is unknown.
    """

    family: ClassVar[str]
    nested: ClassVar[bool] = True
    """Whether the span of P at d lies in the span of P at every d' > d."""

    def __init__(self, sizes: Sequence[int], num_coordinates: int, seed: int, normalization: str = "global") -> None:
        """Lay the tensors end to end; nothing random is drawn yet."""
        self.sizes = tuple(sizes)
        self.offsets = (0, *accumulate(self.sizes))
        self.num_params = self.offsets[-1]
        if not 1 <= num_coordinates <= self.num_params:
            raise DimensionError(
                f"{num_coordinates} coordinates do not fit: a projection onto D = {self.num_params} parameters takes "
                "1 to D; change d"
            )
        if normalization not in NORMALIZATIONS:
            raise ConfigError(f"normalization {normalization!r} is unknown; use one of {', '.join(NORMALIZATIONS)}")
        self.num_coordinates = num_coordinates
        self.seed = seed
        self.normalization = normalization
        self.factors: tuple[float, ...] | None = None
        """What each tensor's rows are multiplied with; None for 1 everywhere."""
        if normalization == "per_tensor":
            self.factors = tuple((self.num_params / max(size, 1)) ** 0.5 for size in self.sizes)
        self._sent: dict[tuple[str, torch.device, torch.dtype | None], Tensor] = {}

    def encode(self, theta: Tensor) -> Tensor | Encoded:
        """Compute what all slices of P theta share; `apply` and `apply_rows` of this projection take it for theta."""
        return theta

    def find_rows(self, start: int, width: int, rows: Tensor) -> Tensor | Placed:
        """Find once what `apply_rows` and `adjoint_rows` of this projection share; they take it for the rows."""
        return rows

    @abstractmethod
    def apply(self, theta: Any, start: int = 0, stop: int | None = None) -> Tensor:
        """Map coordinates to the update of one slice of the parameters, (P theta)[start:stop].

        Args:
            theta: Coordinates, shape [d], or what `encode` made of them.
            start: First position.
            stop: Position after the last; None means D.

        Returns:
            Shape [stop - start], theta's dtype and device.

        Raises:
            ShapeError: theta is not [d], or the slice does not lie within D.
        """

    @abstractmethod
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Map the gradient of a slice to coordinates, P[start:stop]^T grad, the exact transpose of `apply`.

        Args:
            grad: Shape [stop - start]; not modified.
            start: First position.

        Returns:
            Shape [d].

        Raises:
            ShapeError: The slice does not lie within D.
        """

    @abstractmethod
    def apply_rows(self, theta: Any, start: int, width: int, rows: Any) -> Tensor:
        """Map coordinates to the update of some rows of a matrix that begins at position `start`.

        Args:
            theta: Coordinates, shape [d], or what `encode` made of them.
            start: Position of the matrix's first entry.
            width: Entries of a row.
            rows: int64 row numbers, shape [n], or what `find_rows` made of them.

        Returns:
            Shape [n, width].
        """

    @abstractmethod
    def adjoint_rows(self, grad: Tensor, start: int, rows: Any) -> Tensor:
        """Map the gradient [n, width] of some rows to coordinates [d], the transpose of `apply_rows`."""

    def make(
        self, theta: Any, start: int, stop: int, add: Sequence[Stretch], scales: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Compute theta_0 + lambda * P theta on a slice, rounded once, in one write; None where no kernel does.

        Args:
            theta: As of `apply`.
            start: First position.
            stop: Position after the last.
            add: Where theta_0 lies, and which of the scales it has.
            scales: lambda; None is 1.
            dtype: Of the result.
        """
        return None

    def collapse(self, start: int, stop: int, grads: Sequence[Stretch]) -> Tensor | None:
        """Compute `adjoint` of a gradient that lies in several places, in one read; None where no kernel does."""
        return None

    def forget(self) -> None:  # noqa: B027 (some keep nothing)
        """Let go of random state that is kept between calls; it is drawn again where it is needed."""

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Materialise P, shape [D, d]; for tests at small D."""
        return torch.stack([self.apply(column) for column in torch.eye(self.num_coordinates, dtype=dtype)], dim=1)

    def fingerprint(self) -> tuple[float, ...]:
        """Give sixteen entries of P theta for one fixed theta, spread over D: what a reloaded adapter compares."""
        theta = torch.cos(torch.arange(self.num_coordinates, dtype=torch.float64)).float()
        at = [i * (self.num_params - 1) // 15 for i in range(16)]
        return tuple(self.apply(theta, i, i + 1).item() for i in at)

    def _table(self, name: str, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Give one of this projection's small tables on a device, where it is sent once."""
        key = (name, device, dtype)
        if key not in self._sent:
            with torch.inference_mode(False):
                self._sent[key] = getattr(self, name).to(device, dtype)
        return self._sent[key]

    def _check(self, theta: Tensor | None, start: int, stop: int) -> None:
        if theta is not None and theta.shape != (self.num_coordinates,):
            raise ShapeError(
                f"theta has shape {list(theta.shape)}; this {self.family} projection takes [{self.num_coordinates}]"
            )
        if not 0 <= start <= stop <= self.num_params:
            raise ShapeError(f"slice {start}:{stop} does not lie within D = {self.num_params}")
